"""The checks of `doctor`: each asks an adapter and hands what it says to the rules in core. What our user may not look
at is a finding, and ends no other check.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Final, TypeVar

import msgspec

from ottoscaler.adapters import kube_events, kube_inspector, redis_inspector
from ottoscaler.adapters.cluster import EVENT_VERBS, VERBS
from ottoscaler.adapters.handler_probe import connect_once
from ottoscaler.adapters.kube_inspector import KubeInspector
from ottoscaler.adapters.redis_calls import RedisCalls
from ottoscaler.adapters.redis_client import address
from ottoscaler.adapters.redis_inspector import RedisInspector
from ottoscaler.adapters.status_reader import StatusReader
from ottoscaler.cli.queue_owner import other_cluster_error, other_group_error
from ottoscaler.cli.worker_pods import WorkerPod, largest_pods, worker_pods
from ottoscaler.core import kube_findings, redis_findings
from ottoscaler.core.findings import Finding, broken, fine, unknown, warning
from ottoscaler.core.kube_findings import PodDemand
from ottoscaler.core.manifest import LABEL_BUDGET
from ottoscaler.core.policy import Rules
from ottoscaler.core.services import version_advice
from ottoscaler.errors import (
    ClusterRejected,
    ClusterUnavailable,
    ConfigError,
    LogHandlerUnavailable,
    RedisUnavailable,
)
from ottoscaler.settings import Settings
from ottoscaler.settings_files import read_text
from ottoscaler.settings_log_handler import LogHandlerSettings

_T = TypeVar("_T")
#: The worker that a log handler is asked to register: it sends no line.
_SOME_WORKER: Final = "ottoscaler-doctor"
_SERVICE_ACCOUNT: Final = "system:serviceaccount:"


class RedisCheck:
    """All of Redis. After `run`: `ahead_s`, how far its clock is ahead of ours, and `cluster`, the cluster that the
    queue belongs to; None and empty where they are not known.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._where = address(settings.redis)
        self.ahead_s: float | None = None
        self.cluster = ""

    def run(self) -> Sequence[Finding]:
        """Each finding. Raises nothing of Redis."""
        settings, found = self._settings, list[Finding]()
        calls = RedisCalls(
            settings.redis, settings.keys, lease_s=float(settings.flow.lease_s), consumer=settings.keys.consumer,
            incarnation="doctor",
        )  # fmt: skip
        with closing(calls), closing(StatusReader(settings.redis, settings.keys)) as reader:
            try:
                found += self._server(RedisInspector(calls), reader)
            except RedisUnavailable as error:
                found.append(broken(redis_inspector.access_code(error), f"{error}{self._password_hint(error)}"))
            except ConfigError as error:
                found += [broken("redis.cluster", fault) for fault in error.faults]
        return found

    def _server(self, inspector: RedisInspector, reader: StatusReader) -> Iterator[Finding]:
        info = inspector.server_info()
        yield fine("redis.reach", f"Redis at {self._where} answers")
        about_server = [redis_findings.no_info_finding()] if info is None else redis_findings.server_findings(info)
        yield from about_server
        if any(finding.code in ("redis.version", "redis.sentinel") and finding.is_trouble for finding in about_server):
            return  # without its commands, or its data, nothing of what comes next can be asked
        before = time.time()
        now = reader.now()
        self.ahead_s = now - (before + time.time()) / 2
        if info is not None and info.get("cluster_enabled"):
            inspector.check_slots(self._where)
        keys = inspector.key_findings()
        yield from keys or [
            fine("redis.acl", "Our user has all rights that the controller needs, and no key is in the way")
        ]
        if not keys:
            yield from self._queue(inspector, reader)

    def _queue(self, inspector: RedisInspector, reader: StatusReader) -> Iterator[Finding]:
        keys = self._settings.keys
        group, self.cluster = inspector.holders()
        yield redis_findings.owner_finding(group, keys.group, other_group_error(keys.prefix, group))
        yield redis_findings.queue_finding(inspector.queue(reader))
        length, oldest_s = inspector.results(reader)
        yield redis_findings.results_finding(keys.result_stream, length, keys.result_maxlen, oldest_s)

    def _password_hint(self, error: RedisUnavailable) -> str:
        path = self._settings.redis.password_file
        if redis_inspector.access_code(error) != "redis.auth" or path is None:
            return ""
        return "" if read_text(path).strip() else "; REDIS_PASSWORD_FILE is empty"


