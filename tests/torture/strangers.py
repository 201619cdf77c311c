"""A proxy before the API server that answers for it, and servers' clocks that are wrong: the gateway's commands."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from tests.torture import gateway

ROOT: Final = Path(__file__).resolve().parents[2]
_PAGES: Final = (302, 403, 404, 413, 502, 503, 200)
_VERBS: Final = ("create", "create", "get", "delete", "delete", "list", "watch", "any")
#: So many orders may wait for a request that they fit to.
_OPEN: Final = 6


class Strangers:
    """The gateway's process and what is asked of it. One thread, but for the one that reads the answers."""

    def __init__(self, kubeconfig: Path, slots: int, log_port: int, dice: random.Random) -> None:
        self._dice = dice
        self._process = subprocess.Popen(
            [sys.executable, "-m", gateway.__name__, str(kubeconfig), str(slots), str(log_port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.ports: list[int] = json.loads(self._process.stdout.readline())
        self._lock = threading.Lock()
        self._hits: Counter[str] = Counter()  # guarded by _lock
        self._asked: Counter[str] = Counter()
        self._next_at = 0.0
        self._reader = threading.Thread(target=self._read, name="gateway-hits", daemon=True)
        self._reader.start()

    @property
    def hits(self) -> Counter[str]:
        """By kind: how often a controller got such an answer."""
        with self._lock:
            return Counter(self._hits)

    def tick(self, wanted: dict[str, float]) -> None:
        """Order what there was not enough of, a few at a time."""
        now, hits = time.monotonic(), self.hits
        if now < self._next_at:
            return
        self._next_at = now + self._dice.uniform(0.05, 0.4)
        for kind, count in wanted.items():
            if hits[kind] < int(count) and self._asked[kind] - hits[kind] < _OPEN:
                self._asked[kind] += 1
                self._order(self._fault(kind))

    def clear(self) -> None:
        """True answers from now on."""
        self._asked = self.hits
        self._order({"fault": "clear"})

    def shift(self, seconds: int) -> None:
        """The API server's clock is wrong by this much."""
        self._order({"fault": "shift", "seconds": seconds})

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._reader.join(5)

    def _fault(self, kind: str) -> dict[str, Any]:
        port = self._dice.choice((0, *self.ports))
        if kind == "conflict":
            return {"fault": kind, "verb": "create", "port": port}
        verb = self._dice.choice(_VERBS)
        if verb == "list":  # no controller lists before a watch has failed
            self._order({"fault": kind, "verb": "watch", "port": port, "status": 502, "body": "html"})
        return {
            "fault": kind, "verb": verb, "port": port, "status": self._dice.choice(_PAGES),
            "body": self._dice.choice(("html", "html", "text")), "after": self._dice.random() < 0.3,
        }  # fmt: skip

    def _order(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._lock:
                self._hits[json.loads(line)["fault"]] += 1
