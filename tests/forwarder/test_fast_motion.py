"""Hours of logs in fast motion: the forwarder itself, on a clock that jumps to the next thing that happens.

Pods write all the time, and from time to time more than is read at once. Follows are cut, the kubelet rotates its
files, and handler, forwarder and controller are restarted again and again, each at a moment of its own.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from ottoscaler.core.log_progress import LogProgress
from ottoscaler.errors import LogHandlerUnavailable, PodLogUnavailable
from ottoscaler.forwarder import delivery, follower, process
from ottoscaler.forwarder.entries import WorkerIdentity
from ottoscaler.forwarder.lines import Line
from ottoscaler.log_forwarder_messages import Acknowledged, Ended, Figures, Follow, MessageBuffer, PodEnded, Start
from ottoscaler.proto.log_streaming_pb2 import LogBatch, LoggingConfig, LogResponse, RegistrationResponse
from ottoscaler.settings import KubeSettings
from ottoscaler.settings_log_handler import LogHandlerSettings

#: Lines after which the kubelet begins a new file: so few that it does so all the time.
FILE = 400
#: Lines that the handler lets wait: fewer than a burst has.
BUFFER = 100
BURST, BURST_EVERY_S = 500, 120
STORE_S = 5.0
#: Between two stores at most: the controller stores every 5 s here, give or take half, what is reported once a second.
NOT_STORED_S = 2 * 1.5 * STORE_S + 2
_BEGIN = datetime(2026, 5, 1, 12, tzinfo=UTC)


class FastLoop(asyncio.SelectorEventLoop):
    """An event loop that waits for no timer: its clock jumps there."""

    def __init__(self) -> None:
        self.now, self.turns = 0.0, 0
        super().__init__()

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        ready, timers = self._ready, self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0].cancelled():
            heapq.heappop(timers)._scheduled = False
            self._timer_cancelled_count -= 1  # type: ignore[attr-defined]
        if not ready and timers:
            self.now = max(self.now, timers[0].when() + 1e-6)  # a hair more, or it might never be over
        self.turns += 1
        super()._run_once()  # type: ignore[misc]


class Answer:
    """One answer of the kubelet. It is cut at a time, in the middle of a line."""

    def __init__(self, log: KubeletFiles, place: int, *, follow: bool, cut_at: float) -> None:
        self._log = log
        self._place = place
        self._follow = follow
        self._cut_at = cut_at
        self._cut = asyncio.Event()
        self._file_end = place + 1

    def cut(self) -> None:
        self._cut.set()

    async def read(self) -> bytes:
        log, loop = self._log, asyncio.get_running_loop()
        while not self._cut.is_set() and loop.time() < self._cut_at:
            written = log.written(loop.time())
            if self._place >= self._file_end:  # it goes on with the file that is written now, whichever that is
                self._place = log.first(loop.time())
            self._file_end = log.file_end(self._place, loop.time())
            stop = int(min(written, self._place + 50, self._file_end))
            if self._place < stop:
                data = b"".join(log.line(number) for number in range(self._place, stop))
                self._place = stop
                return data
            if not self._follow or loop.time() >= log.ended:
                return b""
            next_at = min(self._cut_at, log.times[written])
            try:
                await asyncio.wait_for(self._cut.wait(), next_at - loop.time())
            except TimeoutError:
                continue
        if self._place < log.written(loop.time()) and not self._cut.is_set():
            self._cut.set()
            return log.line(self._place)[:20]
        raise PodLogUnavailable("cut")


class KubeletFiles:
    """The log of one pod: when each line is written, and in which file it is."""

    def __init__(self, seconds: float, source: random.Random) -> None:
        self.times = [float(second) for second in range(1, int(seconds), 3)]
        for begin in range(60, int(seconds) - 60, BURST_EVERY_S):
            at = begin + source.random() * BURST_EVERY_S / 2
            self.times += [at + number * 0.001 for number in range(BURST)]
        self.times.sort()
        self.ended = self.times[-1]  # when the container has
        self.rotations, self.starts = [0.0], [0]  # when each file begins, and with which line
        for look in range(10, int(seconds), 10):
            if self.written(look) - self.starts[-1] >= FILE:
                self.rotations.append(look)
                self.starts.append(self.written(look))

    def written(self, now: float) -> int:
        return bisect_right(self.times, now)

    def first(self, now: float) -> int:
        """The first line of the file that is written now: what an answer may begin with."""
        return self.starts[bisect_right(self.rotations, now) - 1]

    def file_end(self, number: int, now: float) -> float:
        """The first line that is not in the file of this one any more."""
        following = bisect_right(self.starts, number)
        closed = following < bisect_right(self.rotations, now)
        return self.starts[following] if closed else float("inf")

    def line(self, number: int) -> bytes:
        at = self.times[number]
        stamp = f"{_BEGIN + timedelta(seconds=int(at)):%Y-%m-%dT%H:%M:%S}.{int(at % 1 * 1e9):09d}Z"
        return f"{stamp} {number}\n".encode()

    def place(self, since: str, now: float) -> int:
        """The first line that an answer from this second on has."""
        first = self.first(now)
        if not since:
            return first
        second = (datetime.fromisoformat(since) - _BEGIN).total_seconds()
        return max(first, bisect_right(self.times, second - 1e-9))


@dataclass
class Stored:
    """What the handler has of one worker: sequence -> the number of a line, or what a remark says."""

    entries: dict[int, str] = field(default_factory=dict)
    end: Any = None

    def take(self, entry: Any) -> None:
        kind = "end" if entry.HasField("end") else "gap" if entry.metadata.get("gap") else entry.message
        kind = "dropped" if entry.metadata.get("dropped") else kind
        assert self.entries.setdefault(entry.sequence, kind) == kind, "the same number is another entry"
        if kind == "end":
            self.end = entry.end


class World:
    """The kubelet, the handler, and what the controller and Redis know."""

    def __init__(self, seconds: float, cut_s: float, seed: int) -> None:
        self.source = random.Random(seed)
        self.seconds = seconds
        self.cut_s = cut_s
        self.files = {f"pod-{number}": KubeletFiles(seconds, self.source) for number in range(2)}
        self.stored = {pod: Stored() for pod in self.files}
        self.memory = {pod: LogProgress(pod) for pod in self.files}  # of the controller
        self.redis = dict(self.memory)
        self.ended: dict[str, Ended] = {}
        self.gaps = self.cuts = self.restarts = 0
        self.down_until = 0.0
        self.is_mute = False
        """Whether the handler takes what it is sent and answers nothing."""
        self.refusal = 0
        """The status with which the API server refuses logs, if it does."""
        self.opened = 0
        self.streams: set[Stream] = set()
        self._buffer = MessageBuffer()

    # -- as the writer of the forwarder's connection

    def write(self, data: bytes) -> None:
        for message in self._buffer.feed(data):
            if isinstance(message, Acknowledged):
                for progress in message.progress:
                    known, self.memory[progress.uid] = self.memory[progress.uid], progress
                    if (progress.gaps, progress.dropped) != (known.gaps, known.dropped):
                        self.redis = dict(self.memory)  # the controller stores a place behind a remark at once
            elif isinstance(message, Ended):
                self.ended[message.uid] = message
            elif isinstance(message, Figures):
                self.gaps += message.figures.gaps

    def is_closing(self) -> bool:
        return False

    # -- as PodLogClient

    @asynccontextmanager
    async def open(self, pod: str, *, since: str, follow: bool) -> AsyncIterator[Answer]:
        await asyncio.sleep(0.01)
        if self.refusal:
            raise PodLogUnavailable("refused", status=self.refusal)
        now = asyncio.get_running_loop().time()
        self.cuts += follow
        log = self.files[pod]
        yield Answer(log, log.place(since, now), follow=follow, cut_at=now + self.cut_s if follow else float("inf"))

    async def close(self) -> None: ...

    # -- the course of things

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        forwarder = self.begin()
        reporting = asyncio.ensure_future(forwarder.report_progress())
        while loop.time() < self.seconds:
            await asyncio.sleep(STORE_S * (0.5 + self.source.random()))
            what = self.source.choices(["store", "handler", "forwarder", "controller"], [300, 4, 2, 1])[0]
            if what == "store":
                self.redis = dict(self.memory)
            elif what == "handler":
                self.restart_handler()
            else:
                self.restarts += 1
                reporting.cancel()
                await forwarder.close()
                if what == "controller":
                    self.memory = dict(self.redis)
                await asyncio.sleep(self.source.random() * 3)
                forwarder = self.begin()
                reporting = asyncio.ensure_future(forwarder.report_progress())
        self.down_until = 0.0
        for pod in self.files:
            forwarder.handle(PodEnded(pod))
        while len(self.ended) < len(self.files):
            assert loop.time() < self.seconds + 120
            await asyncio.sleep(1)
        reporting.cancel()
        await forwarder.close()

    def begin(self) -> process.LogForwarder:
        handler = LogHandlerSettings(address=("127.0.0.1", 1), drain_s=60)
        made = process.LogForwarder(Start(KubeSettings(namespace="n"), handler, ()), self)  # type: ignore[arg-type]
        for pod, progress in self.memory.items():
            made.handle(Follow(progress, pod, "t-1", "", {}))
        return made

    def restart_handler(self) -> None:
        """What was stored stays; answers on their way do not."""
        self.restarts += 1
        self.down_until = asyncio.get_running_loop().time() + self.source.choice([1, 10, 200, 900])
        for stream in self.streams:
            stream.end()


class Stream:
    """One stream of the handler."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._ended = False

    def end(self) -> None:
        self._ended = True
        while not self._answers.empty():
            self._answers.get_nowait()
        self._answers.put_nowait(None)

    async def write(self, message: bytes) -> None:
        await asyncio.sleep(0.002)
        if self._ended:
            raise LogHandlerUnavailable("ended")
        if self._world.is_mute:
            return
        entries = LogBatch.FromString(message).entries
        for entry in entries:
            self._world.stored[entry.worker_id].take(entry)
        self._answers.put_nowait(LogResponse(sequence=entries[-1].sequence))

    async def read(self) -> Any:
        answer = await self._answers.get()
        await asyncio.sleep(0.002)
        if answer is None or self._ended:
            raise LogHandlerUnavailable("ended")
        return answer

    async def half_close(self) -> None: ...


