"""What the local node does with pods: processes, states, logs, ends. Against the emulator only."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ottoscaler.core.startup import cannot_execute
from ottoscaler.local.handle import LocalCluster
from tests.conftest import require
from tests.local.kube import Kube, Object, Space, eventually, pod

DONE = ("Succeeded", "Failed")
# "$$" in a command is an escaped dollar: the shell sees "$$", its own process id, from four.
WAIT_FOREVER = ["sh", "-c", "echo $$$$; while :; do sleep 0.05; done"]


def state(pod: Object) -> Object:
    """The state of a pod's only container."""
    found: Object = pod["status"]["containerStatuses"][0]["state"]
    return found


def condition(pod: Object, kind: str) -> Object:
    """One condition of a pod, {} while it has none."""
    return next((each for each in pod["status"].get("conditions") or [] if each["type"] == kind), {})


def wait_waiting(space: Space, name: str, reason: str) -> Object:
    """The waiting state of a pod's container, once it has this reason."""

    def look() -> Object:
        statuses = space.read(name).body["status"].get("containerStatuses") or [{"state": {}}]
        waiting: Object = statuses[0]["state"].get("waiting", {})
        return waiting if waiting.get("reason") == reason else {}

    return eventually(look)


def run(space: Space, command: list[str], **spec: Any) -> Object:
    """Make a pod and return it finished."""
    name = space.make("", command, **spec)["metadata"]["name"]
    return space.wait_phase(name, *DONE)


