"""Clocks that belong to none of the measured systems: the API server's audit log and counters, and /proc."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_COUNTER = re.compile(r"^apiserver_request_total\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class _Reference(msgspec.Struct, frozen=True):
    resource: str = ""
    name: str = ""


class _Answer(msgspec.Struct, frozen=True):
    code: int = 0


class _Line(msgspec.Struct, frozen=True):
    stage: str
    verb: str
    received: str = msgspec.field(name="requestReceivedTimestamp")
    staged: str = msgspec.field(name="stageTimestamp")
    about: _Reference = msgspec.field(default=_Reference(), name="objectRef")
    answer: _Answer = msgspec.field(default=_Answer(), name="responseStatus")


_decoder = msgspec.json.Decoder(_Line)


@dataclass(frozen=True, slots=True)
class Call:
    """A request as the API server saw it; times in seconds since the epoch. Code 0: not answered yet."""

    verb: str
    resource: str
    name: str
    received: float
    answered: float = 0.0
    code: int = 0


class AuditLog:
    """Requests of ServiceAccounts, read as the file grows. One thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.asked: list[Call] = []
        """Requests as they came in, since `forget`."""
        self.answered: list[Call] = []
        """Requests as they were answered, since `forget`."""
        self.refused = 0
        """Creates that were refused, since `begin`; one that met its own pod was not."""

    def begin(self) -> None:
        """A new run: only what comes from now on."""
        self._offset = self._path.stat().st_size if self._path.exists() else 0
        self.asked, self.answered = [], []
        self.refused = 0

    def forget(self) -> None:
        """A new part of the same run: what was refused so far still counts."""
        self.look()
        self.asked, self.answered = [], []

    def look(self) -> AuditLog:
        """Read what is new. Returns itself."""
        if not self._path.exists():
            return self
        with self._path.open("rb") as log:
            log.seek(self._offset)
            new = log.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._note(_decoder.decode(line))
        return self

    def _note(self, line: _Line) -> None:
        about, received = line.about, _epoch(line.received)
        if line.stage == "RequestReceived":
            self.asked.append(Call(line.verb, about.resource, about.name, received))
            return
        call = Call(line.verb, about.resource, about.name, received, _epoch(line.staged), line.answer.code)
        self.answered.append(call)
        self.refused += call.verb == "create" and call.resource == "pods" and call.code >= 300 and call.code != 409

    def done(self, verb: str) -> list[Call]:
        """Requests on pods that were carried out."""
        return [call for call in self.answered if call.verb == verb and call.resource == "pods" and call.code < 300]

    def by_verb(self) -> Counter[str]:
        """All requests that came in, of whatever resource: what is not a pod's is named with it."""
        return Counter(call.verb if call.resource == "pods" else f"{call.verb} {call.resource}" for call in self.asked)


def _epoch(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


class Counters:
    """`apiserver_request_total`, which counts for itself. One thread."""

    def __init__(self, admin: Any) -> None:
        self._admin = admin

    def pods(self) -> Counter[str]:
        """Requests on pods themselves so far, by verb; those of the node and of the harness included."""
        pool, host = self._admin.rest_client.pool_manager, self._admin.configuration.host
        text = pool.request("GET", f"{host}/metrics", timeout=20, retries=False).data.decode()
        found: Counter[str] = Counter()
        for labels, value in _COUNTER.findall(text):
            of = dict(_LABEL.findall(labels))
            if of["resource"] == "pods" and not of["subresource"]:
                found[of["verb"]] += int(float(value))
        return found


# -- /proc


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time of these processes so far; of one that has ended, nothing."""
    return sum(_cpu_s(pid) for pid in pids)


def _cpu_s(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def status(pid: int, name: str) -> int:
    """A figure of /proc/PID/status: VmRSS and VmHWM in KiB, Threads."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


@dataclass(frozen=True, slots=True)
class Machine:
    """What the whole machine has done so far, and how much of it was ours."""

    busy_s: float
    ours_s: float
    at: float

    def foreign(self, since: Machine) -> float:
        """The share of the machine that others took since then, 0 to 1."""
        cores = os.cpu_count() or 1
        others = (self.busy_s - since.busy_s) - (self.ours_s - since.ours_s)
        return max(0.0, others / max(1e-9, (self.at - since.at) * cores))


def machine(pids: Sequence[int]) -> Machine:
    """Now. The kernel's own interrupts count for no process; time that a hypervisor stole is foreign."""
    stat = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()
    uptime = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
    user, nice, system, steal = (int(stat[n]) * _TICK_S for n in (1, 2, 3, 8))
    return Machine(user + nice + system + steal, cpu_s([*pids, os.getpid()]), uptime)
