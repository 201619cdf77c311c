"""Trouble: why a pod does not start, and whether asking again may help."""

from __future__ import annotations

import pytest

from ottoscaler.core.pods import StartTrouble
from tests.core.builders import Json, container, raw_pod, seen, unscheduled, with_others

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
        'failed to resolve reference "ghcr.io/acme/timeout:1": ghcr.io/acme/timeout:1: not found',
        'Back-off pulling image "timeout:1": ErrImagePull: docker.io/library/timeout:1: not found',
        "manifest for timeout:1 not found: manifest unknown",
        "pull access denied for timeout, repository does not exist or may require 'docker login'",
        "no matching manifest for linux/arm64/v8 in the manifest list entries",
        'choosing image instance: no image found in image index for architecture "arm64", OS "linux"',
        "reading manifest 1-timeout in harbor.example/y/z: name unknown: repository name not known to registry",
        'short-name "timeout:1" did not resolve to an alias and no unqualified-search registries are defined',
        "short name mode is enforcing, but image name timeout:1 returns ambiguous list",
        "SignatureValidationFailed: Source image rejected: running image docker://r/x:1 is rejected by policy",
        'media type "application/vnd.docker.distribution.manifest.v1+prettyjws" is no longer supported',
    ],
)
def test_a_registry_that_will_never_give_the_image_is_a_fault_of_the_configuration(reason: str, message: str) -> None:
    """Not found, no rights: asking again changes nothing, whatever numbers the image's name has."""
    assert seen(raw_pod(state=waiting(reason, message))).trouble is StartTrouble.IMAGE_PULL


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
        'Back-off pulling image "forbidden:1"',
        'failed to do request: Head "https://r.example/v2/acme/denied/manifests/1": connect: connection refused',
        "dial tcp 10.0.0.1:443: connect: permission denied",
        'failed to pull and unpack image "r.example/x:1": failed to unpack image on snapshotter overlayfs: '
        "unexpected media type text/html for sha256:aa: not found",
        'failed to prepare extraction snapshot "extract-1": parent snapshot sha256:c does not exist: not found',
        "failed to extract layer sha256:aa: mkdir etc: permission denied",
        "",
    ],
)
def test_a_registry_that_may_yet_give_the_image_is_a_passing_fault(message: str) -> None:
    """Limits, time-outs and the server's own errors, and every text that is not known."""
    assert seen(raw_pod(state=waiting("ErrImagePull", message))).trouble is StartTrouble.IMAGE_PULL_TRANSIENT


@contract("5.InvalidImage")
@contract("5.ConfigError")
@contract("5.StartError")
@contract("5.ImagePull")
@pytest.mark.parametrize(
    ("reason", "trouble"),
    [
        ("InvalidImageName", StartTrouble.INVALID_IMAGE),
        ("ErrImageNeverPull", StartTrouble.IMAGE_PULL),
        ("RegistryUnavailable", StartTrouble.IMAGE_PULL_TRANSIENT),
        ("ImageInspectError", StartTrouble.IMAGE_PULL_TRANSIENT),
        ("CreateContainerConfigError", StartTrouble.CONFIG),
        ("RunContainerError", StartTrouble.START),
        ("CreateContainerError", StartTrouble.START),
        ("PreCreateHookError", StartTrouble.START),
        ("PreStartHookError", StartTrouble.START),
        ("ContainerCreating", StartTrouble.NONE),
        ("PodInitializing", StartTrouble.NONE),
    ],
)
def test_the_kubelets_reason_gives_the_trouble(reason: str, trouble: StartTrouble) -> None:
    """What is merely going on is none."""
    assert seen(raw_pod(state=waiting(reason))).trouble is trouble


@contract("5.Unschedulable")
@pytest.mark.parametrize(
    ("reason", "trouble"), [("Unschedulable", StartTrouble.UNSCHEDULABLE), ("SchedulingGated", StartTrouble.GATED)]
)
def test_the_schedulers_reason_gives_the_trouble(reason: str, trouble: StartTrouble) -> None:
    """A gate that a user has set is no fault."""
    assert seen(raw_pod(conditions=[unscheduled(reason)])).trouble is trouble


def test_a_native_sidecar_that_crashes_again_and_again_hides_no_other_trouble() -> None:
    """It has started once, which is all that the init containers behind it wait for."""
    crashes = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting"}}
    init = [container("mesh", crashes), container("setup", waiting("ErrImagePull", "not found"))]
    names = [{"name": "mesh", "restartPolicy": "Always"}, {"name": "setup", "image": "setup:1"}]
    found = seen(with_others(raw_pod(state=waiting("PodInitializing")), init=init, initContainers=names))
    assert (found.trouble, found.trouble_text) == (
        StartTrouble.IMAGE_PULL,
        "init container setup (image setup:1): ErrImagePull: not found",
    )


def test_the_trouble_comes_with_the_clusters_own_words() -> None:
    """The reason and its message, which end up in the result."""
    assert seen(raw_pod(state=waiting("ErrImagePull", "not found"))).trouble_text == "ErrImagePull: not found"
    assert seen(raw_pod(conditions=[unscheduled("Unschedulable")])).trouble_text == "0/3 nodes are available"