def output(space: Space, command: list[str], **spec: Any) -> str:
    """What a pod's command writes."""
    return space.log(run(space, command, **spec)["metadata"]["name"]).text


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that no process has waited for does not."""
    status = Path(f"/proc/{pid}/stat")
    if status.parent.parent.joinpath("self").exists():
        return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"
    return subprocess.run(["kill", "-0", str(pid)], check=False, capture_output=True).returncode == 0


def running(space: Space, name: str, command: list[str], **spec: Any) -> int:
    """Make a pod with a command that prints its process id and goes on; return that id."""
    space.make(name, command, **spec)
    space.wait_phase(name, "Running")
    return int(eventually(lambda: space.log(name).text))


def test_a_pod_goes_from_pending_to_running_to_succeeded(node: Space) -> None:
    """Scheduled, created, running, finished: each step is seen once."""
    version = node.version()
    node.make("one", ["sh", "-c", "sleep 0.2"])
    node.wait_phase("one", "Succeeded")
    seen = [
        (obj["status"]["phase"], *(obj["status"].get("containerStatuses") or [{"state": {}}])[0]["state"])
        for _, obj in node.watch(resourceVersion=version)
    ]
    assert seen == [
        ("Pending",),
        ("Pending",),
        ("Pending", "waiting"),
        ("Running", "running"),
        ("Succeeded", "terminated"),
    ]


def test_conditions_follow_the_pod(node: Space) -> None:
    """Ready while it runs; PodCompleted afterwards."""
    running(node, "one", ["sh", "-c", "echo $$$$; sleep 0.3"])
    assert condition(node.read("one").body, "Ready")["status"] == "True"
    done = node.wait_phase("one", "Succeeded")
    assert (condition(done, "Ready")["status"], condition(done, "Ready")["reason"]) == ("False", "PodCompleted")
    assert condition(done, "PodScheduled")["status"] == "True"


@pytest.mark.parametrize(
    ("command", "phase", "expected"),
    [
        (["true"], "Succeeded", {"exitCode": 0, "reason": "Completed"}),
        (["sh", "-c", "exit 3"], "Failed", {"exitCode": 3, "reason": "Error"}),
        (["sh", "-c", "kill -9 $$$$"], "Failed", {"exitCode": 137, "reason": "Error", "signal": 9}),
    ],
)
def test_an_exit_code_makes_the_phase(node: Space, command: list[str], phase: str, expected: Object) -> None:
    """0 is Succeeded; after signal n the code is 128 + n."""
    pod = run(node, command)
    assert pod["status"]["phase"] == phase
    assert expected.items() <= state(pod)["terminated"].items()
    assert state(pod)["terminated"]["finishedAt"] >= state(pod)["terminated"]["startedAt"]


@pytest.mark.parametrize("command", ["no-such-program", "/no/such/program", "/etc/hostname", "/tmp"])
def test_a_command_that_cannot_be_executed_is_a_start_error(node: Space, command: str) -> None:
    """Exit code 128, as runc's."""
    ended = state(run(node, [command]))["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (128, "StartError")
    assert command in ended["message"]
    assert cannot_execute(ended["message"])


def test_environment_with_references_and_fields(node: Space) -> None:
    """$(VAR) of earlier variables, $$ for a dollar, fields of the pod, also in the arguments."""
    env = [
        {"name": "A", "value": "a"},
        {"name": "B", "value": "$(A)-$$(A)-$(NONE)"},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['example.com/k']"}}},
    ]
    spec: Object = {"env": env, "args": ["$(A)"]}
    script = ["sh", "-c", 'echo "$B" $POD $NODE $IP $LABEL $0']
    text = output(node, script, container=spec, metadata={"name": "one", "labels": {"example.com/k": "v"}})
    assert text == "a-$(A)-$(NONE) one local-node 127.0.0.1 v a\n"


def test_an_empty_directory_is_home_and_working_directory(node: Space) -> None:
    """A mount path stands for a directory of this machine, shared by the pod's containers and gone with the pod."""
    container: Object = {
        "workingDir": "/workspace",
        "env": [{"name": "HOME", "value": "/workspace"}],
        "volumeMounts": [{"name": "work", "mountPath": "/workspace"}],
    }
    volumes = [{"name": "work", "emptyDir": {}}]
    pod = run(node, ["sh", "-c", "touch here; pwd; echo $HOME"], container=container, volumes=volumes)
    where, home = node.log(pod["metadata"]["name"]).text.split()
    assert where == home
    assert [path.name for path in Path(where).iterdir()] == ["here"]
    node.delete(pod["metadata"]["name"])
    eventually(lambda: not Path(where).exists())


def test_the_environment_of_the_emulator_stays_there(node: Space) -> None:
    """A worker sees its own variables and a PATH with python, not ours."""
    names = output(node, ["python", "-c", "import os; print(*sorted(os.environ))"]).split()
    assert not {"PYTHONPATH", "PYTEST_CURRENT_TEST", "USER"} & set(names)


def test_deleting_a_running_pod_is_graceful(node: Space) -> None:
    """SIGTERM; the mark while it still runs, its end before it goes."""
    trap = "trap 'echo got-term; exit 0' TERM; echo $$$$; while :; do sleep 0.02; done"
    running(node, "one", ["sh", "-c", trap])
    version = node.version()
    node.delete("one")
    node.wait_gone("one")
    seen = [(kind, obj["status"]["phase"], *state(obj)) for kind, obj in node.watch(resourceVersion=version)]
    finished = ("Succeeded", "terminated")
    assert seen == [
        ("MODIFIED", "Running", "running"),
        ("MODIFIED", *finished),
        ("MODIFIED", *finished),
        ("DELETED", *finished),
    ]


def test_a_pod_that_ignores_sigterm_is_killed_after_its_grace(node: Space) -> None:
    """137, and not before the grace is over."""
    running(node, "one", ["sh", "-c", "trap '' TERM; echo $$$$; while :; do sleep 0.02; done"])
    version = node.version()
    node.delete("one", gracePeriodSeconds=1)
    assert node.read("one").status == 200
    node.wait_gone("one")
    last = node.watch(resourceVersion=version)[-1][1]
    assert state(last)["terminated"]["exitCode"] == 137


def test_a_forced_delete_ends_the_process(node: Space) -> None:
    """Grace 0: the object is gone at once, the process soon after."""
    pid = running(node, "one", WAIT_FOREVER)
    node.delete("one", gracePeriodSeconds=0)
    assert node.read("one").status == 404
    eventually(lambda: not alive(pid))


def test_what_a_container_leaves_behind_ends_with_it(node: Space) -> None:
    """Processes in the background neither keep a pod running nor outlive it."""
    text = output(node, ["sh", "-c", "sleep 600 & echo $!"])
    eventually(lambda: not alive(int(text)))


def test_a_deadline_ends_a_pod(node: Space) -> None:
    """Failed with DeadlineExceeded, reported when nothing runs any more."""
    pod = run(node, ["sleep", "60"], activeDeadlineSeconds=1)
    assert (pod["status"]["phase"], pod["status"]["reason"]) == ("Failed", "DeadlineExceeded")
    assert pod["status"]["message"] == "Pod was active on the node longer than the specified deadline"
    assert state(pod)["terminated"]["exitCode"] == 143


def test_a_deadline_also_ends_a_pod_that_never_started(node: Space) -> None:
    """The clock runs from the pod's start on the node, not from its container's."""
    pod = run(node, ["true"], activeDeadlineSeconds=1, container={"image": "missing.invalid/x"})
    assert (pod["status"]["phase"], pod["status"]["reason"]) == ("Failed", "DeadlineExceeded")


def test_a_pod_that_finished_in_time_stays_so(node: Space) -> None:
    """The deadline passes over it."""
    run(node, ["true"], metadata={"name": "early"}, activeDeadlineSeconds=1)
    run(node, ["sleep", "60"], activeDeadlineSeconds=1)
    assert node.read("early").body["status"]["phase"] == "Succeeded"


def test_pods_deleted_while_they_start_are_gone_in_time(node: Space) -> None:
    """A signal that comes before the process reaches it all the same: no pod waits for its grace to end."""
    names = [node.make("", ["sleep", "60"], terminationGracePeriodSeconds=60)["metadata"]["name"] for _ in range(30)]
    for name in names:
        node.delete(name)
    eventually(lambda: not node.names())


@pytest.mark.parametrize(
    ("container", "reason", "message"),
    [
        ({"image": "not::an::image"}, "InvalidImageName", "couldn't parse image name"),
        ({"image": "missing.invalid/x"}, "ImagePullBackOff", 'unpack image "missing.invalid/x:latest": .*: not found'),
        (
            {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "a"}}}]},
            "CreateContainerConfigError",
            'secret "keys" not found',
        ),
    ],
)
def test_a_container_that_cannot_start_waits_and_says_why(
    node: Space, container: Object, reason: str, message: str
) -> None:
    """The pod stays Pending, and goes at once when it is deleted."""
    node.make("one", ["true"], container=container)
    assert re.search(message, wait_waiting(node, "one", reason)["message"])
    assert node.read("one").body["status"]["phase"] == "Pending"
    node.delete("one")
    node.wait_gone("one")


