"""The rules by which hypothesis plays the world: what may happen, in which order it likes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.simulation.audit import SHOWN
from tests.simulation.keys import check_limits
from tests.simulation.links import KINDS, MISHAPS, Mishap, Move
from tests.simulation.log_drains import HANDLERS
from tests.simulation.replica import ROLES
from tests.simulation.world import HAPPENINGS, STEPS_S, World

SMALL = st.integers(0, 7)
_MOVES = st.tuples(st.sampled_from((*HAPPENINGS, "crash", "stop", "start")), SMALL, SMALL)
_MISHAP = st.builds(
    Mishap,
    st.sampled_from(KINDS),
    st.integers(1, 3),
    st.sampled_from(MISHAPS),
    st.lists(_MOVES, max_size=6).map(tuple),
)
_MISHAPS = st.lists(_MISHAP, max_size=4)
_MAX_EVENTS = 5


class Simulation(RuleBasedStateMachine):
    """Controllers in a hostile world; in the end nothing is lost and nothing was done twice."""

    @initialize(
        max_workers=st.integers(1, 3),
        replicas=st.integers(1, 3),
        patient=st.booleans(),
        events=st.lists(st.tuples(st.integers(1, 3), st.integers(-1, 2)), min_size=1, max_size=3),
        wipes=st.integers(0, 5),
        max_pending=st.sampled_from((0, 0, 1, 2)),
        keep=st.booleans(),
    )
    def begin(
        self, max_workers: int, replicas: int, patient: bool, events: Sequence[tuple[int, int]], wipes: int,
        max_pending: int, keep: bool,
    ) -> None:  # fmt: skip
        """A world with controllers and work. In few of them Redis may be wiped: less is promised then."""
        self.world = self.new_world(max_workers=max_workers, patient=patient, max_pending=max_pending, keep=keep)
        self.audit = self.world.audit
        self.may_wipe = wipes == 5
        for who in range(replicas):
            self.world.start(who)
        for count, limit in events:
            self.scale_up(count, "", True, limit)

    def new_world(self, **chosen: Any) -> World:
        """The world that is played in."""
        return World(**chosen)

    # -- events

    @precondition(lambda self: len(self.audit.sent) < _MAX_EVENTS)
    @rule(
        count=st.integers(1, 3), group=st.sampled_from(("", "", "k")), named=st.booleans(), limit=st.integers(-2, 3),
        within_s=st.sampled_from((None, None, *STEPS_S)), priority=st.sampled_from((None, None, 0, 3, 9)),
    )  # fmt: skip
    def scale_up(
        self, count: int, group: str, named: bool, limit: int, within_s: int | None = None, priority: int | None = None
    ) -> None:
        """A producer wants workers; perhaps instead of older ones, or not besides others of the same key, or none that
        starts too late, or before or behind others.
        """
        fields = {"type": "scale_up", "pod_count": str(count), "task_id": f"t{len(self.audit.sent) % 2}"}
        if limit > 0:
            fields |= {"concurrency_key": "c", "concurrency_limit": str(limit)}
        fields["team"] = "ab"[len(self.audit.sent) % 2]
        if priority is not None:
            fields["priority"] = str(priority)
        if within_s is not None:
            fields["not_after"] = datetime.fromtimestamp(self.world.clock.now() + within_s, UTC).isoformat()
        self._send(fields | ({"supersedes": group} if group else {}), named=named)

    @precondition(lambda self: 0 < len(self.audit.sent) < _MAX_EVENTS)
    @rule(count=st.integers(0, 2), mode=st.sampled_from(("kill", "drain")), task=st.sampled_from(("t0", "t1", "")))
    def scale_down(self, count: int, mode: str, task: str) -> None:
        """A producer wants fewer."""
        fields = {"type": "scale_down", "mode": mode, "pod_count": str(count or 1)}
        if task:
            fields |= {"task_id": task}
            if not count:
                del fields["pod_count"]
        self._send(fields)

    @precondition(lambda self: self.audit.sent and not self.audit.flushes)
    @rule(which=SMALL)
    def send_again(self, which: int) -> None:
        """A producer that got no answer sends the same event again."""
        named = [fields for fields in self.audit.sent.values() if "event_id" in fields]
        if named:
            self.world.redis.add(named[which % len(named)])

    @precondition(lambda self: not self.world.cursed)
    @rule(which=SMALL)
    def curse(self, which: int) -> None:
        """Our own code has a defect that shows with one of the events, each time."""
        event_id = list(self.audit.sent)[which % len(self.audit.sent)]
        self.audit.note(f"{event_id} is cursed")
        self.world.cursed.add(event_id)

    def _send(self, fields: dict[str, str], *, named: bool = False) -> None:
        if named:
            fields = fields | {"event_id": f"e-{len(self.audit.sent)}"}
        stream_id = self.world.redis.add(fields)
        self.audit.send(fields.get("event_id", stream_id), fields)

    # -- controllers

    @rule(role=st.sampled_from(ROLES), who=SMALL, mishaps=_MISHAPS)
    def run_thread(self, role: str, who: int, mishaps: Sequence[Mishap]) -> None:
        """One of a controller's threads is carried on by a step."""
        with self.world.mishaps(mishaps):
            self.world.act((role, who, 0))

    @rule(who=SMALL, which=SMALL, steps=st.integers(1, 6), mishaps=_MISHAPS)
    def run_workers(self, who: int, which: int, steps: int, mishaps: Sequence[Mishap]) -> None:
        """Workers of a controller are carried on by a few effects."""
        with self.world.mishaps(mishaps):
            for _ in range(steps):
                self.world.act(("worker", who, which))

    @rule(mishaps=_MISHAPS, seconds=st.integers(1, 8), pods=st.booleans())
    def live(self, mishaps: Sequence[Mishap], seconds: int, pods: bool) -> None:
        """Every replica is carried on."""
        with self.world.mishaps(mishaps):
            self.world.live(seconds, pods=pods)

    @rule(mishaps=_MISHAPS)
    def bustle(self, mishaps: Sequence[Mishap]) -> None:
        """Every replica is carried on, and no time passes."""
        with self.world.mishaps(mishaps):
            self.world.bustle()

    @rule(who=SMALL, kind=st.sampled_from(("crash", "stop", "start", "start")))
    def come_and_go(self, who: int, kind: str) -> None:
        """A controller is killed, stopped or started."""
        self.world.act((kind, who, 0))

    @precondition(lambda self: self.world.redis.leases)
    @rule(who=SMALL, often=st.booleans())
    def die_at_the_start(self, who: int, often: bool) -> None:
        """A consumer takes its tasks up, and dies of it, perhaps again and again."""
        for _ in range(10 if often else 2):
            self.world.start(who)
            newest = self.world.replicas[-1]
            newest.act("lease")
            newest.act("takeover")
            newest.kill()

    # -- the rest of the world

    @rule(which=SMALL, how=SMALL)
    def kubelet(self, which: int, how: int) -> None:
        """A pod gets on."""
        self.world.kubelet(which, how)

    @rule()
    def kubelets(self) -> None:
        """All pods get on."""
        self.world.kubelets()

    @rule(which=SMALL, how=SMALL)
    def bad_luck(self, which: int, how: int) -> None:
        """A pod is deleted from outside, its node dies, it is evicted …"""
        self.world.luck(which, how)

    @rule(seconds=st.sampled_from((*STEPS_S, *STEPS_S, 1300, 4000)))
    def pass_time(self, seconds: int) -> None:
        """No replica runs for a while; once in a while for so long that what waits grows more urgent, or for longer
        than events are known.
        """
        self.world.pass_time(seconds)

    @precondition(lambda self: self.world.late)
    @rule(which=SMALL)
    def deliver(self, which: int) -> None:
        """A request arrives that its sender has given up."""
        self.world.deliver(which)

    @rule(what=st.sampled_from(("stale lists", "lists", "410", "no Redis", "Redis", "no Kubernetes", "Kubernetes")))
    def servers(self, what: str) -> None:
        """A server is away, is back, answers from a stale cache, or forgets the watched past."""
        self.world.servers(what)

    @precondition(lambda self: self.may_wipe and not self.audit.flushes)
    @rule()
    def wipe(self) -> None:
        """FLUSHALL."""
        self.world.redis.flush()

    # -- what must hold

    @invariant()
    def nothing_is_wrong(self) -> None:
        """Results once, no program twice, no running pod deleted wrongly … (audit.py)."""
        if hasattr(self, "world"):
            check_limits(self.audit)
            self._check()

    def teardown(self) -> None:
        """Without further faults everything comes to its end."""
        if hasattr(self, "world") and not self.audit.faults:
            self.world.settle()
            self._check()

    def _check(self) -> None:
        if self.audit.faults:
            story = "\n".join(self.audit.lines[-SHOWN:])
            raise AssertionError(f"{story}\n\n{self.audit.faults[0]}")


