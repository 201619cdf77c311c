"""The developers' daily round on real Docker and real Kind: two of them at once, and a third one comes and goes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import require
from tests.e2e.developer import Developer
from tests.e2e.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

#: README's commands that the fixture runs, for both of them, and the one that a test of its own runs.
BEGINNING = (
    "make setup-user USER=한진우",
    "export ENV_FILE=.env.jinwoo.local",
    "make build",
    "make deploy",
    "make test-event",
)
END = "make clean"
#: Those that do not end by themselves.
_KUBECTL = "kubectl --context kind-ottoscaler-jinwoo"
FOLLOWING = ("make logs", "make ui", f"{_KUBECTL} get pods -l managed-by=ottoscaler -n jinwoo-dev --watch")
#: About worker pods, run while there are some.
ABOUT_WORKERS = (
    f"{_KUBECTL} get pods -l managed-by=ottoscaler -n jinwoo-dev",
    f"{_KUBECTL} describe pods -l managed-by=ottoscaler -n jinwoo-dev",
    f"{_KUBECTL} logs -l managed-by=ottoscaler -n jinwoo-dev --prefix",
)
#: All others, each run as it is printed.
EVERY_DAY = (
    "make test-event PODS=3 TASK=task-123",
    "make test-event TYPE=scale_down TASK=task-123",
    "make status",
    "make doctor",
    "make build && make deploy",
    "make redis-cli ARGS=ping",
    "make k8s-status",
    f"{_KUBECTL} get events -n jinwoo-dev --sort-by .lastTimestamp",
)
COMMANDS = (*BEGINNING, *EVERY_DAY, *ABOUT_WORKERS, *FOLLOWING, END)

#: Runs long enough to be redeployed meanwhile; a controller that started it again would start it twice.
_LONG = "echo started >&2; trap 'exit 9' TERM; sleep 45 & wait $!"


@pytest.fixture(scope="module")
def developers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Developer, Developer]]:
    """Two, each as far as README's one line brings them, both at the same time."""
    for program in ("docker", "kind", "kubectl"):
        require(program)
    folder = tmp_path_factory.mktemp("developers")
    pair = Developer(folder, "한진우", "jinwoo", 6379), Developer(folder, "junyoung", "junyoung", 6380)
    for one in pair:
        one.close()  # what an interrupted run has left
    try:
        with ThreadPoolExecutor(2) as both:
            list(both.map(_begin, pair))
        yield pair
    finally:
        for one in pair:
            one.close()


def _begin(one: Developer) -> None:
    lines = " && ".join(BEGINNING).replace("한진우", one.name).replace(".env.jinwoo.local", one.env_file)
    one.first = one.run(lines).split()[-1]


@pytest.fixture
def jinwoo(developers: tuple[Developer, Developer]) -> Developer:
    """The first of them."""
    return developers[0]


class TestRound:
    """From nothing to results."""

    def test_an_event_becomes_pods_and_results(self, developers: tuple[Developer, Developer]) -> None:
        """Three workers each, in one's own namespace and one's own Redis only."""
        for one in developers:
            assert one.finished(one.first)["succeeded"] == "3"
            assert len(one.results(one.first, "worker")) == 3

    def test_a_scale_down(self, jinwoo: Developer) -> None:
        """TYPE is passed on."""
        jinwoo.run("TASK=nobody TYPE=scale_down make test-event")
        found = wait_for(lambda: jinwoo.results("nobody", "scale_down"), "its result", 60)
        assert found[0]["reason"] == "NothingToEnd"

    def test_status_shows_all_at_a_glance(self, jinwoo: Developer) -> None:
        """Redis, cluster, deployment, workers, last results, and what was wrong with a bad event."""
        jinwoo.until_idle()  # only the last few results are shown
        jinwoo.redis.xadd("otto:scale:events", {"type": "scale_up", "task_id": "bad", "pod_count": "lots"})
        jinwoo.run("TASK=told PODS=1 make test-event")
        jinwoo.finished("told")
        output = jinwoo.run("make status")
        for word in ("Redis localhost:6379", "ottoscaler-jinwoo", "deployment.apps/ottoscaler", "1/1", "Last results"):
            assert word in output
        assert re.search(r"task +succeeded +Completed +told$", output, re.MULTILINE)
        assert re.search(r'task +failed +Rejected +bad: .*pod_count is "lots"', output)

    def test_logs_are_the_controllers(self, jinwoo: Developer) -> None:
        """JSON lines, as many as are asked for."""
        assert '"event": "controller.started"' in jinwoo.run('make logs ARGS="--tail=1000"')

    @pytest.mark.parametrize("command", EVERY_DAY)
    def test_a_line_of_readme(self, jinwoo: Developer, command: str) -> None:
        """It ends well, in the form in which it is printed."""
        jinwoo.run(command)

    @pytest.mark.parametrize("command", FOLLOWING)
    def test_a_line_that_follows(self, jinwoo: Developer, command: str) -> None:
        """It is still there after a while, and has not failed."""
        jinwoo.follow(command, 4)

    def test_other_views(self, jinwoo: Developer) -> None:
        """The namespace, and Redis."""
        assert "pod/ottoscaler" in jinwoo.run("make k8s-status")
        assert int(jinwoo.run('make redis-cli ARGS="XLEN otto:scale:events"').split()[-1]) >= 1


