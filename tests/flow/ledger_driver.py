"""A ledger at which a test stands in for the threads."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from ottoscaler.core.events import EventType, ScaleEvent
from ottoscaler.core.overrides import DEFAULT_PRIORITY, Overrides
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.owned_tasks import WorkerRun
from ottoscaler.flow.registry import PodRegistry
from ottoscaler.ports import OpenTask, PodList, StoredWorker
from tests.fakes.clock import ManualClock
from tests.flow.pods import INSTANCE


def task(
    event_id: str, count: int = 1, *workers: StoredWorker, epoch: int = 1, cancels: int = 0, tenant: str = "",
    priority: int = DEFAULT_PRIORITY,
) -> OpenTask:  # fmt: skip
    """An accepted task, with what is stored of its workers. Its tenant is in the field `tenant`."""
    event = ScaleEvent(
        event_id=event_id,
        stream_id="1-0",
        type=EventType.SCALE_UP,
        pod_count=count,
        task_id="t",
        passed_on={"tenant": tenant} if tenant else {},
        overrides=Overrides(priority=priority),
    )
    stored = {worker.index: worker for worker in workers}
    return OpenTask(event, f"c1/b1/{epoch}", workers=stored, cancel_count=cancels)


class LedgerDriver:
    """A ledger over a registry with a known and empty cluster. One thread, that of the test."""

    def __init__(
        self, max_workers: int = 10, read_ahead: int = 5, admit_max: int = 100, max_pending: int = 0,
        tenant_field: str = "",
    ) -> None:  # fmt: skip
        self.clock = ManualClock()
        self.registry = PodRegistry(self.clock)
        self.registry.replace(PodList([], "1"))
        self.ledger = Ledger(
            self.registry, self.clock, instance=INSTANCE, max_workers=max_workers, read_ahead=read_ahead,
            admit_max=admit_max, max_pending=max_pending, tenant_field=tenant_field,
        )  # fmt: skip

    def take(self) -> WorkerRun:
        """The next worker; there has to be one."""
        run = self.ledger.take()
        assert run is not None
        return run

    def order(self, count: int) -> list[str]:
        """The given number of next workers, as event/index."""
        return [f"{run.task.event.event_id}/{run.life.index}" for run in (self.take() for _ in range(count))]

    def pause(self, run: WorkerRun, seconds: float, **life: Any) -> None:
        """What a thread does that gives a worker back."""
        run.life = replace(run.life, **life)
        self.ledger.pause(run, self.clock.now() + seconds)
        self.ledger.let_go(run)

    def end(self, run: WorkerRun) -> None:
        """What a thread does when nothing is left to do."""
        self.ledger.worker_ended(run)
        self.ledger.let_go(run)
