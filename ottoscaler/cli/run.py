"""The controller: `python ottoscaler.py` or `... run`. Here, and only here, settings, adapters and flow are put
together.

Start: settings -> adapters -> probes -> wait for Redis, its keys and the rights in Kubernetes -> threads. Stop, in one
function: reader and control end, workers finish the write they are at (their pods run on), leases are given up, the
watch and the connections close, and last of all the probes.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from ottoscaler import __version__, logs
from ottoscaler.adapters.cluster import KubeCluster
from ottoscaler.adapters.kubeconfig import describe_access
from ottoscaler.adapters.redis_backend import RedisBackend
from ottoscaler.adapters.redis_calls import RedisCalls
from ottoscaler.adapters.redis_client import address
from ottoscaler.adapters.web import WebServer
from ottoscaler.cli import process_tuning
from ottoscaler.cli.kubernetes_events import KubernetesEvents
from ottoscaler.cli.log_forwarding import LogForwarding
from ottoscaler.cli.namespace import own_namespace
from ottoscaler.cli.pages import pages
from ottoscaler.cli.queue_owner import check_cluster, other_group_error
from ottoscaler.cli.rules import masks_of, rules_of, shares_of
from ottoscaler.cli.run_log import set_up_log, with_faults_logged
from ottoscaler.cli.signals import Signals
from ottoscaler.cli.start_warnings import start_warnings
from ottoscaler.cli.status_page import guarded, status_page
from ottoscaler.cli.tracing import Tracing
from ottoscaler.clock import SystemClock
from ottoscaler.core.services import version_advice
from ottoscaler.errors import ConfigError, Stopping, Unavailable
from ottoscaler.flow.control import ScaleDownProcessor
from ottoscaler.flow.dispatch import WorkerDispatcher
from ottoscaler.flow.gauges import Gauges
from ottoscaler.flow.health import Health
from ottoscaler.flow.heartbeat import KUBERNETES, REDIS, Heartbeat
from ottoscaler.flow.inbox import ScaleDownInbox
from ottoscaler.flow.intake import Intake, StreamReader
from ottoscaler.flow.lease import LeaseKeeper
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.pod_keeper import PodKeeper
from ottoscaler.flow.pod_terminator import PodTerminator
from ottoscaler.flow.reconciler import Reconciler
from ottoscaler.flow.registry import PodRegistry
from ottoscaler.flow.scale_down import ScaleDownSteps
from ottoscaler.flow.stop import StopSignal
from ottoscaler.flow.takeover import TakeOver
from ottoscaler.flow.watch import PodWatcher
from ottoscaler.flow.worker import WorkerRunner
from ottoscaler.metrics import Metrics
from ottoscaler.retries import Retries
from ottoscaler.settings import Settings

#: What is kept of SHUTDOWN_GRACE_S for handing over and closing, seconds.
CLOSE_S = 3.0
MAX_PAUSE_S = 10.0
#: How long the other threads wait for the first list of pods at most, seconds.
FIRST_LIST_S = 2.0
#: The threads by which something becomes ours.
TAKERS = ("reader", "control", "takeover")
#: How long the last call of a thread that reads may take after its blocking read, seconds.
LAST_READ_S = 1.0
#: How often the reads that block are ended while the process stops, seconds.
INTERRUPT_EVERY_S = 0.02
#: The thread that answers probes: it lives as long as anything does.
WEB = "web"

_log = logs.get(__name__)


class Controller:
    """All objects and all threads. The main thread's own."""

    def __init__(self, settings: Settings, stop: StopSignal) -> None:
        """Raises ConfigError if there is no way to a cluster, or for a policy that cannot be read."""
        self._settings = settings
        self._rules = rules_of(settings)  # before anything is opened: it may refuse the policy
        self._shares = shares_of(self._rules)
        self._stop = stop
        self._incarnation = uuid.uuid4().hex[:12]
        self._clock = clock = SystemClock()
        self._metrics, self._heartbeat = metrics, heartbeat = Metrics(), Heartbeat(clock)
        keys, flow, instance = settings.keys, settings.flow, settings.instance
        stream = RedisBackend(
            RedisCalls(
                settings.redis,
                keys,
                lease_s=float(flow.lease_s),
                consumer=keys.consumer,
                incarnation=self._incarnation,
                on_reply=self._report_redis,
                on_script=metrics.redis_request_seconds.observe,
            )
        )
        cluster = KubeCluster(
            settings.kube, instance=instance, on_request=metrics.count_kube_request, on_wait=metrics.count_throttled,
            on_reply=partial(heartbeat.report_call, KUBERNETES), urgent=heartbeat.is_loop,
            reads_logs=settings.forwards_logs,
        )  # fmt: skip
        registry = PodRegistry(clock)
        ledger = Ledger(
            registry, clock, instance=instance, max_workers=flow.max_workers, read_ahead=flow.read_ahead,
            admit_max=flow.admit_max, max_pending=flow.max_pending, tenant_field=flow.tenant_field,
        )  # fmt: skip
        ledger.room_waits.set_shares(self._shares())
        metrics.max_workers.set(flow.max_workers)
        metrics.result_entries_max.set(keys.result_maxlen)
        retries = Retries(stop.event, metrics, heartbeat.report_failure)
        self._stream, self._cluster, self._registry, self._retries = stream, cluster, registry, retries
        self._web = self._bind_web_server(Health(heartbeat, ledger, registry))
        self._ledger = ledger
        self._events = KubernetesEvents(settings, stop=stop, metrics=metrics, clock=clock)
        self._wire_workers()
        self._wire_lanes(float(flow.lease_s))
        Gauges(ledger=ledger, registry=registry, heartbeat=heartbeat, control=self._control).register(metrics)

    def _wire_workers(self) -> None:
        """What carries workers on."""
        shared: dict[str, Any] = {"stop": self._stop, "heartbeat": self._heartbeat, "clock": self._clock}
        cluster, registry, ledger = self._cluster, self._registry, self._ledger
        self._inbox = ScaleDownInbox()
        self._keeper = PodKeeper(
            cluster=cluster, registry=registry, metrics=self._metrics, clock=self._clock,
            most=self._settings.flow.keep_failed_max, ttl_s=self._settings.keys.task_ttl_s,
        )  # fmt: skip
        self._logs = LogForwarding(
            self._settings,
            cluster=cluster,
            attempts=self._stream,
            metrics=self._metrics,
            rules=self._rules,
            server=cluster.server,
            **shared,
        )
        self._traces = Tracing(
            self._settings, results=self._stream, registry=registry, metrics=self._metrics, stop=self._stop,
            clock=self._clock,
        )  # fmt: skip
        runner = WorkerRunner(
            attempts=self._stream, cluster=cluster, registry=registry, ledger=ledger, keeper=self._keeper,
            retries=self._retries, log_drain=self._logs.drain, record_event=self._events.record,
            spans=self._traces.spans,
            heartbeat=self._heartbeat, metrics=self._metrics, clock=self._clock, settings=self._settings,
        )  # fmt: skip
        self._terminator = PodTerminator(
            cluster=cluster, registry=registry, ledger=ledger, runner=runner, keeper=self._keeper, **shared
        )
        self._dispatcher = WorkerDispatcher(
            ledger=ledger, runner=runner, terminator=self._terminator, inbox=self._inbox,
            max_workers=self._settings.flow.max_workers, **shared,
        )  # fmt: skip
        self._watch = PodWatcher(
            cluster=cluster, registry=registry, retries=self._retries, metrics=self._metrics, **shared
        )

    def _wire_lanes(self, lease_s: float) -> None:
        """What brings work and ends it: reader, control, lease, take-over, reconciler."""
        shared: dict[str, Any] = {"stop": self._stop, "heartbeat": self._heartbeat, "clock": self._clock}
        stream, registry, ledger, inbox = self._stream, self._registry, self._ledger, self._inbox
        keys, ttl_s = self._settings.keys, self._settings.keys.task_ttl_s
        intake = Intake(
            event_log=stream, ledger=ledger, inbox=inbox, retries=self._retries, metrics=self._metrics,
            max_pods=self._settings.flow.max_pods_per_event,
            rules=self._rules, record_event=self._events.record,
        )  # fmt: skip
        scale_downs = ScaleDownSteps(
            scale_downs=stream, attempts=stream, registry=registry, ledger=ledger, terminator=self._terminator,
            clock=self._clock,
            instance=self._settings.instance,
        )  # fmt: skip
        self._control = control = ScaleDownProcessor(
            event_log=stream, registry=registry, ledger=ledger, inbox=inbox, intake=intake, scale_downs=scale_downs,
            retries=self._retries, lease_s=lease_s, **shared,
        )  # fmt: skip
        self._reader = StreamReader(event_log=stream, intake=intake, ledger=ledger, retries=self._retries, **shared)
        self._takeover = TakeOver(
            event_log=stream, leases=stream, attempts=stream, ledger=ledger, control=control, inbox=inbox,
            intake=intake, metrics=self._metrics,
            lease_s=lease_s, events_keep=keys.events_keep, shares=self._shares, worker=self._settings.worker,
            record_event=self._events.record,
            **shared,
        )  # fmt: skip
        self._lease = LeaseKeeper(
            event_log=stream, leases=stream, ledger=ledger, control=control, inbox=inbox, takeover=self._takeover,
            metrics=self._metrics, lease_s=lease_s,
            ttl_s=ttl_s, me=f"{keys.consumer}/{self._incarnation}", record_event=self._events.record, **shared,
        )  # fmt: skip
        self._reconciler = Reconciler(
            leases=stream, cluster=self._cluster, registry=registry, dispatcher=self._dispatcher,
            terminator=self._terminator, keeper=self._keeper, log_drain=self._logs.drain,
            lease_s=lease_s, ttl_s=ttl_s, **shared,
        )  # fmt: skip

    def run(self) -> int:
        """Start, wait for the end, stop; returns the exit code."""
        try:
            if self._web is not None:
                self._stop.spawn(WEB, self._web.run)
            self._await_servers()
            self._start()
            self._stop.wait()
        except Stopping:
            pass
        except ConfigError:
            self._shut_down()
            raise
        hung = self._shut_down()
        if self._stop.cause is not None:
            _log.error("controller.failed", "Ending because a part failed for good", error=str(self._stop.cause))
        code = 0 if self._stop.cause is None else 1
        _log.info("controller.stopped", "Ottoscaler has stopped", exit_code=code)
        if hung:
            _exit_now(code)
        return code

    def _await_servers(self) -> None:
        """Redis first, then the rights in the cluster: before that no event is taken. Raises Stopping, and ConfigError
        if the names in Redis are another group's.
        """
        _log.info(
            "controller.starting", "Ottoscaler %s: Redis %s, Kubernetes %s (%s), namespace %s",
            __version__, address(self._settings.redis), self._cluster.address, describe_access(self._settings.kube),
            self._settings.kube.namespace,
            version=__version__,
        )  # fmt: skip
        for event, sentence in start_warnings(self._settings, self._shares()):
            _log.warning(event, "%s", sentence)
        self._wait_until_no_problem("Redis", "redis.refused", self._key_problems)
        group, keys = self._retries.retry_forever("reach Redis", self._stream.reserve_prefix), self._settings.keys
        if group != keys.group:
            raise ConfigError((other_group_error(keys.prefix, group),))
        self._retries.retry_forever("reach Redis", self._stream.ensure_group)
        for advice in self._retries.retry_forever("look at Redis", self._stream.server_warnings):
            _log.warning("redis.advice", advice)
        self._wait_until_no_problem("rights", "kubernetes.forbidden", self._missing_rights)
        check_cluster(self._settings, self._cluster, self._cluster.address, self._stream, self._retries)
        self._check_services()

    def _check_services(self) -> None:
        """Log if the cluster is too old for what the policy's profiles need. Raises Stopping."""
        policy = self._rules().policy
        names = [name for name, one in policy.profiles.items() if one.services] if policy is not None else []
        if not names:
            return
        version = self._retries.retry_forever("look which version Kubernetes has", self._cluster.server_version)
        if advice := version_advice(names, version):
            _log.warning("kubernetes.advice", advice)

    def _key_problems(self) -> list[str]:
        return list(self._retries.retry_forever("reach Redis", self._stream.key_problems))

    def _missing_rights(self) -> list[str]:
        missing = self._retries.retry_forever("reach Kubernetes", self._cluster.missing_rights)
        return [f"the controller {sentence}" for sentence in missing]

    def _wait_until_no_problem(self, what: str, event: str, look: Callable[[], Sequence[str]]) -> None:
        """Look again until nothing is in the way, and log each sentence each time. Raises Stopping."""
        pause_s = 1.0
        while found := look():
            self._heartbeat.set_phase(f"waiting for {what}: {'; '.join(found)}")
            for sentence in found:
                _log.error(event, "%s", sentence[0].upper() + sentence[1:])
            if self._stop.wait(pause_s):
                raise Stopping(f"stopped while waiting for {what}")
            pause_s = min(pause_s * 2, MAX_PAUSE_S)

    def _start(self) -> None:
        self._stop.spawn("cpu", partial(process_tuning.CpuPinning().run, self._stop.wait))
        self._start_loop("watch", self._watch.run)
        self._start_loop("dispatch", self._dispatcher.run)
        # it shows the pods of all the workers that the lease thread resumes: otherwise each would ask for its own
        self._registry.wait_known(FIRST_LIST_S)
        self._start_loop("lease", self._lease.run)
        self._start_loop("takeover", self._takeover.run)
        self._start_loop("control", self._control.run)
        self._start_loop("scale-down", self._control.carry_out)
        self._start_loop("ender", self._terminator.run)
        self._logs.begin(self._start_loop)
        self._events.begin()
        self._traces.begin()
        self._start_loop("reader", self._reader.run)
        self._start_loop("reconciler", self._reconciler.run)
        self._heartbeat.set_phase("")
        _log.info(
            "controller.started",
            "Waiting for scaling events on %s",
            self._settings.keys.stream,
            incarnation=self._incarnation,
        )

    def _start_loop(self, name: str, run: Callable[[], None]) -> None:
        self._heartbeat.add_loop(name)
        self._stop.spawn(name, run)

    def _shut_down(self) -> bool:
        """The order of the end; returns whether something hangs and the process has to be ended by force."""
        deadline = self._clock.now() + self._settings.flow.shutdown_grace_s
        self._stop.set()
        self._heartbeat.set_phase("stopping")
        live = self._registry.owned_live_count
        _log.info("controller.stopping", "Stopping: %d worker pods run on", live, pods=live)
        self._registry.close()
        self._dispatcher.close()
        self._wait_for_takers(deadline)
        self._release(all_=False)
        busy = self._ledger.wait_idle(deadline - CLOSE_S)
        self._release(all_=True)
        self._events.close()
        self._cluster.close()
        hung = self._stop.join(self._clock, deadline, besides=WEB)
        if not (hung or busy):  # otherwise they are in the middle of a call; the process ends in a moment anyway
            self._stream.close()
        if self._web is not None:
            self._web.close()
            hung += self._stop.join(self._clock, deadline)
        if hung or busy:
            _log.warning(
                "controller.hung",
                "Not waiting any longer for %d workers and threads: %s",
                busy,
                ", ".join(hung) or "none",
            )
        return bool(hung or busy)

    def _wait_for_takers(self, deadline: float) -> None:
        """Wait until nothing more is read, accepted or taken over: what came later would wait for its lease to run out.

        The reads that block are ended, again and again, since one may begin between two looks. Where that is not
        permitted, they end by themselves.
        """
        now = self._clock.now()
        until = min(deadline, now + self._settings.redis.block_ms / 1000 + LAST_READ_S)
        with suppress(Unavailable):
            while now < until and self._stop.join(self._clock, now, only=TAKERS):
                self._stream.interrupt_reads()
                self._stop.join(self._clock, now + INTERRUPT_EVERY_S, only=TAKERS)
                now = self._clock.now()
        self._stop.join(self._clock, until, only=TAKERS)

    def _release(self, *, all_: bool) -> None:
        try:
            self._lease.release(all_=all_)
        except (Unavailable, ConfigError) as error:
            _log.warning("lease.kept", "Leases are not given up, they run out by themselves", error=str(error))

    def _bind_web_server(self, health: Health) -> WebServer | None:
        """Raises ConfigError if the port is not to be had."""
        if self._settings.web.port == 0:
            return None
        page, viewers = status_page(self._settings, health, self._registry, lambda: masks_of(self._rules()))
        every = {**page, **pages(health, self._metrics)}
        return WebServer(self._settings.web, guarded(every, self._settings.web.token_file), viewers)

    def _report_redis(self, error: str) -> None:
        if error:
            self._metrics.redis_errors.inc()
        self._heartbeat.report_call(REDIS, error)


def main(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> int:
    """Run the controller until SIGTERM or SIGINT; returns the exit code. Raises ConfigError, unless its faults are
    logged (`with_faults_logged`).
    """
    if argv:
        raise ConfigError((f"run takes no arguments, it is configured by environment variables; got {' '.join(argv)}",))
    environ = os.environ if environ is None else environ
    return with_faults_logged(environ, partial(_run, environ))


def _run(environ: Mapping[str, str]) -> int:
    settings = Settings.load(environ, socket.gethostname(), own_namespace())
    set_up_log(settings)
    stop = StopSignal()
    controller = Controller(settings, stop)
    process_tuning.tune_process(settings.flow.max_workers)
    Signals(stop.set, settings.flow.shutdown_grace_s)
    return controller.run()


def _exit_now(code: int) -> None:
    """Without waiting for threads that hang: the interpreter would wait for pool threads without limit."""
    logging.shutdown()
    with suppress(OSError, ValueError):  # its reader may be gone, and the exit code must not depend on that
        sys.stdout.flush()
    os._exit(code)
