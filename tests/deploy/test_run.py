"""`make run` in the cluster of the env file, the check before a deployment, locks, and what is said of Docker."""

from __future__ import annotations

import fcntl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.deploy.checkout import TEAM, add_program, add_venv, calls, mode, run, write_env

KIND = """
echo "kind $*" >>calls
case "$*" in
  "get clusters") printf 'ottoscaler-boa\\nottoscaler-minji\\n' ;;
  "get kubeconfig"*) echo "of $4" ;;
esac
"""
DOCKER = """
echo "docker $*" >>calls
case "$*" in *State.Running*) echo true ;; esac
"""
KUBECTL = 'echo "kubectl $*" >>calls'


@pytest.fixture
def ready(checkout: Path) -> Path:
    """Two Kind clusters that run, and a Python that writes down how it was called."""
    for name, script in {"docker": DOCKER, "kind": KIND, "kubectl": KUBECTL}.items():
        add_program(checkout, name, script)
    add_venv(checkout)
    return checkout


def environ(checkout: Path) -> dict[str, str]:
    """What the controller was started with."""
    lines = (checkout / "python.environ").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


class TestRun:
    """Which cluster it is."""

    def test_the_files_kind_cluster(self, ready: Path) -> None:
        """In a kubeconfig of its own, that no other user may read; the rest of the environment stays."""
        write_env(ready, "boa")
        done = run(ready, "make", "run", environ={"MAX_WORKERS": "7", "ENV_FILE": ".env.boa.local"})
        assert done.returncode == 0, done.stderr
        path = Path(environ(ready)["KUBECONFIG"])
        assert path.read_text(encoding="utf-8") == "of ottoscaler-boa\n"
        assert mode(path) == "600"
        assert environ(ready)["MAX_WORKERS"] == "7"
        assert environ(ready)["ENV_FILE"] == ".env.boa.local"
        assert (ready / "python.args").read_text(encoding="utf-8").split() == ["ottoscaler.py", "run"]
        assert not [line for line in calls(ready) if line.startswith("kubectl")]

    def test_the_only_file_is_taken(self, ready: Path) -> None:
        """As by all other targets."""
        write_env(ready, "minji")
        assert run(ready, "make", "run").returncode == 0
        assert Path(environ(ready)["KUBECONFIG"]).read_text(encoding="utf-8") == "of ottoscaler-minji\n"
        assert environ(ready)["ENV_FILE"] == ".env.minji.local"

    def test_several_files(self, ready: Path) -> None:
        """It has to be said which one."""
        write_env(ready, "minji")
        write_env(ready, "boa")
        done = run(ready, "make", "run")
        assert done.returncode != 0
        assert "There are several environments" in done.stderr
        assert not (ready / "python.args").exists()

    def test_a_kubeconfig_given_by_hand_wins(self, ready: Path) -> None:
        """In the environment, and in the file."""
        write_env(ready, "boa")
        run(ready, "make", "run", environ={"KUBECONFIG": "mine"})
        assert environ(ready)["KUBECONFIG"] == "mine"
        write_env(ready, "boa", "KUBECONFIG=mine")
        run(ready, "make", "run")
        assert "KUBECONFIG" not in environ(ready)  # the controller reads it in the file
        assert not [line for line in calls(ready) if "kubeconfig" in line]

    def test_a_file_that_names_no_cluster(self, ready: Path) -> None:
        """kubectl's current context is not taken in its place."""
        (ready / ".env.boa.local").write_text("REDIS_PORT=6383\n", encoding="utf-8")
        done = run(ready, "deploy/dev.sh", "run")
        assert done.returncode == 2
        assert "names no cluster: set KIND_CLUSTER_NAME or KUBECONFIG" in done.stderr
        assert not (ready / "python.args").exists()

    @pytest.mark.parametrize(
        ("kind", "docker", "said"),
        [
            ("exit 0", DOCKER, "There is no Kind cluster ottoscaler-boa"),
            (KIND, DOCKER.replace("echo true", "echo false"), "ottoscaler-boa is stopped"),
            (KIND.replace('echo "of $4"', "exit 1"), DOCKER, "gives no kubeconfig"),
        ],
    )
    def test_a_cluster_that_is_not_there(self, ready: Path, kind: str, docker: str, said: str) -> None:
        """It is refused, with what to do."""
        write_env(ready, "boa")
        add_program(ready, "kind", kind)
        add_program(ready, "docker", docker)
        done = run(ready, "deploy/dev.sh", "run")
        assert done.returncode == 2
        assert said in done.stderr
        assert not (ready / "python.args").exists()

    def test_without_any_file_the_environment_alone_counts(self, ready: Path) -> None:
        """As the controller documents it."""
        assert run(ready, "make", "run", environ={"REDIS_HOST": "x"}).returncode == 0
        assert "ENV_FILE" not in environ(ready)
        assert calls(ready) == []

    def test_its_exit_code_and_its_signals_are_the_controllers(self, ready: Path) -> None:
        """There is no shell between."""
        write_env(ready, "boa")
        done = run(ready, "deploy/dev.sh", "run", environ={"PYTHON_EXITS": "7"})
        assert done.returncode == 7