class KubeCheck:
    """All of the cluster and our namespace. After `run`: `ahead_s`, how far its clock is ahead of ours, and `cluster`,
    which one it is; None and empty where they are not known.
    """

    def __init__(self, settings: Settings, rules: Rules, account: str = "") -> None:
        """`account`: check the rights of this ServiceAccount of our namespace; empty: those of our user."""
        self._settings = settings
        self._rules = rules
        self._account = account
        self._user = "Our user"
        self.ahead_s: float | None = None
        self.cluster = ""
        self.address = ""

    def run(self) -> Sequence[Finding]:
        """Each finding. Raises nothing of Kubernetes."""
        found: list[Finding] = []
        try:
            inspector = KubeInspector(self._settings.kube)
        except ConfigError as error:
            return [broken("kube.access", fault) for fault in error.faults]
        with ExitStack() as stack:
            stack.enter_context(closing(inspector))
            self.address = inspector.address
            try:
                found += self._reach(inspector)
                acting = inspector
                if self._account:
                    found += (obstacles := self._obstacles(inspector))
                    if not obstacles:
                        acting = stack.enter_context(closing(self._inspector_of_account()))
                found += self._rights(acting)
                found += self._namespace(acting)
                found += self._workers(inspector, acting)
            except ClusterUnavailable as error:
                found.append(broken(kube_inspector.access_code(error), f"{error}: check KUBECONFIG and the network"))
        return kube_findings.first_of_each_code(found)

    def _obstacles(self, inspector: KubeInspector) -> Sequence[Finding]:
        """Why our user cannot act as the ServiceAccount; none: it can."""
        name, namespace = self._account, self._settings.kube.namespace
        if not inspector.has_account(name):
            sentence = (
                f"There is no ServiceAccount {name} in namespace {namespace}: apply deploy/base, or mend the name"
            )
            return [broken("kube.account", sentence)]
        if inspector.facts.is_permitted("impersonate", "serviceaccounts", name):
            return []
        user = inspector.user() or "our user"
        sentence = (
            f"Our user may not impersonate ServiceAccount {name}, so the rights and the admission below are those of"
            f" {user}: run doctor in the controller's pod, or as a user that may"
        )
        return [unknown("kube.account", sentence)]

    def _inspector_of_account(self) -> KubeInspector:
        """One that looks with the rights of the ServiceAccount."""
        self._user = f"ServiceAccount {self._account}"
        namespace = self._settings.kube.namespace
        return KubeInspector(self._settings.kube, acting_as=f"{_SERVICE_ACCOUNT}{namespace}:{self._account}")

    def _reach(self, inspector: KubeInspector) -> Iterator[Finding]:
        version = inspector.facts.server_version()
        before = time.time()
        now = inspector.time()
        # its time has no fractions of a second: on the average it is half a second more
        self.ahead_s = None if now is None else now + 0.5 - (before + time.time()) / 2
        shown = "of unknown version" if version == (0, 0) else ".".join(map(str, version))
        yield fine("kube.reach", f"The Kubernetes API at {self.address} answers: version {shown}")
        policy = self._rules.policy
        names = [name for name, one in policy.profiles.items() if one.services] if policy is not None else []
        if advice := version_advice(names, version):
            yield warning("kube.sidecars", advice)

    def _rights(self, inspector: KubeInspector) -> Iterator[Finding]:
        name, facts = self._settings.kube.namespace, inspector.facts
        missing = facts.missing_rights(VERBS, logs=self._settings.forwards_logs)
        yield from (broken("kube.rbac", f"{self._user} {sentence}") for sentence in missing)
        if not missing:
            yield fine("kube.rbac", f"{self._user} may do with pods in namespace {name} what the controller does")
        for verb in EVENT_VERBS:
            if not facts.is_permitted(verb, "events"):
                yield warning(
                    "kube.rbac_events",
                    f"{self._user} may not {verb} Events in namespace {name}: workers end after PENDING_TIMEOUT_S also"
                    " while a node is being added for them; bind it to a Role with that verb on events",
                )
        if self._settings.kube.events and (unwritable := kube_events.missing_rights(facts, name)):
            yield warning(
                "kube.rbac_event_writes",
                f"{self._user} {' and '.join(unwritable)}: no Kubernetes Events are written; bind it to a Role with"
                " these verbs on events, or set KUBERNETES_EVENTS=false",
            )
        user = inspector.user()
        if user.startswith(_SERVICE_ACCOUNT) and facts.is_permitted("get", "secrets"):
            yield warning(
                "kube.rbac_excess",
                f"{user} may read the Secrets of namespace {name}, which the controller never does: bind it to the Role"
                " in deploy/base/rights.yaml and to no other",
            )

    def _namespace(self, inspector: KubeInspector) -> Iterator[Finding]:
        name = self._settings.kube.namespace
        try:
            yield kube_findings.pod_security_finding(name, inspector.namespace_labels())
        except ClusterRejected as error:
            if error.status == 404:
                yield broken("kube.namespace", f"There is no namespace {name}: make it, or set NAMESPACE")
                return
            yield unknown(
                "kube.namespace",
                f"{self._user} may not get namespace {name}, so its Pod Security profile and the owner of the queue are"
                " not checked: bind it to a Role with that verb on namespaces",
            )
            return
        self.cluster = inspector.facts.cluster_id()

    def _workers(self, inspector: KubeInspector, acting: KubeInspector) -> Iterator[Finding]:
        pods = list(worker_pods(self._settings, self._rules))
        largest = list(largest_pods(self._settings, self._rules))
        demand, largest_demands = _demand(pods[0]), [(pod.what, _demand(pod)) for pod in largest]
        yield from _looked_at(
            "kube.quota", "resourcequotas", inspector.quotas,
            lambda found: [
                *kube_findings.quota_findings(found, demand),
                *kube_findings.largest_quota_findings(found, largest_demands),
            ],
        )  # fmt: skip
        yield from _looked_at(
            "kube.limitrange", "limitranges", inspector.limit_ranges,
            lambda found: [
                *kube_findings.limit_findings(found, demand),
                *kube_findings.largest_limit_findings(found, largest_demands),
            ],
        )  # fmt: skip
        yield from _looked_at(
            "kube.network", "networkpolicies", inspector.network_policies,
            lambda found: [kube_findings.network_finding(found, demand.labels)],
        )  # fmt: skip
        yield from _looked_at(
            "kube.nodes", "nodes", inspector.nodes, lambda found: [kube_findings.nodes_finding(found, demand)]
        )
        name = self._settings.worker.image_pull_secret
        if name:
            yield from _looked_at(
                "kube.pull_secret", "secrets", lambda: inspector.secret_type(name),
                lambda kind: [kube_findings.pull_secret_finding(name, self._settings.kube.namespace, kind)],
            )  # fmt: skip
        yield from _budget(inspector, pods)
        for pod in pods:
            yield _admission(acting, self._user, pod)
        yield from _largest(acting, largest)


