"""What the workers of the torture write, and a server that gives it as a kubelet does.

A worker writes a line each tenth of a second, and one when it ends. Its log follows from when it started and ended, so
it is the same whenever it is read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from tests.torture.kubelet import Run

EVERY_S: Final = 0.1
LOOK_S: Final = 0.2
#: What a program writes is readable a little later, so that no line is shown that is later than its end.
_LATE_S: Final = 0.3
_GONE: Final = b'{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}'
_WAITING: Final = b'{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"BadRequest","code":400}'


def written(run: Run, until: float) -> list[tuple[float, str]]:
    """Time and text of each line that a worker has written until then."""
    last = run.ended_at or until
    count = max(0, int((min(last, until) - run.started_at) / EVERY_S) + 1)
    lines = [(run.started_at + number * EVERY_S, f"{run.name} {number}") for number in range(count)]
    return [*lines, (last, f"{run.name} ends")] if run.ended_at else lines


class PodLogServer:
    """Serves /NAME/log on 127.0.0.1."""

    def __init__(self, find: Callable[[str], Run | None]) -> None:
        """`find`: the newest pod of a name."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(find))
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="pod-logs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


def _handler(find: Callable[[str], Run | None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            query = parse_qs(asked.query)
            run = find(asked.path.split("/")[-2])
            if run is None or run.gone or not run.started_at:
                self._refuse(400 if run is not None and not run.gone else 404)
                return
            self.send_response(200)
            self.end_headers()
            since = query.get("sinceTime", ["1970-01-01T00:00:00Z"])[0]
            begin = datetime.fromisoformat(since).timestamp()
            with suppress(OSError):
                for data in _parts(run, begin, follow=query.get("follow") == ["true"]):
                    self.wfile.write(data)
                    self.wfile.flush()

        def _refuse(self, status: int) -> None:
            body = _GONE if status == 404 else _WAITING
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    return Handler


def _parts(run: Run, begin: float, *, follow: bool) -> Iterator[bytes]:
    sent = 0
    while True:
        over = bool(run.ended_at)  # before the look: what is written is whole then
        lines = [line for line in written(run, run.ended_at or time.time() - _LATE_S) if line[0] >= begin]
        yield b"".join(_line(*line) for line in lines[sent:])
        sent = len(lines)
        if over or not follow or run.gone:
            return
        time.sleep(LOOK_S)


def _line(at: float, text: str) -> bytes:
    nanoseconds = round(at % 1 * 1e9) % 1_000_000_000
    return f"{datetime.fromtimestamp(int(at), UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z {text}\n".encode()
