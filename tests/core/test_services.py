"""Services of a profile: what their containers say of the worker's start, and that they never decide its outcome."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from ottoscaler.core.effects import AwaitPod, ClearTermination, StoreTermination
from ottoscaler.core.observations import AttemptStored, NoResultYet, PodChanged, PodSeen, TerminationStored, TimedOut
from ottoscaler.core.pod_timeline import finished_pod_verdict
from ottoscaler.core.pods import PodSnapshot, StartTrouble
from ottoscaler.core.services import version_advice
from ottoscaler.core.verdicts import EndReason, FaultOrigin, RetryBudget
from tests.core.builders import RUNS, Json, container, raw_pod, running, seen, terminated, with_others
from tests.core.drive import LIMITS, Drive

contract = pytest.mark.contract

WAITS: Json = {"waiting": {"reason": "PodInitializing"}}
CRASHED: Json = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
CREATES: Json = {"waiting": {"reason": "ContainerCreating"}}
NO_PROGRAM = "executable file `x` not found in $PATH"


def with_services(*statuses: Json, services: str = "db", agent: Json | None = WAITS, phase: str = "Pending") -> Json:
    """A pod with native sidecars of the given statuses, of which `services` are the profile's."""
    raw = raw_pod(phase, state=agent)
    raw["metadata"]["annotations"]["ottoscaler.io/services"] = services
    spec = [{"name": one["name"], "image": f"{one['name']}:1", "restartPolicy": "Always"} for one in statuses]
    return with_others(raw, init=statuses, initContainers=spec)


def db(state: Json, *, restarts: int = 0, started: bool | None = False, last: Json | None = None) -> Json:
    """The status of the service `db`."""
    return container("db", state) | {"restartCount": restarts, "started": started, "lastState": last or {}}


@contract("5.ServiceNotReady")
@pytest.mark.parametrize(
    ("status", "trouble", "text"),
    [
        (db(WAITS), StartTrouble.NONE, ""),
        (db(CREATES, started=None), StartTrouble.NONE, ""),
        (db(RUNS), StartTrouble.SERVICE_STARTING, "it runs and is not ready yet"),
        (db(RUNS, started=True), StartTrouble.NONE, ""),
        (db(RUNS, restarts=3, started=True), StartTrouble.NONE, ""),
        (db(RUNS, restarts=1, last=terminated(143)), StartTrouble.SERVICE, "exited with code 143"),
        (db(RUNS, restarts=1, last=terminated(0, "Completed")), StartTrouble.SERVICE, "exited with code 0"),
        (db(CRASHED, restarts=1, last=terminated(1)), StartTrouble.SERVICE, "exited with code 1"),
        (db(terminated(1)), StartTrouble.SERVICE, "exited with code 1"),
        (db(terminated(0, "Completed")), StartTrouble.SERVICE, "exited with code 0"),
        (
            db(CRASHED, restarts=1, last=terminated(128, "StartError", message=NO_PROGRAM)),
            StartTrouble.SERVICE,
            f"StartError: {NO_PROGRAM}",
        ),
        (
            db({"waiting": {"reason": "RunContainerError", "message": NO_PROGRAM}}, restarts=2, last=terminated(128)),
            StartTrouble.SERVICE,
            "exited with code 128",
        ),
    ],
    ids=str,
)
def test_a_service_is_awaited_until_it_fails(status: Json, trouble: StartTrouble, text: str) -> None:
    """By `started`, `restartCount` and how it ended: fields of the kubelet alone. A restart does not make it well."""
    found = seen(with_services(status))
    assert found.trouble is trouble
    assert found.trouble_text.startswith(f"service db (image db:1): {text}" if text else "")
    assert bool(found.trouble_text) is bool(text)


@contract("5.ImagePull")
@contract("5.InvalidImage")
@contract("5.ConfigError")
@pytest.mark.parametrize(
    ("reason", "message", "trouble"),
    [
        ("InvalidImageName", "no", StartTrouble.INVALID_IMAGE),
        ("ErrImagePull", "not found", StartTrouble.IMAGE_PULL),
        ("ImagePullBackOff", "Back-off pulling image", StartTrouble.IMAGE_PULL_TRANSIENT),
        ("CreateContainerConfigError", "image will run as root", StartTrouble.CONFIG),
        ("CreateContainerError", NO_PROGRAM, StartTrouble.COMMAND),
        ("CreateContainerError", "no room", StartTrouble.START),
    ],
)
def test_a_fault_of_its_image_has_the_images_reason(reason: str, message: str, trouble: StartTrouble) -> None:
    """With the name of the service."""
    found = seen(with_services(db({"waiting": {"reason": reason, "message": message}})))
    assert (found.trouble, found.trouble_text) == (trouble, f"service db (image db:1): {reason}: {message}")


@contract("5.ServiceNotReady")
def test_only_the_profiles_own_sidecars_are_services() -> None:
    """One that a webhook injected has no readiness that anybody promised."""
    status = db(CRASHED, restarts=9, last=terminated(1))
    assert seen(with_services(status, services="")).trouble is StartTrouble.NONE
    assert seen(with_services(status, services="db2,cache")).trouble is StartTrouble.NONE
    injected = container("proxy", RUNS) | {"started": True}
    found = seen(with_services(injected, status, services="cache,db"))
    assert found.trouble is StartTrouble.SERVICE