def test_a_pod_that_does_not_fit_is_unschedulable(node: Space) -> None:
    """A condition and an event say what is short; nothing runs."""
    node.make("one", ["true"], container={"resources": {"requests": {"cpu": "900", "memory": "1Ti"}}})
    found = eventually(lambda: condition(node.read("one").body, "PodScheduled"))
    assert (found["status"], found["reason"]) == ("False", "Unschedulable")
    assert found["message"] == "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory."
    assert node.delete("one").status == 200


def test_a_pod_is_scheduled_once_there_is_room(node: Space) -> None:
    """What another pod gives back is given to the one that waits."""
    big: Object = {"resources": {"requests": {"cpu": "40"}}}
    running(node, "first", WAIT_FOREVER, container=big)
    node.make("second", ["true"], container=big)
    eventually(lambda: condition(node.read("second").body, "PodScheduled").get("reason") == "Unschedulable")
    node.delete("first", gracePeriodSeconds=0)
    node.wait_phase("second", "Succeeded")


def test_several_containers_end_one_by_one(node: Space) -> None:
    """The pod fails with the one that failed, after the last has ended."""
    second = {"name": "second", "image": "busybox", "command": ["sh", "-c", "sleep 0.3; echo two"]}
    first = {"name": "first", "image": "busybox", "command": ["sh", "-c", "exit 4"]}
    pod = run(node, ["unused"], containers=[first, second])
    codes = [each["state"]["terminated"]["exitCode"] for each in pod["status"]["containerStatuses"]]
    assert (pod["status"]["phase"], codes) == ("Failed", [4, 0])
    assert node.log(pod["metadata"]["name"], container="second").text == "two\n"


def test_stdout_and_stderr_are_one_log_in_order(node: Space) -> None:
    """And the last line needs no line end."""
    assert output(node, ["sh", "-c", "echo a; echo b >&2; echo c; printf d"]) == "a\nb\nc\nd"


def test_a_log_can_be_cut(node: Space) -> None:
    """The last lines, or the first bytes."""
    name = run(node, ["sh", "-c", "echo one; echo two; echo three"])["metadata"]["name"]
    assert node.log(name, tailLines=2).text == "two\nthree\n"
    assert node.log(name, limitBytes=5).text == "one\nt"


def test_log_lines_have_rising_times(node: Space) -> None:
    """RFC 3339 with nine digits, no two alike; sinceTime counts whole seconds."""
    name = run(node, ["sh", "-c", "for i in 1 2 3; do echo $i; done"])["metadata"]["name"]
    lines = node.log(name, timestamps="true").text.splitlines()
    times = [line.split(" ")[0] for line in lines]
    assert times == sorted(set(times))
    assert all(re.fullmatch(r"[-\dT:]{19}\.\d{9}Z", each) for each in times)
    assert node.log(name, sinceTime=times[-1]).text.endswith("3\n")
    assert node.log(name, sinceTime="2999-01-01T00:00:00Z").text == ""


