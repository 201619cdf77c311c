"""The configuration: frozen groups of values, and the one place that reads the environment.

Only the composition root and the commands call `Settings.load`; everything below them is handed the group it needs. The
names of the variables and their defaults are a promise to operators; deploy/REFERENCE.md has the same table.
"""

from __future__ import annotations

import os
import re
from collections import ChainMap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from ottoscaler.core.fields import is_tenant_field
from ottoscaler.errors import ConfigError
from ottoscaler.misspellings import misspelled_variables
from ottoscaler.settings_files import read_env_file
from ottoscaler.settings_log_handler import LogHandlerSettings as LogHandlerSettings
from ottoscaler.settings_reader import DNS_LABEL, LABEL_VALUE, TEN_YEARS_S, EnvironmentReader, addresses
from ottoscaler.settings_traces import TraceSettings as TraceSettings
from ottoscaler.settings_worker import DEFAULT_COMMAND as DEFAULT_COMMAND
from ottoscaler.settings_worker import WorkerSettings as WorkerSettings
from ottoscaler.settings_worker import read_worker

#: Names of keys behind KEY_PREFIX that no stream may have (adapters/task_codec.py makes them).
RESERVED_KEYS: Final = re.compile(r"(open|buried|redriven|group|choices)|(task|consumer|key):.*")
#: Variables that are promised and have no effect yet; the start warns about those that are set.
UNSUPPORTED_VARIABLES: Final[tuple[str, ...]] = ()

#: All that a command needs that only looks into Redis, or adds to the stream.
REDIS_ONLY: Final = frozenset(
    {
        *("REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_USERNAME", "REDIS_PASSWORD", "REDIS_PASSWORD_FILE"),
        *("REDIS_SENTINELS", "REDIS_SENTINEL_MASTER", "REDIS_TLS", "REDIS_CA_FILE"),
        *("REDIS_STREAM", "REDIS_CONSUMER_GROUP", "RESULT_STREAM", "DEAD_LETTER_STREAM", "KEY_PREFIX"),
    }
)

