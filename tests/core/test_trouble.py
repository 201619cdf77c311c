"""Trouble: why a pod does not start, and whether asking again may help."""

from __future__ import annotations

import pytest

from ottoscaler.core.pods import Trouble
from tests.core.builders import Json, raw_pod, seen, unscheduled

contract = pytest.mark.contract


def waiting(reason: str, message: str = "") -> Json:
    """A container state: not started, for this reason."""
    return {"waiting": {"reason": reason, "message": message} if message else {"reason": reason}}


@contract("5.ImagePull")
@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff"])
@pytest.mark.parametrize(
    "message",
    [
        'failed to resolve reference "docker.io/library/nope:1": docker.io/library/nope:1: not found',
        "manifest for nope:1 not found: manifest unknown",
        "pull access denied, repository does not exist or may require authorization",
        "failed to authorize: 401 Unauthorized",
        "unexpected status from HEAD request: 403 Forbidden",
        "no basic auth credentials",
        "denied: requested access to the resource is denied",
        "no match for platform in manifest",
        'failed to resolve reference "docker.io/mine/app:503": docker.io/mine/app:503: not found',
        'failed to resolve reference "docker.io/mine/app:1.429-500": docker.io/mine/app:1.429-500: not found',
    ],
)
def test_a_registry_that_will_never_give_the_image_is_a_fault_of_the_configuration(reason: str, message: str) -> None:
    """Not found, no rights: asking again changes nothing, whatever numbers the image's name has."""
    assert seen(raw_pod(state=waiting(reason, message))).trouble is Trouble.IMAGE_PULL


@contract("5.ImagePullTransient")
@pytest.mark.parametrize(
    "message",
    [
        "pull QPS exceeded",
        "toomanyrequests: You have reached your pull rate limit",
        "unexpected status code 429 Too Many Requests - access denied for now",
        "dial tcp 10.0.0.1:443: i/o timeout",
        "unexpected status from HEAD request to https://registry.example: 503 Service Unavailable",
        "received unexpected HTTP status: 500 Internal Server Error: manifest not found",
        "proxy said 502, not found",
        "dial tcp: lookup registry.example: no such host",
        "connection refused",
        'Back-off pulling image "nope:1"',
        "",
    ],
)
def test_a_registry_that_may_yet_give_the_image_is_a_passing_fault(message: str) -> None:
    """Limits, time-outs and the server's own errors, and every text that is not known."""
    assert seen(raw_pod(state=waiting("ErrImagePull", message))).trouble is Trouble.IMAGE_PULL_TRANSIENT


@contract("5.InvalidImage")
@contract("5.ConfigError")
@contract("5.StartError")
@contract("5.ImagePull")
@pytest.mark.parametrize(
    ("reason", "trouble"),
    [
        ("InvalidImageName", Trouble.INVALID_IMAGE),
        ("ErrImageNeverPull", Trouble.IMAGE_PULL),
        ("RegistryUnavailable", Trouble.IMAGE_PULL_TRANSIENT),
        ("ImageInspectError", Trouble.IMAGE_PULL_TRANSIENT),
        ("CreateContainerConfigError", Trouble.CONFIG),
        ("RunContainerError", Trouble.START),
        ("CreateContainerError", Trouble.START),
        ("ContainerCreating", Trouble.NONE),
        ("PodInitializing", Trouble.NONE),
    ],
)
def test_the_kubelets_reason_tells_the_trouble(reason: str, trouble: Trouble) -> None:
    """What is merely going on is none."""
    assert seen(raw_pod(state=waiting(reason))).trouble is trouble


@contract("5.Unschedulable")
@pytest.mark.parametrize(
    ("reason", "trouble"), [("Unschedulable", Trouble.UNSCHEDULABLE), ("SchedulingGated", Trouble.GATED)]
)
def test_the_schedulers_reason_tells_the_trouble(reason: str, trouble: Trouble) -> None:
    """A gate that somebody put there is no fault."""
    assert seen(raw_pod(conditions=[unscheduled(reason)])).trouble is trouble


def test_the_trouble_comes_with_the_clusters_own_words() -> None:
    """The reason and its message, which end up in the result."""
    assert seen(raw_pod(state=waiting("ErrImagePull", "not found"))).trouble_text == "ErrImagePull: not found"
    assert seen(raw_pod(conditions=[unscheduled("Unschedulable")])).trouble_text == "0/3 nodes are available"