class SimulationWithLogs(Simulation):
    """The same with logs on, and a handler that answers at once, late or never."""

    def new_world(self, **chosen: Any) -> World:
        return World(**chosen, handler=HANDLERS[0])

    @rule(handler=st.sampled_from(HANDLERS))
    def change_handler(self, handler: str) -> None:
        """It answers in this way from here on."""
        self.world.note(f"the log handler is {handler}")
        self.world.handler = handler

    @rule(who=SMALL, which=SMALL)
    def deliver_log(self, who: int, which: int) -> None:
        """The handler acknowledges a log, so far or to its end."""
        self.world.deliver_log(who, which)

    @precondition(lambda self: any(replica.waits_for_log for replica in self.world.replicas))
    @rule(away=st.booleans())
    def die_while_a_pod_waits(self, away: bool) -> None:
        """A controller is killed before a log has arrived, perhaps with the handler away, and comes back."""
        if away:
            self.change_handler("away")
        for who, replica in enumerate(list(self.world.replicas)):
            if replica.waits_for_log:
                replica.kill()
                self.world.start(who)

    @rule(who=SMALL, mishaps=_MISHAPS)
    def drain_logs(self, who: int, mishaps: Sequence[Mishap]) -> None:
        """The threads that wait for logs do what is due."""
        with self.world.mishaps(mishaps):
            self.world.act(("log_drain", who, 0))


__all__ = ["Move", "Simulation", "SimulationWithLogs"]