class Client:
    """The forwarder's side of the handler."""

    target = "handler:1"

    def __init__(self, world: World) -> None:
        self._world = world
        self.turns = asyncio.Semaphore(16)
        self.open_streams = 0

    async def register(self, registration: Any) -> Any:
        await asyncio.sleep(0.002)
        if asyncio.get_running_loop().time() < self._world.down_until:
            raise LogHandlerUnavailable("down")
        last = max(self._world.stored[registration.worker_id].entries, default=0)
        config = LoggingConfig(max_batch=100, buffer_size=BUFFER)
        return RegistrationResponse(session_id="s", config=config, last_sequence=last)

    @asynccontextmanager
    async def stream(self, _: str, *, batches: bool) -> AsyncIterator[Stream]:
        assert batches
        opened = Stream(self._world)
        self._world.opened += 1
        self._world.streams.add(opened)
        yield opened
        self._world.streams.discard(opened)

    async def close(self) -> None: ...


@contextmanager
def fast(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[FastLoop]:
    """The forwarder's modules on the clock of a loop, with this world around them."""
    loop = FastLoop()
    clock = SimpleNamespace(monotonic=loop.time, time=lambda: _BEGIN.timestamp() + loop.time())
    for module in (follower, delivery, process):
        monkeypatch.setattr(module, "time", clock)
    for module in (follower, delivery, process):  # the same pauses for the same seed
        monkeypatch.setattr(module, "random", world.source)
    monkeypatch.setattr(process, "PodLogClient", lambda *_: world)
    monkeypatch.setattr(process, "LogHandlerClient", lambda _: Client(world))
    yield loop
    loop.close()


def unmarked(stored: Stored, times: Sequence[float]) -> list[tuple[int, int]]:
    """Between which lines others are missing without a mark. Fails where a line came twice, or out of order, but behind
    a mark and within the seconds in which no place was stored. `times`: when each line was written.
    """
    found, last, marked = [], -1, False
    for _, kind in sorted(stored.entries.items()):
        if not kind.isdigit():
            marked = marked or kind in ("gap", "dropped")
            continue
        number = int(kind)
        if number <= last:
            assert marked, f"{number} comes after {last}"
            assert times[last] - times[number] < NOT_STORED_S, f"{number} comes after {last}"
        if number > last + 1 and not marked:
            found.append((last, number))
        last, marked = number, False
    return found


def missing(stored: Stored, total: int) -> set[int]:
    """The lines that the handler has not got."""
    return set(range(total)) - {int(kind) for kind in stored.entries.values() if kind.isdigit()}


@pytest.mark.parametrize(
    ("hours", "cut_s", "seed"),
    [
        (1, 5.0, 1),
        pytest.param(1, 4 * 3600.0, 1, id="1-never", marks=pytest.mark.full),
        pytest.param(2, 5.0, 2, marks=pytest.mark.full),
        pytest.param(12, 5.0, 12, marks=pytest.mark.full),
    ],
)
@pytest.mark.timeout(900)
def test_lines_come_once_but_behind_a_gap_and_none_is_lost_in_silence(
    monkeypatch: pytest.MonkeyPatch, hours: int, cut_s: float, seed: int
) -> None:
    """What is missing was rotated away before it was read; its place is marked, and it is counted.

    A line may come twice where the controller dies and the kubelet has begun a new file behind the stored place. The
    next process finds a gap there, and knows how many entries the handler has beyond that place, but not whether these
    lines are gone or can still be read. It sends what it reads: nothing is lost.
    """
    world = World(hours * 3600.0, cut_s, seed)
    with fast(world, monkeypatch) as loop:
        loop.run_until_complete(world.run())
    assert world.restarts >= 5 * hours
    if cut_s < 10:
        assert world.cuts > hours * 2 * 400
    lost = 0
    for pod, log in world.files.items():
        stored = world.stored[pod]
        assert unmarked(stored, log.times) == []
        away = missing(stored, len(log.times))
        assert all(number + 1 in away or number + 1 in log.starts for number in away)
        assert bool(away) <= bool(stored.end.gaps)
        assert stored.end.dropped == 0
        lost += len(away)
    assert lost, "nothing was rotated away: this run shows nothing"
    assert world.gaps


@pytest.mark.parametrize(("late_s", "half"), [(0.01, False), (0.3, False), (0.3, True), (1.9, False), (1.9, True)])
def test_lines_that_the_runtime_writes_after_the_end_arrive(
    monkeypatch: pytest.MonkeyPatch, late_s: float, *, half: bool
) -> None:
    """containerd calls a container ended before it has written the last 4 KiB of each output. `half`: the last line
    before that is only half there at first.
    """
    world = World(60.0, 1000.0, seed=1)
    log = world.files["pod-0"]
    log.ended = log.times[-1]
    log.times += [log.ended + late_s + number / 10_000 for number in range(200)]
    total, whole = len(log.times), log.line
    last = log.written(log.ended) - 1

    def line(number: int) -> bytes:
        is_half = half and number == last and asyncio.get_running_loop().time() < log.times[-1]
        return whole(number)[:-2] if is_half else whole(number)

    async def run() -> None:
        forwarder = world.begin()
        await asyncio.sleep(log.ended)
        forwarder.handle(PodEnded("pod-0"))
        while "pod-0" not in world.ended:
            await asyncio.sleep(0.1)
        assert asyncio.get_running_loop().time() < log.ended + follower.SETTLE_S + 1.0
        await forwarder.close()

    monkeypatch.setattr(log, "line", line)
    with fast(world, monkeypatch) as loop:
        loop.run_until_complete(run())
    stored = world.stored["pod-0"]
    assert [kind for _, kind in sorted(stored.entries.items())] == [*map(str, range(total)), "end"]
    assert (stored.end.lines, stored.end.gaps, stored.end.dropped) == (total, 0, 0)


@pytest.mark.parametrize(("status", "gaps"), [(404, 1), (400, 0)])
def test_a_log_that_is_gone_or_has_never_been_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, status: int, gaps: int
) -> None:
    """Nothing is waited for. A pod that was deleted has one gap; a container that never started has none."""
    world = World(60.0, 1000.0, seed=1)

    async def run() -> None:
        forwarder = world.begin()
        await asyncio.sleep(5)
        world.refusal = status
        forwarder.handle(PodEnded("pod-0"))
        await asyncio.sleep(1.0)
        assert "pod-0" in world.ended
        await forwarder.close()

    with fast(world, monkeypatch) as loop:
        loop.run_until_complete(run())
    assert world.stored["pod-0"].end.gaps == gaps


