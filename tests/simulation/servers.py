"""The fakes of Redis and Kubernetes, under supervision: every write is shown to the audit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ottoscaler.core.pods import PodSnapshot
from ottoscaler.core.termination import Termination
from ottoscaler.core.victim_selection import BlockingEvent, VictimRequest, VictimSelection
from ottoscaler.ports import Clock, CreateOutcome, ScriptReply, ScriptStatus
from tests.fakes.kubernetes import FakeKubernetes, Pod
from tests.fakes.server import FakeRedis, TaskState
from tests.fakes.stream import FakeStream
from tests.simulation.audit import Audit
from tests.simulation.kept import check_deletion
from tests.simulation.keys import check_turn
from tests.simulation.log_drains import LogAudit


class AuditedKubernetes(FakeKubernetes):
    """The API server."""

    def __init__(self, clock: Clock, audit: Audit) -> None:
        super().__init__(clock)
        self._audit = audit
        self.log_audit: LogAudit | None = None  # None where logs are off

    def create(self, body: bytes) -> PodSnapshot | CreateOutcome:
        self._audit.creating(msgspec.json.decode(body))
        return super().create(body)

    def delete(self, name: str, uid: str, version: str | None, grace_s: int | None = None) -> bool:
        pod = self.find(name)
        if pod is not None:
            metadata = pod["metadata"]
            if uid == metadata["uid"] and version in (None, metadata["resourceVersion"]):
                self._audit.deleting(pod)
                check_deletion(self._audit, pod)
                if self.log_audit is not None:
                    self.log_audit.check_deletion(pod)
        return super().delete(name, uid, version, grace_s)

    def written(self, pod: Pod) -> None:
        self._audit.changed(pod)


class AuditedRedis(FakeRedis):
    """The server of the streams."""

    def __init__(self, clock: Clock, audit: Audit, **settings: Any) -> None:
        super().__init__(clock, **settings)
        self.audit = audit

    def find(self, event_id: str) -> TaskState | None:
        there = event_id in self.tasks
        task = super().find(event_id)
        if there and task is None:
            self.audit.expired(event_id)
        return task

    def publish(self, fields: Mapping[str, str]) -> None:
        super().publish(fields)
        self.audit.published(fields)

    def flush(self) -> None:
        self.audit.flushed()
        super().flush()


class AuditedStream(FakeStream):
    """The protocol."""

    server: AuditedRedis

    def store_attempt(
        self, event_id: str, owner: str, index: int, *, attempt: int, infra_used: int, pod: str, oom_kills: int = 0,
        traced: str = "",
    ) -> ScriptReply:  # fmt: skip
        answer = super().store_attempt(
            event_id, owner, index, attempt=attempt, infra_used=infra_used, pod=pod, oom_kills=oom_kills, traced=traced
        )
        if answer.status is ScriptStatus.OK:
            self.server.audit.intended(pod, event_id)
            check_turn(self.server.audit, event_id)
        return answer

    def store_termination(self, event_id: str, owner: str | None, index: int, termination: Termination) -> ScriptReply:
        answer = super().store_termination(event_id, owner, index, termination)
        if answer.status is ScriptStatus.OK:
            self.server.audit.terminated(event_id, index)
        return answer

    def clear_termination(self, event_id: str, owner: str, index: int, termination: Termination) -> ScriptReply:
        answer = super().clear_termination(event_id, owner, index, termination)
        if answer.status is ScriptStatus.OK and answer.termination is None:
            self.server.audit.withdrawn(event_id, index, termination)
        return answer

    def select_victims(self, event_id: str, owner: str, claim: VictimRequest) -> VictimSelection | BlockingEvent | None:
        task = self.server.find(event_id)
        fresh = task is not None and task.undecided
        could = self.server.audit.could_end(event_id) if fresh else []
        answer = super().select_victims(event_id, owner, claim)
        if fresh and isinstance(answer, VictimSelection):
            self.server.audit.chosen(event_id, could, answer)
        return answer