class TestAgain:
    """What is done twice."""

    def test_setting_up_changes_nothing(self, jinwoo: Developer) -> None:
        """Neither containers nor the cluster nor the file, even one that was edited."""

        def state() -> tuple[str, ...]:
            containers = jinwoo.run("docker ps --all --no-trunc --format '{{.ID}} {{.Names}}' | grep jinwoo | sort")
            objects = f"get deployments,serviceaccounts,roles,rolebindings,resourcequotas -n {jinwoo.namespace}"
            uids = jinwoo.kubectl(f"{objects} -o jsonpath='{{range .items[*]}}{{.metadata.uid}} {{end}}'")
            return containers, uids, (jinwoo.checkout / jinwoo.env_file).read_text(encoding="utf-8")

        with jinwoo.more_settings("READ_AHEAD=50"):
            before = state()
            output = jinwoo.run("deploy/setup-user.sh jinwoo")
            assert state() == before
        assert "made" not in output
        assert output.count("there already") >= 3

    def test_deploying_the_same_changes_nothing(self, jinwoo: Developer) -> None:
        """The controller's pod is the same."""
        controller = wait_for(lambda: _controller(jinwoo), "the controller", 60)
        jinwoo.run("make deploy")
        assert _controller(jinwoo) == controller

    def test_a_new_image_in_the_middle_of_a_task(self, jinwoo: Developer) -> None:
        """Nothing is lost, and the same workers go on; meanwhile README's lines show them."""
        with jinwoo.more_settings(f"OTTO_AGENT_COMMAND={_LONG}"):
            before = wait_for(lambda: _controller(jinwoo), "the controller", 60)
            jinwoo.run("make deploy")
            controller = wait_for(lambda: _other_controller(jinwoo, before), "the controller with the settings", 60)
            jinwoo.run("TASK=long PODS=2 make test-event")
            running = wait_for(lambda: _running(jinwoo, 2), "two running workers", 60)
            for command in ABOUT_WORKERS:
                output = jinwoo.run(command)
                assert all(name in output for name in running.values()), output
            assert "started" in output
            with (jinwoo.checkout / "ottoscaler" / "__init__.py").open("a", encoding="utf-8") as code:
                code.write("# changed\n")
            jinwoo.run("make build && make deploy")
            assert controller not in jinwoo.run('make logs ARGS="--tail=1 --prefix"')  # while it is still going
            wait_for(lambda: _other_controller(jinwoo, controller), "the new controller", 60)
            assert jinwoo.finished("long")["succeeded"] == "2"
        jinwoo.run("make deploy")
        results = jinwoo.results("long", "worker")
        assert {one["pod_uid"] for one in results} == running.keys()
        assert [one["attempt"] for one in results] == ["1", "1"]


class TestWrong:
    """A clear sentence."""

    def test_a_port_that_is_in_use(self, jinwoo: Developer) -> None:
        """It is named, and nothing is made."""
        output = jinwoo.run(
            'python3 -c \'import socket, subprocess, sys; s = socket.create_server(("127.0.0.1", 6391));'
            ' sys.exit(subprocess.run(["make", "setup-user", "USER=anna", "PORT=6391"]).returncode)\'',
            check=False,
        )
        assert "Port 6391 is taken by somebody else" in output
        assert not (jinwoo.checkout / ".env.anna.local").exists()

    def test_a_roll_out_that_fails(self, developers: tuple[Developer, Developer]) -> None:
        """The reason is shown: here in the controller's last words."""
        _, junyoung = developers
        with junyoung.more_settings("REDIS_HOST=redis-nobody"):
            output = junyoung.run("ROLLOUT_S=20 make deploy", check=False)
        assert "did not get ready" in output
        assert "Cannot reach Redis" in output
        junyoung.run("make deploy")

    def test_a_wrong_env_file(self, developers: tuple[Developer, Developer]) -> None:
        """All faults are named at once, within seconds, and the cluster stays as it is."""
        _, junyoung = developers
        before = wait_for(lambda: _controller(junyoung), "the controller", 60)
        with junyoung.more_settings("MAX_WORKERS=many", "LEASE_S=1"):
            output = junyoung.run("make deploy", check=False, timeout_s=15)
        assert "MAX_WORKERS='many': expected" in output
        assert "LEASE_S='1': expected" in output
        assert "did not get ready" not in output
        assert _controller(junyoung) == before

    def test_an_event_that_would_be_refused(self, jinwoo: Developer) -> None:
        """It is not sent, and make fails."""
        sent = jinwoo.redis.xlen("otto:scale:events")
        output = jinwoo.run("TASK=bad PODS=lots make test-event", check=False)
        assert "pod_count" in output
        assert "Error" in output
        assert jinwoo.redis.xlen("otto:scale:events") == sent


