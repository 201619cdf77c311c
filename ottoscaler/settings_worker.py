"""What the configuration says about worker pods, and how that is read from the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from ottoscaler.core.quantities import quantity
from ottoscaler.settings_reader import (
    DNS_NAME,
    TEN_YEARS_S,
    EnvironmentReader,
    command,
    node_selector,
    tolerations,
)

if TYPE_CHECKING:  # `make` reads settings with a Python that has no package installed
    from ottoscaler.core.overrides import Overrides

#: Says what the worker is and ends: enough to see the whole chain work before there is a program to run.
DEFAULT_COMMAND: Final = (
    "/bin/sh",
    "-c",
    'echo "task $OTTO_TASK_ID: worker $OTTO_WORKER_INDEX of $OTTO_WORKER_COUNT"',
)
_PULL_POLICIES: Final = {"Always": "Always", "IfNotPresent": "IfNotPresent", "Never": "Never"}
_MILLICORE: Final = Fraction(1, 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What a worker pod looks like, and how long it may take. Immutable: any thread."""

    image: str = "busybox:latest"
    """OTTO_AGENT_IMAGE."""
    image_pull_policy: str = "IfNotPresent"
    """IMAGE_PULL_POLICY: Always, IfNotPresent or Never."""
    image_pull_secret: str = ""
    """WORKER_IMAGE_PULL_SECRET: name of a Secret in the workers' namespace; empty: none."""
    command: tuple[str, ...] = DEFAULT_COMMAND
    """OTTO_AGENT_COMMAND: program and arguments; given as a JSON list, or as a line for `/bin/sh -c`."""
    service_account: str = ""
    """WORKER_SERVICE_ACCOUNT: empty: the namespace's default, and no token is mounted."""
    run_as_user: int = 1000
    """WORKER_RUN_AS_USER: numeric, for the kubelet cannot know whether a named user is root."""
    cpu_request: str = "100m"
    """WORKER_CPU_REQUEST: cores, as a Kubernetes quantity."""
    cpu_limit: str = "1"
    """WORKER_CPU_LIMIT."""
    memory_request: str = "128Mi"
    """WORKER_MEMORY_REQUEST: bytes, as a Kubernetes quantity."""
    memory_limit: str = "512Mi"
    """WORKER_MEMORY_LIMIT: above it the worker is killed, which its result calls OOMKilled."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    """WORKER_NODE_SELECTOR: labels that a worker's node must have; a JSON object."""
    tolerations: Sequence[Mapping[str, Any]] = ()
    """WORKER_TOLERATIONS: taints that workers bear; a JSON list of Kubernetes tolerations."""
    deadline_s: int = 21_600
    """WORKER_DEADLINE_S: longest life of one attempt, in seconds; 0: none."""
    pending_timeout_s: int = 900
    """PENDING_TIMEOUT_S: how long a pod may take to get a node, and again to start on it, in seconds: long enough for a
    node to be added."""
    image_pull_grace_s: int = 30
    """IMAGE_PULL_GRACE_S: how long a failing image pull is left to the kubelet's own retries, in seconds."""
    termination_grace_s: int = 30
    """TERMINATION_GRACE_S: what a worker that is ended has between SIGTERM and SIGKILL, in seconds."""
    infra_retries: int = 3
    """INFRA_RETRIES: further attempts after failures of the platform."""
    worker_retries: int = 0
    """WORKER_RETRIES: further attempts after the worker's own failures; an event may set it."""
    keep_failed_s: int = 0
    """KEEP_FAILED_S: how long the pod of a failed worker stays for inspection, in seconds; 0: it is deleted at once."""

    def with_overrides(self, asked: Overrides) -> WorkerSettings:
        """The limits of the workers of an event that overrides this."""
        return replace(
            self,
            deadline_s=asked.deadline_s or self.deadline_s,
            # services start one after the other, and each may take its time
            pending_timeout_s=self.pending_timeout_s + sum(one.ready.timeout_s for one in asked.services),
            worker_retries=self.worker_retries if asked.retries is None else asked.retries,
        )


def read_worker(reader: EnvironmentReader) -> WorkerSettings:
    """What the environment says about workers; what is wrong is a fault of the reader's."""
    default = WorkerSettings()
    settings = WorkerSettings(
        image=reader.text("OTTO_AGENT_IMAGE", default.image),
        image_pull_policy=reader.choice("IMAGE_PULL_POLICY", _PULL_POLICIES) or default.image_pull_policy,
        image_pull_secret=reader.optional("WORKER_IMAGE_PULL_SECRET", DNS_NAME) or "",
        command=command(reader, "OTTO_AGENT_COMMAND", default.command),
        service_account=reader.optional("WORKER_SERVICE_ACCOUNT", DNS_NAME) or "",
        run_as_user=reader.integer("WORKER_RUN_AS_USER", default.run_as_user, 1, 2**31 - 1),
        cpu_request=reader.amount("WORKER_CPU_REQUEST", default.cpu_request, unit=_MILLICORE, example="100m or 1"),
        cpu_limit=reader.amount("WORKER_CPU_LIMIT", default.cpu_limit, unit=_MILLICORE, example="100m or 1"),
        memory_request=reader.amount(
            "WORKER_MEMORY_REQUEST", default.memory_request, unit=Fraction(1), example="128Mi"
        ),
        memory_limit=reader.amount("WORKER_MEMORY_LIMIT", default.memory_limit, unit=Fraction(1), example="128Mi"),
        node_selector=node_selector(reader, "WORKER_NODE_SELECTOR"),
        tolerations=tolerations(reader, "WORKER_TOLERATIONS"),
        deadline_s=reader.integer("WORKER_DEADLINE_S", default.deadline_s, 0, TEN_YEARS_S),
        pending_timeout_s=reader.integer("PENDING_TIMEOUT_S", default.pending_timeout_s, 1, TEN_YEARS_S),
        image_pull_grace_s=reader.integer("IMAGE_PULL_GRACE_S", default.image_pull_grace_s, 0, TEN_YEARS_S),
        termination_grace_s=reader.integer("TERMINATION_GRACE_S", default.termination_grace_s, 1, 86_400),
        infra_retries=reader.integer("INFRA_RETRIES", default.infra_retries, 0, 10),
        worker_retries=reader.integer("WORKER_RETRIES", default.worker_retries, 0, 10),
        keep_failed_s=reader.integer("KEEP_FAILED_S", default.keep_failed_s, 0, TEN_YEARS_S),
    )
    if _exceeds(settings.cpu_request, settings.cpu_limit):
        reader.fault("WORKER_CPU_REQUEST", f"at most WORKER_CPU_LIMIT, {settings.cpu_limit}")
    if _exceeds(settings.memory_request, settings.memory_limit):
        reader.fault("WORKER_MEMORY_REQUEST", f"at most WORKER_MEMORY_LIMIT, {settings.memory_limit}")
    return settings


def _exceeds(request: str, limit: str) -> bool:
    return (quantity(request) or 0) > (quantity(limit) or 0)
