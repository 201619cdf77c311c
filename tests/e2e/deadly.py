"""The controller with an event that kills it: `deadly.py accept|create|record_result` dies by SIGKILL each time that it
is about to do that with the event of the id `deadly`. What production runs has no such switch.

It dies a moment later, as one that runs out of memory does, so that what it has besides gets on meanwhile: an event
that ends every process at once takes what they had in hand along, as deploy/GUARANTEES.md says.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ottoscaler.adapters.redis_backend import RedisBackend
from ottoscaler.cli import run
from ottoscaler.core import manifest

DEADLY: Final = "deadly"
MOMENT_S: Final = 0.3
#: Where it dies: the object, its function, and whether a call is about that event.
STEPS: Final[dict[str, tuple[Any, str, Callable[..., bool]]]] = {
    "accept": (
        RedisBackend,
        "accept",
        lambda _, events, __: any(event.event_id == DEADLY for event, _digest in events),
    ),
    "create": (manifest, "build_pod", lambda _, event, *__, **___: event.event_id == DEADLY),
    "record_result": (RedisBackend, "record_result", lambda _, event_id, *__, **___: event_id == DEADLY),
}


def arrange(step: str) -> None:
    """From now on that step is the last one."""
    owner, name, concerns = STEPS[step]
    done = getattr(owner, name)

    @wraps(done)
    def changed(*arguments: Any, **options: Any) -> Any:
        if concerns(*arguments, **options):
            threading.Event().wait(MOMENT_S)
            os.kill(os.getpid(), signal.SIGKILL)
        return done(*arguments, **options)

    setattr(owner, name, changed)


if __name__ == "__main__":
    arrange(sys.argv[1])
    sys.exit(run.main([]))