class TestUi:
    """`make ui`: the page of the newest controller, at a free port of this machine."""

    FORWARDS = """
    echo "kubectl $*" >>calls
    case "$*" in
      *"get pods"*) printf 'pod/ottoscaler-old\\npod/ottoscaler-new\\n' ;;
      *port-forward*) echo 'Forwarding from 127.0.0.1:40123 -> 8080' ;;
    esac
    """

    def test_the_page_is_opened(self, ready: Path) -> None:
        """And named, where there is no browser."""
        write_env(ready, "boa")
        add_program(ready, "kubectl", self.FORWARDS)
        for browser in (False, True):
            if browser:
                add_program(ready, "xdg-open", 'echo "opened $*" >>calls')
            done = run(ready, "make", "ui", environ={"ENV_FILE": ".env.boa.local"})
            assert done.returncode == 0, done.stderr
            assert "http://127.0.0.1:40123/ until Ctrl-C" in done.stdout
            assert ("opened http://127.0.0.1:40123/" in calls(ready)) is browser
        (forward,) = {line for line in calls(ready) if "port-forward" in line}
        assert "--context kind-ottoscaler-boa port-forward pod/ottoscaler-new " in forward
        assert forward.endswith("--address 127.0.0.1 :8080")

    def test_without_a_controller(self, ready: Path) -> None:
        """It says what brings one."""
        write_env(ready, "boa")
        done = run(ready, "deploy/dev.sh", "ui")
        assert done.returncode != 0
        assert "There is no controller in namespace boa-dev: make deploy brings it there." in done.stderr


class TestDoctor:
    """The user with the rights that it checks."""

    def test_those_of_the_controller_that_runs_in_the_cluster(self, ready: Path) -> None:
        """The ServiceAccount of deploy/base; further options follow."""
        write_env(ready, "boa")
        assert run(ready, "make", "doctor", "ARGS=--json").returncode == 0
        asked = (ready / "python.args").read_text(encoding="utf-8").split()
        assert asked == ["ottoscaler.py", "doctor", "--service-account", "ottoscaler", "--json"]
        assert "kubectl --context kind-ottoscaler-boa get deployment ottoscaler --namespace boa-dev" in calls(ready)

    def test_those_of_the_developer_before_a_deployment(self, ready: Path) -> None:
        """`make run` starts the controller with these."""
        write_env(ready, "boa")
        add_program(ready, "kubectl", "exit 1")
        assert run(ready, "deploy/dev.sh", "doctor").returncode == 0
        assert (ready / "python.args").read_text(encoding="utf-8").split() == ["ottoscaler.py", "doctor"]


