"""Why a worker does not start: a gate, an init container, a program that cannot be executed."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from ottoscaler.core.effects import AwaitPod
from ottoscaler.core.observations import AttemptStored, NoResultYet, PodSeen
from ottoscaler.core.pod_timeline import finished_pod_verdict
from ottoscaler.core.pods import StartTrouble
from ottoscaler.core.verdicts import EndReason, RetryBudget, Verdict
from tests.core.builders import (
    RUNS,
    Json,
    container,
    raw_pod,
    running,
    seen,
    terminated,
    with_others,
)
from tests.core.drive import LIMITS, Drive

contract = pytest.mark.contract

WAITS: Json = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}


def end_of(raw: Json) -> Verdict | None:
    """How the pod ended."""
    return finished_pod_verdict(seen(raw))


class TestInit:
    """Init containers keep `agent` from starting: their faults are named."""

    @contract("5.InvalidImage")
    @contract("5.ImagePull")
    @contract("5.ConfigError")
    @contract("5.StartError")
    @contract("5.CommandNotFound")
    @pytest.mark.parametrize(
        ("reason", "message", "trouble"),
        [
            ("InvalidImageName", "no", StartTrouble.INVALID_IMAGE),
            ("ErrImagePull", "not found", StartTrouble.IMAGE_PULL),
            ("ImagePullBackOff", "Back-off pulling image", StartTrouble.IMAGE_PULL_TRANSIENT),
            ("CreateContainerConfigError", 'secret "x" not found', StartTrouble.CONFIG),
            ("CreateContainerError", "no room", StartTrouble.START),
            ("CreateContainerError", "executable file `x` not found in $PATH", StartTrouble.COMMAND),
            ("CrashLoopBackOff", "back-off 10s", StartTrouble.NONE),
        ],
    )
    @pytest.mark.parametrize("policy", ["", "Always"])
    def test_what_it_waits_for_is_reported_with_container_and_image(
        self, reason: str, message: str, trouble: StartTrouble, policy: str
    ) -> None:
        """A native sidecar's too: `agent` waits for its start."""
        init = container("setup", {"waiting": {"reason": reason, "message": message}})
        spec = {"initContainers": [{"name": "setup", "image": "img:1", "restartPolicy": policy}]}
        raw = with_others(raw_pod(state={"waiting": {"reason": "PodInitializing"}}), init=[init], **spec)
        found = seen(raw)
        assert found.trouble is trouble
        assert found.trouble_text == f"init container setup (image img:1): {reason}: {message}"

    @contract("5.StartError")
    @contract("5.CommandNotFound")
    @pytest.mark.parametrize(
        ("state", "reason", "text"),
        [
            (terminated(3), EndReason.START_ERROR, "exited with code 3"),
            (terminated(127), EndReason.START_ERROR, "exited with code 127"),
            (terminated(137, "OOMKilled"), EndReason.START_ERROR, "exited with code 137"),
            (terminated(128, "StartError", message="no cgroup"), EndReason.START_ERROR, "StartError: no cgroup"),
            (
                terminated(128, "StartError", message="executable file `x` not found in $PATH"),
                EndReason.COMMAND_NOT_FOUND,
                "StartError: executable file `x` not found in $PATH",
            ),
        ],
    )
    @pytest.mark.parametrize("agent", [None, {"waiting": {"reason": "PodInitializing"}}])
    def test_its_failure_is_no_failure_of_the_worker(
        self, state: Json, reason: EndReason, text: str, agent: Json | None
    ) -> None:
        """The worker never ran; its exit code is not the worker's."""
        raw = with_others(raw_pod("Failed", state=agent), init=[container("setup", state)])
        assert end_of(raw) == Verdict(reason, f"init container setup (image registry.test/setup:1): {text}")
        assert seen(raw).exit_code is None

    def test_the_first_that_is_wrong_is_named(self) -> None:
        """Those before it have ended well, a native sidecar runs, those behind it wait."""
        ordinary = {"waiting": {"reason": "PodInitializing"}}
        states = [terminated(0, "Completed"), RUNS, terminated(1), WAITS, ordinary]
        init = [container(name, state) for name, state in zip("abcde", states, strict=True)]
        spec = {"initContainers": [{"name": "c", "restartPolicy": "Always"}]}
        assert "init container d " in seen(with_others(raw_pod(), init=init, **spec)).trouble_text

    @pytest.mark.parametrize("state", [RUNS, terminated(0, "Completed")])
    def test_it_is_no_trouble_once_the_worker_has_started(self, state: Json) -> None:
        """A native sidecar that fails beside it is a sidecar."""
        raw = with_others(raw_pod("Running", state=state), init=[container("setup", terminated(1))])
        assert seen(raw).trouble is StartTrouble.NONE