@pytest.mark.parametrize(
    ("status", "half", "gaps", "within_s"), [(404, False, 0, 3.0), (404, True, 1, 3.0), (503, False, 1, 35.0)]
)
def test_a_second_read_that_fails_costs_no_end(
    monkeypatch: pytest.MonkeyPatch, status: int, gaps: int, within_s: float, *, half: bool
) -> None:
    """After the first one the pod is deleted, or the API server is away for long. A line of which half was read is
    missing then; what was written late may be.
    """
    world = World(60.0, 1000.0, seed=1)
    log = world.files["pod-0"]
    whole = log.line
    monkeypatch.setattr(log, "line", lambda number: whole(number)[: -2 if half else None])

    async def run() -> None:
        forwarder = world.begin()
        await asyncio.sleep(1.5)
        monkeypatch.setattr(log, "ended", 0.0)
        monkeypatch.setattr(log, "times", log.times[:1])
        forwarder.handle(PodEnded("pod-0"))
        await asyncio.sleep(1.0)
        world.refusal = status
        await asyncio.sleep(within_s)
        assert "pod-0" in world.ended
        await forwarder.close()

    with fast(world, monkeypatch) as loop:
        loop.run_until_complete(run())
    assert world.stored["pod-0"].end.gaps == gaps


def delivering(world: World) -> delivery.Delivery:
    """What carries the log of the first pod, on its own."""
    return delivery.Delivery(Client(world), WorkerIdentity("pod-0", "t-1"), lambda _: None)  # type: ignore[arg-type]