class TestBeforeADeployment:
    """The product's own reader, before Docker is asked for anything."""

    def test_all_faults_at_once(self, ready: Path) -> None:
        """Within a second or so, each with the file; nothing was done."""
        write_env(
            ready,
            "boa",
            "MAX_WORKERS=many",
            "LEASE_S=1",
            "REDIS_CA_FILE=/nowhere",
            "NAMESPACE=No_Name",
            "LOG_LEVEL=LOUD",
        )
        done = run(ready, "make", "deploy")
        assert done.returncode != 0
        for name in ("MAX_WORKERS", "LEASE_S", "REDIS_CA_FILE", "REDIS_TLS", "NAMESPACE", "LOG_LEVEL"):
            assert f".env.boa.local: {name}=" in done.stderr
        assert calls(ready) == []

    def test_a_line_that_cannot_be_read(self, ready: Path) -> None:
        """By its number."""
        write_env(ready, "boa", "MAX_WORKERS")
        done = run(ready, "make", "deploy")
        assert "line 10" in done.stderr
        assert calls(ready) == []

    @pytest.mark.parametrize(
        ("name", "hint"), [("MAX_WORKER", "did you mean MAX_WORKERS?"), ("MY_TOKEN", "does not reach it\n")]
    )
    def test_a_name_that_is_no_setting(self, ready: Path, name: str, hint: str) -> None:
        """It is named, with the one that was perhaps meant; its value is not shown."""
        write_env(ready, "boa", f"{name}=hunter2")
        done = run(ready, "make", "deploy")
        assert done.returncode == 0, done.stderr
        assert f".env.boa.local: {name} is no setting of the controller" in done.stderr
        assert hint in done.stderr
        assert "hunter2" not in done.stdout + done.stderr

    def test_a_good_file_goes_on(self, ready: Path) -> None:
        """Without a word; a KUBECONFIG of this machine is none of the cluster's."""
        write_env(ready, "boa", "KUBECONFIG=/nowhere")
        done = run(ready, "make", "deploy")
        assert (done.returncode, done.stderr) == (0, "")
        assert "kubectl --context kind-ottoscaler-boa apply --kustomize .cache/deploy/boa/manifests" in calls(ready)


class TestDocker:
    """What it says itself decides what is said."""

    @pytest.mark.parametrize(
        ("says", "answer"),
        [
            ("permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: "
             "Get http: dial unix /var/run/docker.sock: connect: permission denied", "its socket refuses this account"),
            ("Got permission denied while trying to connect to the docker API", "its socket refuses this account"),
            ("Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?", "start Docker"),
            ("dial unix /x: connect: no such file or directory", "start Docker"),
            ("error during connect: dial tcp 127.0.0.1:1: connect: connection refused", "start Docker"),
            ("", "start Docker"),
            ("client version 1.52 is too new. Maximum supported API version is 1.41", "is too new"),
            ("x509: certificate signed by unknown authority", "certificate signed by unknown authority"),
        ],
    )  # fmt: skip
    def test_why_it_does_not_answer(self, ready: Path, says: str, answer: str) -> None:
        """Only where no daemon runs, one has to be started."""
        write_env(ready, "boa")
        add_program(ready, "docker", f"printf '%s\\n' '{says}' >&2; exit 1")
        done = run(ready, "make", "build")
        assert done.returncode != 0
        assert answer in done.stderr
        assert ("start Docker" in done.stderr) is (answer == "start Docker")


#: Docker that makes a container slowly, and refuses to make the same one twice.
SLOW_DOCKER = """
echo "docker $*" >>calls
case "$*" in
  run*)
    sleep 0.5
    while [ "$1" != --name ]; do shift; done
    mkdir "containers/$2" 2>/dev/null || { echo "Conflict. The container name is already in use" >&2; exit 1; }
    echo "docker made $2" >>calls ;;
  "container inspect --format {{.State.Running}}"*) [ -e "containers/$5" ] && echo true ;;
  "container inspect --format"*) echo kind ;;
  "container inspect"*) case "$3" in *control-plane) exit 1 ;; *) [ -e "containers/$3" ] ;; esac ;;
  port*) cat "port.$2" ;;
esac
"""


def test_the_password_of_a_docker_host_is_not_shown(ready: Path) -> None:
    """It may be a part of the URL."""
    write_env(ready, "boa")
    add_program(ready, "docker", "exit 1")
    done = run(ready, "make", "build", environ={"DOCKER_HOST": "tcp://anna:hunter2@example.com:2375"})
    assert "at tcp://***@example.com:2375: start Docker" in done.stderr
    assert "hunter2" not in done.stderr