LogFormat = Literal["json", "text"]
WorkerLogs = Literal["controller", "agent", "none"]
_LEVELS: Final = {"DEBUG": "DEBUG", "INFO": "INFO", "WARNING": "WARNING", "ERROR": "ERROR"}
_WORKER_LOGS: Final[dict[str, WorkerLogs]] = {"controller": "controller", "agent": "agent", "none": "none"}
_FORMATS: Final[dict[str, LogFormat]] = {"json": "json", "text": "text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSettings:
    """How Redis is reached. Immutable: any thread."""

    host: str = "localhost"
    """REDIS_HOST: host name or address; not looked at when there are sentinels."""
    port: int = 6379
    """REDIS_PORT."""
    db: int = 0
    """REDIS_DB: number of the database; Redis Cluster has only 0."""
    username: str | None = None
    """REDIS_USERNAME: ACL user; without it the server's default user."""
    password: str | None = field(default=None, repr=False)
    """REDIS_PASSWORD: never printed; a file is better, for it can be changed while we run."""
    password_file: str | None = None
    """REDIS_PASSWORD_FILE: read again at each connection, so that a rotated password takes effect without a restart."""
    sentinels: tuple[tuple[str, int], ...] = ()
    """REDIS_SENTINELS: hosts and ports that are asked for the master, in this order."""
    sentinel_master: str | None = None
    """REDIS_SENTINEL_MASTER: the name under which the sentinels know the master."""
    tls: bool = False
    """REDIS_TLS: encrypt, and check the server's certificate and host name."""
    ca_file: str | None = None
    """REDIS_CA_FILE: the authorities to trust; without it the machine's."""
    block_ms: int = 2000
    """REDIS_BLOCK_MS: longest blocking read, in milliseconds; a reader notices that late that it has to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySettings:
    """The names in Redis, and how long things are kept there. Immutable: any thread."""

    stream: str = "otto:scale:events"
    """REDIS_STREAM: where events come from."""
    group: str = "ottoscaler"
    """REDIS_CONSUMER_GROUP: the replicas that share the work."""
    consumer: str
    """REDIS_CONSUMER: this process; unique, or two take each other's tasks for their own. Default: host name."""
    result_stream: str = "otto:scale:results"
    """RESULT_STREAM: where results go."""
    dead_letter_stream: str = "otto:scale:dead"
    """DEAD_LETTER_STREAM: where entries go that cannot be carried out."""
    prefix: str = "otto:scale:"
    """KEY_PREFIX: begins the names of all other keys."""
    result_maxlen: int = 100_000
    """RESULT_MAXLEN: results kept, about."""
    events_keep: int = 0
    """EVENTS_KEEP: events kept in REDIS_STREAM, about; older ones are trimmed when every group has acknowledged them.
    0: none is trimmed."""
    task_ttl_s: int = 604_800
    """TASK_TTL_S: how long a finished task, and so its event id, is remembered, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSettings:
    """How much is done at once, and when another replica takes over. Immutable: any thread."""

    max_workers: int = 100
    """MAX_WORKERS: threads of the pool, so live pods of this process."""
    max_pending: int = 0
    """MAX_PENDING: no pod is created while as many pods of this instance wait for a node; 0: no limit."""
    read_ahead: int = 32
    """READ_AHEAD: accepted events with workers that still wait for a thread; the rest is left to other replicas."""
    admit_max: int = 10_000
    """ADMIT_MAX: accepted events that wait for their concurrency key or their tenant's share; when there are as many,
    nothing more is read."""
    max_pods_per_event: int = 1000
    """MAX_PODS_PER_EVENT: larger requests are refused, as a guard against a slip of the keyboard."""
    keep_failed_max: int = 20
    """KEEP_FAILED_MAX: pods of failed workers that stay at most, in the namespace and of this instance."""
    policy_file: str | None = None
    """POLICY_FILE: what events may override; None: no policy, and events may override little."""
    tenant_field: str = ""
    """TENANT_FIELD: the field of an event that names its tenant; empty: there are no tenants."""
    lease_s: int = 15
    """LEASE_S: a replica silent for so long loses its tasks, in seconds; renewed each third, hence at least 3."""
    shutdown_grace_s: int = 20
    """SHUTDOWN_GRACE_S: time for the stop, in seconds; less than the pod's own grace period of 30."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeSettings:
    """How the Kubernetes API is reached and spared. Immutable: any thread."""

    kubeconfig: str | None = None
    """KUBECONFIG: outside a cluster; inside, the ServiceAccount is used."""
    namespace: str = "default"
    """NAMESPACE: where worker pods live; default: our own pod's, otherwise `default`."""
    inflight: int = 32
    """KUBE_INFLIGHT: calls at once; above about 64 the server starts to refuse creates (429)."""
    qps: int = 0
    """KUBE_QPS: calls per second; 0: no limit of ours, the server's own fairness and Retry-After rule."""
    burst: int = 0
    """KUBE_BURST: calls above the rate; 0: as many as KUBE_QPS."""
    events: bool = True
    """KUBERNETES_EVENTS: write Kubernetes Events about workers that fail, and about the controller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """Where probes and figures are to be had. Immutable: any thread."""

    port: int = 8080
    """HTTP_PORT: 0: none."""
    address: str = "127.0.0.1"
    """HTTP_ADDRESS: what to listen on; default: in a cluster `::`, all addresses (IPv4, IPv6): the kubelet asks us."""
    token_file: str | None = None
    """HTTP_TOKEN_FILE: the bearer token for figures and status page; None: none is asked for. Probes ask for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What is logged, and how. Immutable: any thread."""

    level: str = "INFO"
    """LOG_LEVEL: DEBUG, INFO, WARNING or ERROR."""
    format: LogFormat | None = None
    """LOG_FORMAT: json or text; None: text on a terminal, otherwise json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of the configuration. Immutable: any thread."""

    redis: RedisSettings
    keys: KeySettings
    worker: WorkerSettings
    flow: FlowSettings
    kube: KubeSettings
    web: WebSettings
    log: LogSettings
    log_handler: LogHandlerSettings = field(default_factory=LogHandlerSettings)
    traces: TraceSettings = field(default_factory=TraceSettings)
    worker_logs: WorkerLogs = "controller"
    """WORKER_LOGS: what streams the logs of workers to the log handler: controller, agent (in the image), none."""
    instance: str
    """INSTANCE: distinguishes Ottoscalers in one namespace; in names and labels. Default: consumer group."""
    unsupported_variables: tuple[str, ...] = ()
    """Variables that are set and have no effect yet."""
    misspelled_variables: tuple[str, ...] = ()
    """A sentence for each variable that is set and nearly one of ours."""

    @property
    def forwards_logs(self) -> bool:
        """Whether the controller streams the logs of workers."""
        return self.log_handler.address is not None and self.worker_logs == "controller"

    @property
    def may_forward_logs(self) -> bool:
        """The same, or a profile of the policy may ask for it."""
        return self.forwards_logs or (self.log_handler.address is not None and self.flow.policy_file is not None)

    @classmethod
    def load(
        cls,
        environ: Mapping[str, str],
        host_name: str,
        in_cluster_namespace: str | None,
        used: Collection[str] | None = None,
    ) -> Settings:
        """Read the configuration out of the environment and the file that ENV_FILE names; the environment wins.

        Arguments: the environment; this machine's name, the default of REDIS_CONSUMER; the namespace of the pod that we
        run in, or None outside a cluster; the variables that the caller uses (None: all): a fault of another one is no
        concern of the caller's, and that value is the default. Files are only looked at: a missing one is reported now.
        Raises ConfigError with all faults at once, one line each; a secret's value is in none of them.
        """
        everything, file_faults = _with_file(environ)
        reader = EnvironmentReader(everything)
        keys = _keys(reader, host_name)
        settings = cls(
            redis=_redis(reader),
            keys=keys,
            worker=read_worker(reader),
            flow=_flow(reader),
            kube=_kube(reader, in_cluster_namespace),
            web=_web(reader, in_cluster_namespace),
            log=_log(reader),
            log_handler=LogHandlerSettings.read(reader),
            traces=TraceSettings.read(reader),
            worker_logs=reader.choice("WORKER_LOGS", _WORKER_LOGS) or "controller",
            instance=reader.text("INSTANCE", keys.group, LABEL_VALUE),
            unsupported_variables=tuple(name for name in UNSUPPORTED_VARIABLES if reader.raw(name)),
            misspelled_variables=misspelled_variables(everything, reader.asked | {"ENV_FILE"}),
        )
        if 2 * settings.worker.keep_failed_s > keys.task_ttl_s:
            # A pod that outlived its task would look like one of a task that Redis lost, and be recorded again.
            reader.fault("KEEP_FAILED_S", f"at most half of TASK_TTL_S, {keys.task_ttl_s // 2}")
        found = [fault for fault in reader.faults if used is None or fault.partition("=")[0] in used]
        if faults := (*file_faults, *found):
            raise ConfigError((*faults, *settings.misspelled_variables))
        return settings


def asked_log(environ: Mapping[str, str], host_name: str) -> tuple[LogFormat | None, Mapping[str, str]]:
    """What LOG_FORMAT says, and what names this process in each line (`instance`, `consumer`), out of a configuration
    that has faults: these are reported in the form that is asked for. A value that is wrong itself is the default.
    """
    reader = EnvironmentReader(_with_file(environ)[0])
    keys = _keys(reader, host_name)
    instance = reader.text("INSTANCE", keys.group, LABEL_VALUE)
    return _log(reader).format, {"instance": instance, "consumer": keys.consumer}


def _with_file(environ: Mapping[str, str]) -> tuple[Mapping[str, str], Sequence[str]]:
    """The environment, and behind it the file that ENV_FILE names; and what is wrong with that."""
    path = environ.get("ENV_FILE", "").strip()
    from_file, faults = read_env_file(path) if path else ({}, [])
    return (ChainMap(dict(environ), from_file) if path else environ), faults


def _redis(reader: EnvironmentReader) -> RedisSettings:
    default = RedisSettings()
    settings = RedisSettings(
        host=reader.host("REDIS_HOST", default.host),
        port=reader.integer("REDIS_PORT", default.port, 1, 65535),
        db=reader.integer("REDIS_DB", default.db, 0, 2**31 - 1),
        username=reader.optional("REDIS_USERNAME"),
        password=reader.secret("REDIS_PASSWORD"),
        password_file=reader.text_file("REDIS_PASSWORD_FILE"),
        sentinels=addresses(reader, "REDIS_SENTINELS"),
        sentinel_master=reader.optional("REDIS_SENTINEL_MASTER"),
        tls=reader.boolean("REDIS_TLS", default.tls),
        ca_file=reader.certificates("REDIS_CA_FILE"),
        block_ms=reader.integer("REDIS_BLOCK_MS", default.block_ms, 1, 10_000),
    )
    if settings.password and settings.password_file:
        reader.fault("REDIS_PASSWORD_FILE", "only one of REDIS_PASSWORD and REDIS_PASSWORD_FILE")
    if reader.raw("REDIS_SENTINELS") and not reader.raw("REDIS_SENTINEL_MASTER"):
        reader.fault("REDIS_SENTINEL_MASTER", "the master's name, because REDIS_SENTINELS is set")
    if reader.raw("REDIS_SENTINEL_MASTER") and not reader.raw("REDIS_SENTINELS"):
        reader.fault("REDIS_SENTINELS", "host:port,... because REDIS_SENTINEL_MASTER is set")
    if settings.ca_file and not reader.raw("REDIS_TLS"):
        # Without this, a forgotten REDIS_TLS would send the password in the clear although a CA file is set.
        reader.fault("REDIS_TLS", "true or false, because REDIS_CA_FILE is set")
    return settings


def _keys(reader: EnvironmentReader, host_name: str) -> KeySettings:
    default = KeySettings(consumer=host_name)
    settings = KeySettings(
        stream=reader.text("REDIS_STREAM", default.stream),
        group=reader.text("REDIS_CONSUMER_GROUP", default.group),
        consumer=reader.text("REDIS_CONSUMER", default.consumer),
        result_stream=reader.text("RESULT_STREAM", default.result_stream),
        dead_letter_stream=reader.text("DEAD_LETTER_STREAM", default.dead_letter_stream),
        prefix=reader.text("KEY_PREFIX", default.prefix),
        result_maxlen=reader.integer("RESULT_MAXLEN", default.result_maxlen, 1, 2**53),
        events_keep=reader.integer("EVENTS_KEEP", default.events_keep, 0, 2**53),
        task_ttl_s=reader.integer("TASK_TTL_S", default.task_ttl_s, 1, TEN_YEARS_S),
    )
    if settings.result_stream == settings.stream:
        reader.fault("RESULT_STREAM", "another name than REDIS_STREAM has")
    if settings.dead_letter_stream in (settings.stream, settings.result_stream):
        reader.fault("DEAD_LETTER_STREAM", "another name than REDIS_STREAM and RESULT_STREAM have")
    named = ("REDIS_STREAM", settings.stream), ("RESULT_STREAM", settings.result_stream)
    for name, value in (*named, ("DEAD_LETTER_STREAM", settings.dead_letter_stream)):
        if RESERVED_KEYS.fullmatch(value.removeprefix(settings.prefix)) and value.startswith(settings.prefix):
            reader.fault(name, f"a name that is none of our own keys below KEY_PREFIX, {settings.prefix}")
    return settings


def _flow(reader: EnvironmentReader) -> FlowSettings:
    default = FlowSettings()
    return FlowSettings(
        max_workers=reader.integer("MAX_WORKERS", default.max_workers, 1, 10_000),
        max_pending=reader.integer("MAX_PENDING", default.max_pending, 0, 1_000_000),
        read_ahead=reader.integer("READ_AHEAD", default.read_ahead, 1, 100_000),
        admit_max=reader.integer("ADMIT_MAX", default.admit_max, 1, 1_000_000),
        max_pods_per_event=reader.integer("MAX_PODS_PER_EVENT", default.max_pods_per_event, 1, 1_000_000),
        keep_failed_max=reader.integer("KEEP_FAILED_MAX", default.keep_failed_max, 0, 10_000),
        policy_file=reader.file("POLICY_FILE"),
        tenant_field=_tenant_field(reader),
        lease_s=reader.integer("LEASE_S", default.lease_s, 3, 3600),
        shutdown_grace_s=reader.integer("SHUTDOWN_GRACE_S", default.shutdown_grace_s, 1, 3600),
    )


def _tenant_field(reader: EnvironmentReader) -> str:
    name = reader.raw("TENANT_FIELD")
    if name and not is_tenant_field(name):
        reader.fault("TENANT_FIELD", "the name of a field that is passed on, like repository")
        return ""
    return name


def _kube(reader: EnvironmentReader, in_cluster_namespace: str | None) -> KubeSettings:
    default = KubeSettings(namespace=in_cluster_namespace or "default")
    # As for kubectl, several files may be named; it is for the client to join them, and one missing is no fault.
    several = os.pathsep in reader.raw("KUBECONFIG")
    return KubeSettings(
        kubeconfig=reader.optional("KUBECONFIG") if several else reader.file("KUBECONFIG"),
        namespace=reader.text("NAMESPACE", default.namespace, DNS_LABEL),
        inflight=reader.integer("KUBE_INFLIGHT", default.inflight, 1, 10_000),
        qps=reader.integer("KUBE_QPS", default.qps, 0, 1_000_000),
        burst=reader.integer("KUBE_BURST", default.burst, 0, 1_000_000),
        events=reader.boolean("KUBERNETES_EVENTS", default.events),
    )


def _web(reader: EnvironmentReader, in_cluster_namespace: str | None) -> WebSettings:
    default = WebSettings(address="::" if in_cluster_namespace else "127.0.0.1")
    return WebSettings(
        port=reader.integer("HTTP_PORT", default.port, 0, 65535),
        address=reader.host("HTTP_ADDRESS", default.address),
        token_file=reader.text_file("HTTP_TOKEN_FILE"),
    )


def _log(reader: EnvironmentReader) -> LogSettings:
    return LogSettings(
        level=reader.choice("LOG_LEVEL", _LEVELS) or LogSettings().level,
        format=reader.choice("LOG_FORMAT", _FORMATS),
    )