def test_a_handler_that_answers_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where more is to be sent all the time; what it has not answered is sent again."""
    world = World(120.0, 5.0, seed=1)

    async def run() -> None:
        carried = delivering(world)
        running = asyncio.ensure_future(carried.run())
        carried.offer(Line("stdout", "", b"0"))
        await asyncio.sleep(1)
        assert world.stored["pod-0"].entries == {1: "0"}
        world.is_mute = True
        for number in range(1, 10):
            carried.offer(Line("stdout", "", b"%d" % number))
            await asyncio.sleep(2)
        assert world.opened == 1
        await asyncio.sleep(5)
        assert world.opened == 2
        world.is_mute = False
        await asyncio.sleep(40)
        assert list(world.stored["pod-0"].entries.values()) == [str(number) for number in range(10)]
        running.cancel()

    with fast(world, monkeypatch) as loop:
        loop.run_until_complete(run())


def test_nothing_is_done_for_a_stream_on_which_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be a thousand."""
    world = World(120.0, 5.0, seed=1)

    async def run(loop: FastLoop) -> None:
        carried = delivering(world)
        running = asyncio.ensure_future(carried.run())
        carried.offer(Line("stdout", "", b"0"))
        await asyncio.sleep(60)
        assert world.stored["pod-0"].entries == {1: "0"}
        before = loop.turns
        await asyncio.sleep(3600)
        assert loop.turns - before <= 2
        running.cancel()

    with fast(world, monkeypatch) as loop:
        loop.run_until_complete(run(loop))
