"""Services of a profile: programs such as a database that run beside a worker and are ready before it starts.

Each is a native sidecar, an init container that restarts
(https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/). The kubelet starts the next container when its
startup probe has succeeded, and ends it after the worker. How it ends decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

#: The first Kubernetes of which the kubelets start native sidecars, unless a feature gate says otherwise.
LEAST_VERSION: Final = (1, 29)
#: How long a service has to get ready where its profile does not say so, and at most, seconds.
READY_S: Final = 60
MAX_READY_S: Final = 3600
#: How often it is checked, and how long one check may take, seconds.
CHECK_EVERY_S: Final = 1
CHECK_S: Final = 2


class ReadyCheck(msgspec.Struct, frozen=True, omit_defaults=True):
    """When a service is ready: its port `tcp` accepts connections (0: not checked), or the command `exec` in its
    container ends with exit code 0. After `timeout_s` seconds the kubelet restarts one that is not.
    """

    tcp: int = 0
    exec: tuple[str, ...] = ()
    timeout_s: int = READY_S


class Service(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One service. `command` and `args`: None or empty: the image's own. `cpu` and `memory`: request and limit; where
    they are not set, the configuration of workers holds.
    """

    name: str
    image: str
    ready: ReadyCheck
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] | None = None
    env: dict[str, str] = {}
    cpu: str = ""
    memory: str = ""


def version_advice(profiles: Sequence[str], version: tuple[int, int]) -> str:
    """What is wrong with a cluster of that version for these profiles with services; empty if nothing is, or if the
    version is not known, (0, 0).
    """
    if not profiles or version == (0, 0) or version >= LEAST_VERSION:
        return ""
    found, least = (".".join(map(str, one)) for one in (version, LEAST_VERSION))
    names = ", ".join(profiles)
    return (
        f"Kubernetes is version {found}, and the services of the policy's profiles ({names}) need {least} or later:"
        " until then no worker with such a profile starts"
    )