def _demand(pod: WorkerPod) -> PodDemand:
    return PodDemand.of(msgspec.json.decode(pod.body))


def _budget(inspector: KubeInspector, pods: Sequence[WorkerPod]) -> Sequence[Finding]:
    """Nothing where no profile asks for a PodDisruptionBudget; of those that do, one stands for all."""
    asking = [(pod.what, labels) for pod in pods if LABEL_BUDGET in (labels := _demand(pod).labels)]
    if not asking:
        return []
    return _looked_at(
        "kube.disruption_budget", "poddisruptionbudgets", inspector.disruption_budgets,
        lambda found: [kube_findings.budget_finding(found, *asking[0])],
    )  # fmt: skip


def _looked_at(
    code: str, resource: str, look: Callable[[], _T], rule: Callable[[_T], Sequence[Finding]]
) -> Sequence[Finding]:
    """What a rule says of what a look finds; that our user may not look is a finding, too."""
    try:
        return rule(look())
    except ClusterRejected as error:
        denied = "Our user may not read" if error.status == 403 else "The API server does not have"
        return [unknown(code, f"{denied} {resource}, so this is not checked: run doctor as a user that may")]


def _admission(inspector: KubeInspector, user: str, pod: WorkerPod) -> Finding:
    """Whether the API server would create this pod with the rights of `user`, which the inspector has."""
    try:
        inspector.dry_run(pod.body)
    except ClusterRejected as error:
        if "no dry run" in str(error):
            return unknown("kube.admission", "This API server has no dry run, so admission is not checked")
        return kube_findings.refusal_finding(str(error), final=True, what=pod.what)
    except ClusterUnavailable as error:
        if "cannot create resource" in str(error):
            return unknown("kube.admission", f"{user} may not create pods, so admission is not checked")
        return kube_findings.refusal_finding(str(error), final=False, what=pod.what)
    return fine("kube.admission", f"The API server accepts a dry run of {pod.what}")


