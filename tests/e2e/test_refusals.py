"""Redis is there and refuses us, from one moment to the next: the log says what is refused, to which user and
what to do, in few lines and without a secret; when it is mended, nothing is lost.

All refusals are met at once, by a system each: what takes time here is to see that the log stays quiet.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.e2e.bare import BareSystem, warnings_since
from tests.e2e.controller import Controller
from tests.e2e.system import Pod
from tests.e2e.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

_SECRET = "s3cr3t-and-never-seen"
_OTHER_SECRET = "n3w-s3cr3t-and-never-seen"
_USER = "otto"
#: How long they are refused after they have said so.
_REFUSED_S = 8.0
#: Of half a minute with five kinds of calls that fail: each says it the first, second, fourth, eighth … time.
_FEW_LINES = 40
#: A connection that nothing is lost on is enough: no process listens there.
_NO_MASTER = ("127.0.0.1", 1)


@dataclass(frozen=True)
class Refusal:
    """What an operator, or an accident, does to a Redis; how it is mended; what the log has to say."""

    name: str
    inflict: Callable[[BareSystem], object]
    mend: Callable[[BareSystem], object]
    words: tuple[str, ...]
    environ: dict[str, str] = field(default_factory=lambda: {"REDIS_USERNAME": _USER, "REDIS_PASSWORD": _SECRET})


def _user(system: BareSystem, *rules: str) -> None:
    system.redis.execute_command("ACL", "SETUSER", _USER, *rules)


def _new_password(system: BareSystem, password: str) -> None:
    _user(system, "resetpass", f">{password}")
    system.redis.execute_command("CLIENT", "KILL", "USER", _USER, "SKIPME", "yes")


def _lock(system: BareSystem) -> None:
    system.redis.config_set("requirepass", _OTHER_SECRET)
    system.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def _load_slowly(system: BareSystem) -> None:
    """So many keys, each read slowly, that it takes about as long as the others are refused.

    They are large and cannot be compressed: while it reads, the server looks at its connections once in so many bytes.
    """
    system.redis.mset({f"ballast:{number}": secrets.token_hex(1024) for number in range(800)})
    system.redis.bgrewriteaof()
    wait_for(lambda: not system.redis.info("persistence")["aof_rewrite_in_progress"], "the keys to be written")
    system.server.kill()
    system.server.start_loading(**{"key-load-delay": 10_000, "loading-process-events-interval-bytes": 1024})


REFUSALS = (
    Refusal(
        "read-only",
        lambda system: system.redis.replicaof(*_NO_MASTER),
        lambda system: system.redis.replicaof("NO", "ONE"),
        ("read-only replica", "set REDIS_HOST to the master"),
    ),
    Refusal(
        "loading",
        _load_slowly,
        lambda system: system.server.await_answer(),
        ("still loading its data",),
        {},  # users are not among its data
    ),
    Refusal(
        "full",
        lambda system: system.redis.config_set("maxmemory", "1mb"),
        lambda system: system.redis.config_set("maxmemory", "0"),
        ("out of memory", "raise maxmemory"),
    ),
    Refusal(
        "command",
        lambda system: _user(system, "-evalsha", "-xreadgroup"),
        lambda system: _user(system, "+@all"),
        (f"(user {_USER})", "does not permit a command", "'xreadgroup' command", "give the user the rights"),
    ),
    Refusal(
        "script",
        lambda system: _user(system, "-hset"),
        lambda system: _user(system, "+@all"),
        (f"(user {_USER})", "does not permit a command", "may not run HSET on the key", "give the user the rights"),
    ),
    Refusal(
        "password",
        lambda system: _new_password(system, _OTHER_SECRET),
        lambda system: _user(system, "resetpass", f">{_SECRET}"),
        (f"(user {_USER})", "refuses our user or password", "set REDIS_USERNAME and REDIS_PASSWORD"),
    ),
    Refusal(
        "locked",
        _lock,
        lambda system: system.redis.config_set("requirepass", ""),
        ("refuses our user or password", "set REDIS_USERNAME and REDIS_PASSWORD"),
        {},
    ),
)


class Patient:
    """A system that is refused. One thread."""

    def __init__(self, system: BareSystem, refusal: Refusal) -> None:
        self.refusal = refusal
        self.system = system
        _user(system, "on", f">{_SECRET}", "~*", "&*", "+@all")
        self.controller: Controller = system.launch(LOG_LEVEL="DEBUG", **refusal.environ)
        self._event_id = ""
        self._pods: list[Pod] = []
        self._before = 0

    def begin(self) -> None:
        """A task in the middle of its run."""
        self.controller.ready()
        self._event_id = self.system.send(type="scale_up", pod_count=2)
        self._pods = self.system.run(self._event_id, 2)
        self._before = len(self.controller.lines)

    def suffer(self) -> None:
        """It is refused, and its workers end."""
        self.refusal.inflict(self.system)
        self.system.succeed(self._pods)

    def said(self) -> None:
        """Wait for a line with all that it has to say."""

        def look() -> bool:
            lines = warnings_since(self.controller, self._before)
            return any(all(word in line for word in self.refusal.words) for line in lines)

        wait_for(look, f"a line about {self.refusal.name} with {self.refusal.words}")

    def recovered(self) -> int:
        """All is reported once, also what came later; returns how many warnings there were."""
        later = self.system.send(type="scale_up")
        self.system.succeed(self.system.run(later))
        self.system.once(self._event_id, self._pods)
        assert self.system.finished(later)["succeeded"] == "1"
        assert self.controller.process.poll() is None
        assert _SECRET not in self.controller.text
        assert _OTHER_SECRET not in self.controller.text
        return len(warnings_since(self.controller, self._before))


@pytest.mark.contract("6.secrets")
def test_refusals(bare_system: Callable[[], BareSystem]) -> None:
    """Each is named, none fills the log, and none costs anything when it is over."""
    patients = [Patient(bare_system(), refusal) for refusal in REFUSALS]
    for patient in patients:
        patient.begin()
    for patient in patients:
        patient.suffer()
    for patient in patients:
        patient.said()
    time.sleep(_REFUSED_S)
    for patient in patients:
        patient.refusal.mend(patient.system)
    warnings: dict[str, Any] = {patient.refusal.name: patient.recovered() for patient in patients}
    print("warnings:", warnings)
    assert max(warnings.values()) <= _FEW_LINES, warnings