def test_a_long_line_comes_whole(node: Space) -> None:
    """Runtimes split lines at 16 KiB; readers see them joined, with one time."""
    name = run(node, ["python", "-c", "print('x' * 50_000)"])["metadata"]["name"]
    assert node.log(name).text == "x" * 50_000 + "\n"
    assert node.log(name, timestamps="true").text.count("Z ") == 1


def test_a_followed_log_ends_with_its_container(node: Space) -> None:
    """Everything is there, whenever it was written."""
    running(node, "one", ["sh", "-c", "echo $$$$; sleep 0.3; echo late"])
    assert node.log("one", follow="true", tailLines=0).text.endswith("late\n")


_FALL_BACK = {"terminationMessagePolicy": "FallbackToLogsOnError", "terminationMessagePath": "/dev/termination-log"}
_SEVEN = ["sh", "-c", "for n in 1 2 3; do echo line $n; done; exit 7"]


@pytest.mark.parametrize(
    ("command", "more", "expected"),
    [
        (["sh", "-c", "echo said; printf %s done > $OUT"], {}, "done"),
        (["sh", "-c", "echo said; printf 'a\\377b\\001' > $OUT; exit 1"], _FALL_BACK, "a\ufffdb\x01"),
        (["sh", "-c", "head -c 5000 /dev/zero | tr '\\0' x > $OUT; echo end >> $OUT"], {}, "x" * 4092 + "end\n"),
        (["sh", "-c", "rm $OUT; mkdir $OUT; exit 1"], {}, ""),
        (_SEVEN, _FALL_BACK, "line 1\nline 2\nline 3\n"),
        (_SEVEN, {}, ""),
        (["sh", "-c", "echo said"], _FALL_BACK, ""),
        (["sh", "-c", "seq 1 200; exit 1"], _FALL_BACK, "".join(f"{number}\n" for number in range(121, 201))),
        (["sh", "-c", "head -c 5000 /dev/zero | tr '\\0' x; exit 1"], _FALL_BACK, "x" * 2048),
    ],
    ids=["written", "bytes", "end-of-long", "not-a-file", "log", "no-log", "success", "lines-of-log", "end-of-log"],
)  # fmt: skip
def test_a_termination_message_is_what_the_kubelet_reads(
    node: Space, command: list[str], more: Object, expected: str
) -> None:
    """The end of the file; of a container that failed and wrote none the end of its log, where its policy says so."""
    out = {"name": "OUT", "value": "/dev/termination-log"}
    made = node.kube.call("POST", node.path(), pod("one", command, container={"env": [out], **more}))
    assert made.status == 201, made.body
    ended = state(node.wait_phase("one", *DONE))["terminated"]
    assert ended.get("message", "") == expected


def test_a_finished_pod_is_not_run_again(node: Space) -> None:
    """The node decides on the present object: sixty pods start sixty times, however late their changes are seen."""
    names = [node.make("", ["true"])["metadata"]["name"] for _ in range(60)]
    eventually(lambda: all(phase == "Succeeded" for phase in _phases(node)))
    started = node.kube.call("GET", node.path(resource="events"), fieldSelector="reason=Started").body["items"]
    assert sorted(each["involvedObject"]["name"] for each in started) == sorted(names)


def _phases(space: Space) -> list[str]:
    return [each["status"]["phase"] for each in space.kube.call("GET", space.path()).body["items"]]


@pytest.mark.real
def test_kubectl_shows_what_happens(node: Space, cluster: LocalCluster) -> None:
    """get, logs, describe with events, delete: with the real program."""
    program = require("kubectl")
    node.make("one", ["sh", "-c", "echo hello"])
    node.wait_phase("one", "Succeeded")

    def kubectl(*words: str) -> str:
        command = [program, "--kubeconfig", str(cluster.kubeconfig), "--namespace", node.name, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout

    assert re.search(r"^one +0/1 +Completed +0 ", kubectl("get", "pods"), re.MULTILINE)
    assert kubectl("logs", "one") == "hello\n"
    assert "Started container main" in kubectl("describe", "pod", "one")
    assert "Started" in kubectl("get", "events")
    assert "local-node" in kubectl("get", "nodes")
    # newer ones name the namespace too
    assert kubectl("delete", "pod", "one") in ('pod "one" deleted\n', f'pod "one" deleted from {node.name} namespace\n')


def test_the_node_is_listed(emulator: Kube) -> None:
    """With the capacity that the scheduler counts with."""
    (found,) = emulator.call("GET", "/api/v1/nodes").body["items"]
    assert json.dumps(found["status"]["capacity"], sort_keys=True) == '{"cpu": "64", "memory": "256Gi", "pods": "1000"}'