class TestGate:
    """A scheduling gate: a user holds the pod back on purpose."""

    @contract("5.waiting")
    @pytest.mark.parametrize("answer", [True, False])
    def test_a_gate_is_reported_by_its_name(self, answer: bool) -> None:
        """From the spec; the condition only says that there is one."""
        condition = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "blocked"}
        gates = [{"name": "kueue.x-k8s.io/admission"}, {"name": "b"}]
        raw = raw_pod(conditions=[condition] if answer else [])
        raw["spec"] = {"schedulingGates": gates}
        found = seen(raw)
        assert (found.trouble, found.trouble_text) == (
            StartTrouble.GATED,
            "scheduling gate kueue.x-k8s.io/admission, b",
        )

    @contract("5.waiting")
    @contract("2.PENDING_TIMEOUT_S")
    def test_no_clock_runs_behind_a_gate(self) -> None:
        """And the whole time is given when it is lifted."""
        gated = replace(seen(raw_pod()), trouble=StartTrouble.GATED, trouble_text="scheduling gate a")
        drive = Drive()
        assert drive.feed(AttemptStored(), PodSeen(gated), NoResultYet(None)) == AwaitPod(None)
        assert drive.life.start_trouble_text == "scheduling gate a"
        assert replace(drive.life, pod=running()).start_trouble_text == ""
        drive.wait(10**7)
        free = replace(gated, trouble=StartTrouble.NONE, trouble_text="")
        assert drive.feed(PodSeen(free)) == AwaitPod(drive.now + LIMITS.pending_timeout_s)
        assert drive.life.start_trouble_text == ""

    def test_a_waiter_is_woken_when_one_of_two_gates_is_lifted(self) -> None:
        """Its name is shown."""
        one = replace(seen(raw_pod()), trouble=StartTrouble.GATED, trouble_text="scheduling gate a, b")
        assert replace(one, trouble_text="scheduling gate b").stage != one.stage


NO = "executable file not found in $PATH"
RUNC = "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
RUN = RUNC + "unable to start container process: error during container init: "