class TestApart:
    """No developer gets into another one's environment."""

    def test_two_environments_in_one_checkout(self, jinwoo: Developer) -> None:
        """Without ENV_FILE a target asks which one; with it all is as before."""
        other = jinwoo.checkout / ".env.minji.local"
        other.write_text((jinwoo.checkout / jinwoo.env_file).read_text("utf-8").replace("jinwoo", "minji"), "utf-8")
        try:
            assert "There are several environments" in jinwoo.run("make status", check=False)
            output = jinwoo.run(f"export ENV_FILE={jinwoo.env_file}; make build && make deploy && make test-event")
            assert re.fullmatch(r"[0-9]+-[0-9]+", output.split()[-1])
        finally:
            other.unlink()

    def test_run_uses_the_cluster_of_the_file(self, jinwoo: Developer, tmp_path: Path) -> None:
        """Whatever kubectl's current context is."""
        kube = tmp_path / ".kube"
        kube.mkdir()
        (kube / "config").write_text(_ELSEWHERE, encoding="utf-8")
        output = jinwoo.follow(f"env -u KUBECONFIG HOME={tmp_path} HTTP_PORT=0 make run", 30)
        first = next(line for line in output.splitlines() if "controller.starting" in line)
        assert "context kind-ottoscaler-jinwoo" in first
        assert "controller.started" in output
        assert "elsewhere" not in output

    def test_a_password_is_in_the_secret_alone(self, developers: tuple[Developer, Developer]) -> None:
        """The controller in the cluster comes in with it, and so do the targets here."""
        _, junyoung = developers
        junyoung.redis.config_set("requirepass", "hunter2")
        try:
            with junyoung.more_settings("REDIS_PASSWORD=hunter2"):
                output = junyoung.run("make deploy && TASK=secured make test-event && make redis-cli ARGS=ping")
                assert "PONG" in output
                assert junyoung.finished("secured")["succeeded"] == "3"
                output += junyoung.run("make status && make k8s-status && make logs ARGS=--tail=1000")
                output += junyoung.kubectl(f"get configmaps,deployments,pods -n {junyoung.namespace} -o yaml")
                assert "hunter2" not in output
                held = junyoung.kubectl(f"get secret ottoscaler-redis -n {junyoung.namespace} -o yaml")
                assert "aHVudGVyMg==" in held
        finally:
            junyoung.redis.config_set("requirepass", "")
        junyoung.run("make deploy")
        assert "NotFound" in junyoung.run(
            f"kubectl get secret ottoscaler-redis -n {junyoung.namespace} 2>&1", check=False
        )


#: A kubeconfig that leads elsewhere.
_ELSEWHERE = """
apiVersion: v1
kind: Config
current-context: elsewhere
contexts: [{name: elsewhere, context: {cluster: elsewhere, user: elsewhere}}]
clusters: [{name: elsewhere, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: elsewhere, user: {}}]
"""


def test_clean_takes_only_ones_own(developers: tuple[Developer, Developer], tmp_path: Path) -> None:
    """Cluster, image and file go; the shared Redis stays by default, and so does what others own."""
    others = "docker ps --all --no-trunc --format '{{.ID}} {{.Names}}' | grep -E 'jinwoo|junyoung' | sort"
    before = developers[0].run(others)
    minji = Developer(tmp_path, "고민지", "minji", 6381)
    minji.close()
    try:
        minji.run("docker run --detach --name redis-minji --publish 6381:6379 redis:7-alpine")  # by otto-handler
        wait_for(lambda: "PONG" in minji.run("docker exec redis-minji redis-cli ping", check=False), "its Redis")
        minji.redis.set("of otto-handler", "1")
        output = minji.run("make setup-user USER=고민지 && make build")
        assert "redis-minji: there already" in output
        assert "no append-only file" in output
        assert "redis-minji: kept" in minji.run(END)
        assert minji.redis.get("of otto-handler") == "1"
        assert minji.cluster not in minji.run("kind get clusters")
        assert minji.run("docker image ls --quiet ottoscaler:minji") == ""
        assert not (minji.checkout / minji.env_file).exists()
        assert "redis-minji: kept" in minji.run(END)  # again: it can still be removed
        assert "redis-minji: removed" in minji.run("make clean FORCE=1")
        assert "There is no environment" in minji.run(END, check=False)
        minji.run("make setup-user USER=minji && echo yes | make clean")
        left = minji.run("docker ps --all --format '{{.Names}}'; docker volume ls --quiet; kind get clusters 2>&1")
        assert "minji" not in left
    finally:
        minji.close()
    assert developers[0].run(others) == before


def _running(one: Developer, count: int) -> dict[str, str]:
    """The running workers of the long task, when there are so many."""
    found = one.running("long")
    return found if len(found) == count else {}


def _other_controller(one: Developer, than: str) -> str:
    """The controller's pod, when there is another one than this, and only that."""
    return "" if (name := _controller(one)) == than else name


def _controller(one: Developer) -> str:
    """The name of the controller's pod that is ready, empty while there is not just one."""
    names = one.kubectl(
        f"get pods -n {one.namespace} -l app.kubernetes.io/name=ottoscaler -o jsonpath='{{.items[*].metadata.name}}'"
    ).split()
    return names[0] if len(names) == 1 else ""
