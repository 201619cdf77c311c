"""Where a secret of an env file goes: into the Secret that the Deployment mounts, and nowhere else."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ottoscaler.settings import Settings
from tests.conftest import require
from tests.deploy.checkout import add_program, add_venv, calls, mode, run, write_env
from tests.readme import variables

SECRET = "hunter2-$(x)'\""
MOUNTED = "/etc/ottoscaler/redis"
POLICY = "/etc/ottoscaler/policy"


def manifests(checkout: Path, user: str = "boa") -> Path:
    """Have them written; returns their folder."""
    folder = checkout / ".cache" / "deploy" / user / "manifests"
    words = (f".env.{user}.local", str(folder), f"ottoscaler:{user}", "sha256:1")
    done = run(checkout, "python3", "-I", "-S", "deploy/environment.py", "manifests", *words)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    return folder


def settings(folder: Path) -> dict[str, str]:
    """What becomes the ConfigMap."""
    lines = (folder / "settings.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines)


def secret(folder: Path) -> dict[str, str]:
    """What becomes the Secret."""
    text = (folder / "secret.yaml").read_text(encoding="utf-8")
    return {key: base64.b64decode(value).decode() for key, value in json.loads(text)["data"].items()}


def quoted(value: str) -> str:
    """As an env file holds it."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