@contract("5.CommandNotFound")
@pytest.mark.parametrize(
    "message",
    [
        RUN + f'exec: "nope": {NO}: unknown',
        RUN + 'exec: "/nope": stat /nope: no such file or directory: unknown',
        RUN + 'exec: "/etc/hostname": permission denied: unknown',
        RUN + 'exec: "/tmp": is a directory: unknown',
        RUN + "exec /script: exec format error: unknown",
        RUN + 'exec: "/script": exec format error',
        RUN + 'chdir to cwd ("/nope") set in config.json failed: no such file or directory: unknown',
        RUN + 'chdir to cwd ("/root") set in config.json failed: permission denied: unknown',
        f'starting container process caused: exec: "nope": {NO}: unknown',
        rf'container_linux.go:349: starting container process caused "exec: \"nope\": {NO}"',
        # CRI-O with runc, and with crun
        f'container create failed: time="2024-05-01T10:00:00Z" level=error msg="runc create failed: unable to start '
        f'container process: exec: \\"nope\\": {NO}"',
        "container create failed: executable file `nope` not found in $PATH: No such file or directory",
        "container create failed: executable file `/nope` not found: No such file or directory",
        "container create failed: open executable: Permission denied",
        "container create failed: exec container process `/script`: Exec format error",
        "container create failed: exec container process (missing dynamic library?) `/x`: No such file or directory",
        "container create failed: chdir to `/nope`: No such file or directory",
        # gVisor, Kata, Windows
        'creating container: error finding executable "nope" in PATH [/bin]: no such file or directory',
        "failed to load /nope: no such file or directory",
        "failed to create shim task: the file nope was not found: unknown",
        "hcs::System::CreateProcess nope: The system cannot find the file specified.",
    ],
)
@pytest.mark.parametrize("reason", ["StartError", "ContainerCannotRun", "RunContainerError"])
def test_a_program_that_cannot_be_executed_is_a_fault_of_the_configuration(reason: str, message: str) -> None:
    """In every runtime's words, ended or waiting: no new attempt changes anything."""
    state = terminated(128, reason, message=message, startedAt="1970-01-01T00:00:00Z")
    assert end_of(raw_pod("Failed", state=state)) == Verdict(EndReason.COMMAND_NOT_FOUND, message)
    assert EndReason.COMMAND_NOT_FOUND.retry is RetryBudget.NEVER
    found = seen(raw_pod(state={"waiting": {"reason": "CreateContainerError", "message": message}}))
    assert found.trouble is StartTrouble.COMMAND


@contract("5.CommandNotFound")
@pytest.mark.parametrize("code", [126, 127])
@pytest.mark.parametrize("reason", ["StartError", "ContainerCannotRun"])
def test_a_runtimes_own_exit_code_says_that_the_program_cannot_be_executed(reason: str, code: int) -> None:
    """Docker's: 126 and 127. The reason says that no program ran which could have given it."""
    state = terminated(code, reason, message="words of a later runtime")
    result = end_of(raw_pod("Failed", state=state))
    assert result is not None
    assert result.reason is EndReason.COMMAND_NOT_FOUND


@contract("5.StartError")
@pytest.mark.parametrize(
    "message",
    [
        "",
        RUNC + "unable to apply cgroup configuration: mkdir /sys/fs/cgroup/x: no such file or directory",
        RUN + 'error mounting "/a" to rootfs at "/b": mount /a:/b: not a directory: unknown',
        RUNC + "unable to start container process: open exec fifo /run/x: no such file or directory",
        f'failed to start shim: exec: "containerd-shim-runc-v2": {NO}',
        f'OCI runtime create failed: unable to retrieve OCI runtime error (open log.json): exec: "runc": {NO}',
        RUN + "error running prestart hook #0: fork/exec /usr/bin/nvidia-hook: no such file or directory",
        "failed to create shim task: context deadline exceeded: unknown",
        "failed to reserve container name",
        "failed to set up the sandbox: permission denied",
    ],
)
def test_a_start_that_failed_on_the_node_is_the_platforms_fault(message: str) -> None:
    """The runtime itself, a hook or a mount is missing, not the container's program."""
    result = end_of(raw_pod("Failed", state=terminated(128, "StartError", message=message)))
    assert result is not None
    assert result.reason is EndReason.START_ERROR
    assert (
        seen(raw_pod(state={"waiting": {"reason": "RunContainerError", "message": message}})).trouble
        is StartTrouble.START
    )


@contract("5.Error")
@pytest.mark.parametrize("code", [126, 127, 128])
def test_a_shells_own_exit_code_stays_an_error(code: int) -> None:
    """The program ran; what it prints or exits with never decides where the fault lies."""
    state = terminated(code, "Error", message=RUN + f'exec: "nope": {NO}')
    assert end_of(raw_pod("Failed", state=state)) == Verdict(EndReason.ERROR, f"the worker exited with code {code}")