def _largest(inspector: KubeInspector, pods: Sequence[WorkerPod]) -> Iterator[Finding]:
    """The largest workers of the policy that are refused. That one would wait now is no finding: there may be room
    for it later.
    """
    for pod in pods:
        try:
            inspector.dry_run(pod.body)
        except ClusterRejected as error:
            if "no dry run" not in str(error):
                yield kube_findings.largest_refusal_finding(str(error), pod.what)
        except ClusterUnavailable:
            continue


def owner_findings(settings: Settings, redis: RedisCheck, kube: KubeCheck) -> Sequence[Finding]:
    """Does the queue belong to this cluster and namespace?"""
    if redis.cluster and kube.cluster and redis.cluster != kube.cluster:
        sentence = other_cluster_error(settings, kube.address, kube.cluster, redis.cluster)
        return [broken("queue.owner", sentence)]
    return []


# -- log handler


def handler_findings(settings: LogHandlerSettings) -> Sequence[Finding]:
    """Is the log handler there? Nothing where no address is set."""
    if settings.address is None:
        return []
    try:
        connect_once(settings)
    except LogHandlerUnavailable as error:
        if error.denied:
            sentence = f"The TLS of the log handler at {settings.target} fails ({error}): see LOG_HANDLER_CA_FILE"
            return [broken("handler.tls", sentence)]
        sentence = f"The log handler at {settings.target} cannot be reached ({error}): is LOG_HANDLER_ADDRESS right?"
        return [broken("handler.reach", sentence)]
    reached = fine(
        "handler.reach", f"The log handler at {settings.target} answers{' by TLS' if settings.is_tls else ''}"
    )
    return [reached, _registration(settings)]


def _registration(settings: LogHandlerSettings) -> Finding:
    if importlib.util.find_spec("grpc") is None:
        return unknown("handler.register", "grpcio is not installed, so registration at the log handler is not checked")
    client = importlib.import_module("ottoscaler.adapters.log_client")
    messages = importlib.import_module("ottoscaler.proto.log_streaming_pb2")

    async def register() -> int:
        handler = client.LogHandlerClient(settings)
        try:
            answer = await handler.register(messages.WorkerRegistration(worker_id=_SOME_WORKER, task_id=_SOME_WORKER))
            return int(answer.status)
        finally:
            await handler.close()

    try:
        status = asyncio.run(register())
    except LogHandlerUnavailable as error:
        if error.unimplemented:
            return fine("handler.register", "The log handler has no registration; logs are streamed without it")
        return broken("handler.register", f"The log handler refuses to register a worker ({error})")
    name = messages.RegistrationResponse.Status.Name(status)
    if name in ("SUCCESS", "ALREADY_REGISTERED"):
        return fine("handler.register", "The log handler registers workers")
    return warning("handler.register", f"The log handler answers {name} to a registration")