@contract("5.ServiceNotReady")
def test_the_first_that_is_not_ready_is_named() -> None:
    """Those behind it wait for it."""
    good = container("db", RUNS) | {"started": True}
    slow, later = container("cache", RUNS) | {"started": False}, container("last", WAITS)
    found = seen(with_services(good, slow, later, services="db,cache,last"))
    assert found.trouble_text == "service cache (image cache:1): it runs and is not ready yet"


@contract("4.container")
@pytest.mark.parametrize("state", [RUNS, terminated(137, "OOMKilled"), terminated(1), CRASHED])
@pytest.mark.parametrize(("code", "reason"), [(0, EndReason.COMPLETED), (3, EndReason.ERROR)])
def test_a_service_never_decides_the_outcome(state: Json, code: int, reason: EndReason) -> None:
    """However it ends: only how `agent` ends counts."""
    phase = "Failed" if code else "Succeeded"
    status = db(state, restarts=4, last=terminated(137, "OOMKilled"))
    found = seen(with_services(status, agent=terminated(code, "Error" if code else "Completed"), phase=phase))
    verdict = finished_pod_verdict(found)
    assert verdict is not None
    assert (verdict.reason, found.exit_code, found.trouble) == (reason, code, StartTrouble.NONE)


@contract("4.container")
def test_a_service_that_outlives_the_worker_is_seen() -> None:
    """The kubelet ends it; if it does not, the controller ends the pod after the grace."""
    alive = seen(with_services(db(RUNS, started=True), agent=terminated(0, "Completed"), phase="Running"))
    assert (alive.agent_outlived, alive.exit_code) == (True, 0)
    ended = seen(with_services(db(terminated(143)), agent=terminated(0, "Completed"), phase="Running"))
    assert not ended.agent_outlived


@contract("5.ServiceNotReady")
def test_a_pod_that_fails_with_its_service_says_so() -> None:
    """Where a kubelet gives the pod up."""
    verdict = finished_pod_verdict(seen(with_services(db(terminated(1)), phase="Failed")))
    assert verdict is not None
    assert verdict.reason is EndReason.SERVICE_NOT_READY
    assert (verdict.reason.fault, verdict.reason.retry) == (FaultOrigin.CONFIG, RetryBudget.NEVER)


def pod_with(trouble: StartTrouble, **changes: Any) -> PodSnapshot:
    """A pod that has not started for that reason."""
    text = "service db (image db:1): it says why"
    return replace(seen(raw_pod()), trouble=trouble, trouble_text=text if trouble else "", **changes)


def waiting(trouble: StartTrouble) -> Drive:
    """A worker whose pod has not started for that reason."""
    drive = Drive()
    drive.feed(AttemptStored(), PodSeen(pod_with(trouble)), NoResultYet(None))
    return drive


@contract("5.ServiceNotReady")
@contract("2.IMAGE_PULL_GRACE_S")
def test_a_service_that_failed_has_a_short_time() -> None:
    """Counted from its first failure, through its restarts; then the worker ends, and the message names it."""
    drive = waiting(StartTrouble.SERVICE)
    assert drive.life.todo == AwaitPod(drive.now + LIMITS.image_pull_grace_s)
    drive.wait(LIMITS.image_pull_grace_s - 1)
    drive.feed(PodSeen(pod_with(StartTrouble.SERVICE, resource_version="9")))
    drive.wait(1)
    effect = drive.feed(TimedOut())
    assert isinstance(effect, StoreTermination)
    assert effect.termination.reason is EndReason.SERVICE_NOT_READY
    assert effect.termination.message == "service db (image db:1): it says why"


@contract("5.ServiceNotReady")
@contract("2.PENDING_TIMEOUT_S")
def test_a_service_that_only_starts_has_the_pods_time() -> None:
    """Then the reason is the service, and not that the pod was pending."""
    drive = waiting(StartTrouble.SERVICE_STARTING)
    assert drive.life.todo == AwaitPod(drive.now + LIMITS.pending_timeout_s)
    drive.wait(LIMITS.pending_timeout_s)
    effect = drive.feed(TimedOut())
    assert isinstance(effect, StoreTermination)
    assert effect.termination.reason is EndReason.SERVICE_NOT_READY


@contract("5.ServiceNotReady")
def test_a_service_that_gets_ready_in_time_starts_the_worker() -> None:
    """Even at the last moment: a worker that has started is not ended for it."""
    drive = waiting(StartTrouble.SERVICE)
    drive.wait(LIMITS.image_pull_grace_s)
    effect = drive.feed(TimedOut())
    assert isinstance(effect, StoreTermination)
    started = running(key=pod_with(StartTrouble.NONE).key)
    drive.feed(TerminationStored(effect.termination), PodChanged(), PodSeen(started))
    assert drive.feed(NoResultYet(effect.termination)) == ClearTermination(effect.termination)


@pytest.mark.parametrize(
    ("profiles", "version", "said"),
    [
        (["node"], (1, 28), "Kubernetes is version 1.28, and the services of the policy's profiles (node) need 1.29"),
        (["a", "b"], (1, 9), "(a, b)"),
        (["node"], (1, 29), ""),
        (["node"], (2, 0), ""),
        (["node"], (0, 0), ""),
        ([], (1, 20), ""),
    ],
)
def test_an_old_cluster_is_named_in_one_sentence(profiles: list[str], version: tuple[int, int], said: str) -> None:
    """Only where a profile has services; as numbers, not as texts."""
    found = version_advice(profiles, version)
    assert said in found
    assert bool(found) is bool(said)