class TestManifests:
    """What is written for kubectl."""

    def test_a_password_is_in_the_secret_alone(self, checkout: Path) -> None:
        """Letter for letter; the controller is given the file."""
        write_env(checkout, "boa", f"REDIS_PASSWORD={quoted(SECRET)}")
        folder = manifests(checkout)
        assert secret(folder) == {"password": SECRET}
        assert settings(folder)["REDIS_PASSWORD_FILE"] == f"{MOUNTED}/password"
        holders = [each.name for each in folder.iterdir() if "hunter2" in each.read_text(encoding="utf-8")]
        assert holders == []  # encoded in secret.yaml
        assert "secret.yaml" in json.loads((folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]

    def test_files_of_this_machine_go_along(self, checkout: Path) -> None:
        """With their content, under the paths that they have in the pod."""
        (checkout / "password").write_text(f"{SECRET}\n", encoding="utf-8")
        (checkout / "ca").write_text("a certificate\n", encoding="utf-8")
        write_env(checkout, "boa", "REDIS_PASSWORD_FILE=password", "REDIS_CA_FILE=ca", "REDIS_TLS=true")
        folder = manifests(checkout)
        assert secret(folder) == {"password": f"{SECRET}\n", "ca.crt": "a certificate\n"}
        assert settings(folder)["REDIS_CA_FILE"] == f"{MOUNTED}/ca.crt"
        assert settings(folder)["REDIS_PASSWORD_FILE"] == f"{MOUNTED}/password"

    def test_the_paths_are_those_of_the_deployment(self) -> None:
        """The names of the Secret and of the policy's ConfigMap, and where they are mounted."""
        path = Path(__file__).resolve().parents[2] / "deploy" / "base" / "controller.yaml"
        pod = next(yaml.safe_load_all(path.read_text(encoding="utf-8")))["spec"]["template"]["spec"]
        paths = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        of_redis, of_policy = pod["volumes"]
        assert (of_redis["secret"]["secretName"], paths[of_redis["name"]]) == ("ottoscaler-redis", MOUNTED)
        assert (of_policy["configMap"]["name"], paths[of_policy["name"]]) == ("ottoscaler-policy", POLICY)

    def test_without_a_secret_there_is_none(self, checkout: Path) -> None:
        """Not an empty one either."""
        write_env(checkout, "boa")
        assert sorted(each.name for each in manifests(checkout).iterdir()) == [
            "kustomization.yaml",
            "namespace.yaml",
            "policy.yaml",
            "settings.env",
        ]

    def test_no_other_user_may_read_them(self, checkout: Path) -> None:
        """Whatever the umask; and what an older version has left there is gone."""
        write_env(checkout, "boa", f"REDIS_PASSWORD={quoted(SECRET)}")
        folder = manifests(checkout)
        (folder / "left").write_text("x", encoding="utf-8")
        folder = manifests(checkout)
        assert mode(folder) == "700"
        assert {mode(each) for each in folder.iterdir()} == {"600"}
        assert not (folder / "left").exists()

    def test_what_the_controller_does_not_read_stays_here(self, checkout: Path) -> None:
        """It may be another program's secret; so do the places of this machine."""
        write_env(
            checkout, "boa", "MAX_WORKERS=7", "KUBECONFIG=here", "HTTP_PORT=9090", "HTTP_ADDRESS=127.0.0.1",
            "REDIS_CONSUMER=me", "AWS_SECRET_ACCESS_KEY=x", "GITHUB_TOKEN=x", "PYTHONPATH=x",
            "LOG_HANDLER_TOKEN_FILE=x",
        )  # fmt: skip
        assert settings(manifests(checkout)) == {
            "REDIS_HOST": "redis-boa",
            "REDIS_PORT": "6379",
            "REDIS_STREAM": "otto:scale:events",
            "REDIS_CONSUMER_GROUP": "ottoscaler-boa",
            "OTTO_AGENT_IMAGE": "busybox:latest",
            "MAX_WORKERS": "7",
            "POLICY_FILE": f"{POLICY}/policy.yaml",
        }

    def test_a_redis_elsewhere_stays_where_it_is(self, checkout: Path) -> None:
        """Host and port of another machine hold in the cluster too."""
        write_env(checkout, "boa", "REDIS_HOST=redis.example.com", "REDIS_PORT=7000")
        found = settings(manifests(checkout))
        assert (found["REDIS_HOST"], found["REDIS_PORT"]) == ("redis.example.com", "7000")

    def test_every_setting_of_the_controller_is_known(self, checkout: Path) -> None:
        """No more and no less than the product reads."""
        done = run(checkout, "python3", "-I", "-c", _KNOWN)
        assert set(done.stdout.split()) == variables().keys()

    @pytest.mark.real
    def test_kubectl_builds_them(self, checkout: Path) -> None:
        """A value arrives as it is, however it is quoted, and no other object has the password."""
        require("kubectl")
        command = "echo \"a '$(x)' #b\""
        write_env(checkout, "boa", f"REDIS_PASSWORD={quoted(SECRET)}", f"OTTO_AGENT_COMMAND={quoted(command)}")
        done = subprocess.run(
            ["kubectl", "kustomize", str(manifests(checkout))], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        objects: list[dict[str, Any]] = list(yaml.safe_load_all(done.stdout))
        maps = [each["data"] for each in objects if each["kind"] == "ConfigMap"]
        (config,) = [each for each in maps if "REDIS_HOST" in each]
        (policy,) = [each for each in maps if each is not config]
        (found,) = [each for each in objects if each["kind"] == "Secret"]
        (deployment,) = [each for each in objects if each["kind"] == "Deployment"]
        assert config["OTTO_AGENT_COMMAND"] == command
        assert policy.keys() == {"policy.yaml"}
        assert base64.b64decode(found["data"]["password"]).decode() == SECRET
        assert (found["metadata"]["name"], found["metadata"]["namespace"]) == ("ottoscaler-redis", "boa-dev")
        assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "ottoscaler:boa"
        assert "hunter2" not in done.stdout
        Settings.load({k: v for k, v in config.items() if not k.endswith("_FILE")}, "pod", "boa-dev")


_KNOWN = "import sys; sys.path.insert(0, '.'); from deploy.manifests import known; print(*known())"

#: Docker with a container that runs; every word and the password's variable are written down.
DOCKER = """
echo "docker $*" >>calls
case "$*" in
  *State.Running*) echo true ;;
  exec*) echo "REDISCLI_AUTH=$REDISCLI_AUTH" >>auth; echo '[]' ;;
esac
"""


@pytest.fixture
def ready(checkout: Path) -> Path:
    """A checkout with stand-ins and an environment with a password."""
    for name, script in {"docker": DOCKER, "kind": _KIND, "kubectl": _KUBECTL}.items():
        add_program(checkout, name, script)
    add_venv(checkout)
    write_env(checkout, "boa", f"REDIS_PASSWORD={quoted(SECRET)}", "REDIS_USERNAME=anna")
    return checkout


_KIND = 'echo "kind $*" >>calls; [ "$*" != "get clusters" ] || echo ottoscaler-boa'
_KUBECTL = 'echo "kubectl $*" >>calls'


class TestScripts:
    """What the targets do with it."""

    @pytest.mark.parametrize(
        "target",
        [
            *("setup-user", "build", "deploy", "logs", "test-event", "status", "doctor", "k8s-status", "redis-cli"),
            "clean",
        ],
    )
    def test_no_target_shows_it(self, ready: Path, target: str) -> None:
        """Neither in its output, nor on a command line, nor in a file that others may read."""
        done = run(ready, "make", target, *(["USER=boa"] if target == "setup-user" else []))
        assert "hunter2" not in done.stdout + done.stderr
        assert "hunter2" not in "\n".join(calls(ready))
        for each in ready.rglob("*"):
            if each.is_file() and each.name != "auth" and "hunter2" in each.read_text("utf-8", errors="replace"):
                assert mode(each) == "600", each

    def test_redis_cli_has_it_by_the_environment(self, ready: Path) -> None:
        """And the user by name."""
        done = run(ready, "make", "redis-cli", "ARGS=ping")
        assert done.returncode == 0, done.stderr
        assert (ready / "auth").read_text(encoding="utf-8") == f"REDISCLI_AUTH={SECRET}\n"
        assert "docker exec --interactive --env REDISCLI_AUTH redis-boa redis-cli --user anna ping" in calls(ready)

    def test_a_file_with_a_password_is_made_private(self, ready: Path) -> None:
        """It is said once; one without a password may stay as it is."""
        path = ready / ".env.boa.local"
        path.chmod(0o644)
        assert "now only you can" in run(ready, "make", "redis-cli").stderr
        assert mode(path) == "600"
        assert "now only you can" not in run(ready, "make", "redis-cli").stderr

    def test_a_new_env_file_is_private(self, ready: Path) -> None:
        """From the beginning: a password may be added to it."""
        add_program(ready, "docker", DOCKER.replace("*) echo true", '*) echo true ;; port*) echo "127.0.0.1:6381"'))
        add_program(ready, "kind", _KIND.replace("-boa", "-minji"))
        done = run(ready, "make", "setup-user", "USER=minji")
        assert done.returncode == 0, done.stdout + done.stderr
        assert mode(ready / ".env.minji.local") == "600"
        assert "export ENV_FILE=.env.minji.local; make build && make deploy && make test-event" in done.stdout

    def test_a_secret_that_the_file_names_no_more_goes(self, ready: Path) -> None:
        """After the rollout; with it an older ConfigMap that has the password."""
        old = "printf 'ottoscaler-old\\n'"
        add_program(ready, "kubectl", f'{_KUBECTL}; case "$*" in *"get configmaps"*) {old} ;; esac')
        write_env(ready, "boa")
        done = run(ready, "make", "deploy")
        assert done.returncode == 0, done.stderr
        found = [line for line in calls(ready) if " delete " in line]
        assert [" ".join(line.split()[3:5]) for line in found] == ["delete secret", "delete configmap"]
        assert found[1].endswith("ottoscaler-old")


def test_a_fault_never_shows_it(checkout: Path) -> None:
    """Not even where the line itself is at fault."""
    write_env(
        checkout, "boa", f"REDIS_PASSWORD='{SECRET}", "REDIS_PASSWORD_FILE=/nowhere", "REDIS_HOST=redis://a:hunter2@b"
    )
    for command in ("shell", "check", "cluster", "login"):
        done = run(checkout, "python3", "-I", "-S", "deploy/environment.py", command, ".env.boa.local")
        assert "hunter2" not in done.stdout + done.stderr