class TestAtOnce:
    """Several commands, and several developers."""

    @pytest.fixture
    def slow(self, ready: Path) -> Path:
        """Docker without a container."""
        add_program(ready, "docker", SLOW_DOCKER)
        add_program(ready, "kind", 'printf "ottoscaler-%s\\n" jinwoo junyoung minji jiyoon boa hojun')
        add_program(ready, "kubectl", "exit 0")
        (ready / "containers").mkdir()
        for user, port in TEAM.values():
            (ready / "containers" / f"ottoscaler-{user}-control-plane").mkdir()
            (ready / f"port.redis-{user}").write_text(f"127.0.0.1:{port}\n", encoding="utf-8")
        # the real ports may be taken on this machine
        path = ready / "deploy" / "setup-user.sh"
        text = path.read_text(encoding="utf-8").replace("port_is_free ||", "true ||")
        path.write_text(text, encoding="utf-8")
        return ready

    def test_one_environment_twice(self, slow: Path) -> None:
        """The second one waits, and finds all of it there."""
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda _: run(slow, "deploy/setup-user.sh", "boa"), range(2)))
        assert [done.returncode for done in both] == [0, 0], both
        assert len([line for line in calls(slow) if line.startswith("docker run")]) == 1
        assert sorted("used as it is" in done.stdout for done in both) == [False, True]

    @pytest.mark.parametrize("count", [2, pytest.param(6, marks=pytest.mark.full)])
    def test_several_developers(self, slow: Path, count: int) -> None:
        """In one checkout, all at once: each gets what is theirs, and the targets ask which developer is meant."""
        team = dict(list(TEAM.items())[:count])
        with ThreadPoolExecutor(count) as pool:
            done = list(pool.map(lambda name: run(slow, "deploy/setup-user.sh", name), team))
        assert [each.returncode for each in done] == [0] * count, done
        made = sorted(line.split()[-1] for line in calls(slow) if line.startswith("docker made"))
        assert made == sorted(f"redis-{user}" for user, _ in team.values())
        for user, port in team.values():
            text = (slow / f".env.{user}.local").read_text(encoding="utf-8")
            assert f"REDIS_PORT={port}\n" in text
            assert f"KIND_CLUSTER_NAME=ottoscaler-{user}\n" in text
            assert f"ENV_FILE=.env.{user}.local" in run(slow, "make", "build").stderr

    def test_the_same_from_two_checkouts(self, slow: Path) -> None:
        """A container that another program made meanwhile is used, not replaced."""
        script = SLOW_DOCKER.replace("sleep 0.5", 'mkdir -p "containers/redis-boa"')
        add_program(slow, "docker", script)
        done = run(slow, "deploy/setup-user.sh", "boa")
        assert done.returncode == 0, done.stderr
        assert "made by another program at the same time" in done.stdout

    def test_a_container_that_does_not_start_is_no_trap(self, slow: Path) -> None:
        """It is removed again: otherwise the next run would take it for one of otto-handler's."""
        script = SLOW_DOCKER.replace("sleep 0.5", 'echo id1 >"$4"; echo "port is already allocated" >&2; exit 1')
        add_program(slow, "docker", script)
        done = run(slow, "deploy/setup-user.sh", "boa")
        assert done.returncode == 1
        assert "docker rm --force id1" in calls(slow)

    @pytest.mark.parametrize("command", ["deploy", "clean"])
    def test_a_second_command_waits_for_the_first(self, ready: Path, command: str) -> None:
        """And says so."""
        write_env(ready, "boa")
        (ready / ".cache" / "deploy").mkdir(parents=True)
        with (ready / ".cache" / "deploy" / "boa.lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with subprocess.Popen(
                ["deploy/dev.sh", command], cwd=ready, env={"PATH": f"{ready}/bin"}, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            ) as process:  # fmt: skip
                assert process.stderr is not None
                assert "another command works on the environment of boa" in process.stderr.readline()
                time.sleep(0.2)
                assert process.poll() is None
                assert not [line for line in calls(ready) if "delete" in line or "apply" in line]
                fcntl.flock(lock, fcntl.LOCK_UN)
                process.communicate(timeout=30)
            assert process.returncode == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("홍길동 gildong", "line 8: expected a name, a user name and a port"),
        ("홍길동 Gil 6390", "line 8: expected"),
        ("홍길동 gildong 06390", "line 8: expected"),
        ("홍길동 boa 6390", "line 8: boa has the same name or port"),
        ("홍길동 gildong 6383", "line 8: boa has the same name or port"),
    ],
)
def test_a_wrong_line_in_the_registry_of_ports(ready: Path, line: str, said: str) -> None:
    """It is named, whichever developer asks."""
    path = ready / "deploy" / "developers"
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    done = run(ready, "make", "setup-user", "USER=jinwoo")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
