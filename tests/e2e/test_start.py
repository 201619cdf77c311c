"""Starting where something is missing: it says what, waits where that helps, and ends with code 2 where it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.recorder import Recorder
from tests.e2e.redis_server import RedisServer
from tests.e2e.system import System

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(90)]

_SECRET = "s3cr3t-and-never-seen"
#: How long a Role may take to be noticed: ours asks again after at most 10 s, and RBAC takes a moment.
_NOTICED_S = 14.0
_VERBS = ("create", "get", "list", "watch", "delete")


@pytest.fixture
def narrow_kubeconfig(system: System, tmp_path: Path) -> str:
    """The kubeconfig of a ServiceAccount without any rights."""
    where = system.kube.api.api_client.configuration
    path = tmp_path / "kubeconfig"
    path.write_text(
        f"""
apiVersion: v1
kind: Config
current-context: c
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: "{where.host}", certificate-authority: "{where.ssl_ca_cert}"}}}}]
users: [{{name: u, user: {{token: "{system.kube.token()}"}}}}]
""",
        encoding="utf-8",
    )
    return str(path)


class TestRights:
    """A user that may do nothing."""

    def test_what_is_missing_is_named(self, system: System, narrow_kubeconfig: str) -> None:
        """Verb, resource and namespace, one line each."""
        controller = system.launch(KUBECONFIG=narrow_kubeconfig)
        controller.until_said("kubernetes.forbidden")
        said = [line["message"] for line in controller.said("kubernetes.forbidden")]
        for verb in _VERBS:
            wanted = f"may not {verb} pods in namespace {system.kube.namespace}"
            assert any(wanted in message for message in said), said

    def test_given_later(self, system: System, narrow_kubeconfig: str) -> None:
        """It works soon after the Role is bound; what was sent meanwhile is carried out."""
        controller = system.launch(KUBECONFIG=narrow_kubeconfig)
        controller.until_said("kubernetes.forbidden")
        event_id = system.send(type="scale_up")
        system.kube.grant()
        controller.until_said("controller.started", _NOTICED_S)
        assert system.finished(event_id)["succeeded"] == "1"


class TestRedis:
    """The server that events come from."""

    def test_not_there_yet(self, new_system: Callable[..., System], own_redis: Callable[[], RedisServer]) -> None:
        """It says so, keeps trying, and works when it comes."""
        server = own_redis()
        system = new_system(server)
        controller = system.launch()
        line = controller.until_said("retry.scheduled")
        assert f"Redis at 127.0.0.1:{server.port} cannot be reached" in line["error"]
        assert controller.process.poll() is None
        server.start()
        controller.until_said("controller.started", 10)
        assert system.finished(system.send(type="scale_up"))["succeeded"] == "1"
        system.close()

    @pytest.mark.contract("2.redis")
    def test_one_that_forgets(self, new_system: Callable[..., System], own_redis: Callable[[], RedisServer]) -> None:
        """No append-only file, and keys may be evicted: the start says so, and goes on."""
        server = own_redis()
        server.start()
        system = new_system(server)
        system.redis.config_set("appendonly", "no")
        system.redis.config_set("maxmemory-policy", "allkeys-lru")
        said = [line["message"] for line in system.start().said("redis.advice")]
        assert len(said) == 2
        assert "appendonly" in " ".join(said)
        assert "noeviction" in " ".join(said)
        system.close()

    def test_stopped_while_it_waits(
        self, new_system: Callable[..., System], own_redis: Callable[[], RedisServer]
    ) -> None:
        """SIGTERM ends it in order, also before anything is there."""
        system = new_system(own_redis())
        controller = system.launch()
        controller.until_said("retry.scheduled")
        controller.terminate()
        assert controller.exit_code(10) == 0
        system.close()

    @pytest.mark.contract("6.secrets")
    def test_a_wrong_password(self, new_system: Callable[..., System], own_redis: Callable[[str], RedisServer]) -> None:
        """A sentence that says what to set; neither password is in the log."""
        server = own_redis("the-right-one")
        server.start()
        system = new_system(server)
        controller = system.launch(REDIS_PASSWORD=_SECRET, LOG_LEVEL="DEBUG")
        line = controller.until_said("retry.scheduled")
        assert "refuses our user or password" in line["error"]
        assert "REDIS_PASSWORD" in line["error"]
        assert _SECRET not in controller.text
        system.close()

    @pytest.mark.contract("6.secrets")
    def test_the_right_password(
        self, new_system: Callable[..., System], own_redis: Callable[[str], RedisServer]
    ) -> None:
        """Is not in the log either, whatever the level."""
        server = own_redis(_SECRET)
        server.start()
        system = new_system(server)
        controller = system.start(REDIS_PASSWORD=_SECRET, LOG_LEVEL="DEBUG")
        system.finished(system.send(type="scale_up"))
        assert _SECRET not in controller.text
        system.close()


class TestKubernetes:
    """The API server."""

    def test_not_there_yet(self, system: System, recorder: Recorder) -> None:
        """It says so, keeps trying, and works when it comes."""
        recorder.go_away()
        controller = system.launch(KUBECONFIG=str(recorder.kubeconfig))
        line = controller.until_said("retry.scheduled")
        assert "Kubernetes" in line["error"]
        event_id = system.send(type="scale_up")
        recorder.come_back()
        assert system.finished(event_id)["succeeded"] == "1"


class TestConfiguration:
    """What no waiting helps against."""

    @pytest.mark.contract("1.run")
    @pytest.mark.contract("1.exit-codes")
    def test_all_faults_at_once(self, system: System) -> None:
        """One line each, with variable, value and what is expected; code 2; no secret."""
        wrong = {"REDIS_PORT": "seventy", "MAX_WORKERS": "0", "WORKER_TOLERATIONS": "{", "NAMESPACE": "No_Such"}
        controller = system.launch(**wrong, REDIS_PASSWORD=_SECRET, REDIS_PASSWORD_FILE="/nowhere")
        assert controller.exit_code(20) == 2
        said = controller.text.splitlines()
        for name, value in {**wrong, "REDIS_PASSWORD_FILE": "/nowhere"}.items():
            assert any(name in line and value in line for line in said), name
        assert _SECRET not in controller.text
        assert "Traceback" not in controller.text

    @pytest.mark.contract("1.exit-codes")
    @pytest.mark.contract("2.KEY_PREFIX")
    def test_names_that_are_another_groups(self, system: System) -> None:
        """Two groups under one prefix would take each other's tasks: the second one ends, and says what to do."""
        first = system.start()
        second = system.launch(REDIS_CONSUMER_GROUP="others", REDIS_CONSUMER="otto-1", REDIS_STREAM="others:events")
        assert second.exit_code(20) == 2
        assert "KEY_PREFIX='otto:scale:'" in second.text
        assert "'ottoscaler'" in second.text
        assert "Traceback" not in second.text
        assert not system.redis.exists("others:events")
        assert first.process.poll() is None

    @pytest.mark.contract("1.exit-codes")
    def test_no_way_to_a_cluster(self, system: System, tmp_path: Path) -> None:
        """A kubeconfig that is not there."""
        controller = system.launch(KUBECONFIG=str(tmp_path / "nothing"))
        assert controller.exit_code(20) == 2
        assert "KUBECONFIG" in controller.text
        assert "Traceback" not in controller.text
