"""HTTP_TOKEN_FILE: which requests get figures and the status page. Probes are answered without a token."""

from __future__ import annotations

import hmac
import math
import threading
import time
from typing import Final

from ottoscaler import logs
from ottoscaler.settings_files import file_error_reason, read_text, redact_value

#: How long a token is used without reading its file again, seconds.
CACHE_S: Final = 1.0
_BEARER: Final = "Bearer "

_log = logs.get(__name__)


class HttpToken:
    """The token of a file, read again so that a rotated one takes effect without a restart. Any thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._token = ""  # guarded by _lock
        self._read_at = -math.inf  # guarded by _lock
        self._lines = logs.RateLimited()

    def accepts(self, authorization: str | None) -> bool:
        """Whether an Authorization header carries it. Nothing is accepted while the file is empty or cannot be read."""
        token, header = self._current(), authorization or ""
        if not token or not header.startswith(_BEARER):
            return False
        given = header.removeprefix(_BEARER).strip()
        # in constant time: otherwise the time of an answer would say how many characters are right
        return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode("utf-8", "replace"))

    def _current(self) -> str:
        with self._lock:
            now = time.monotonic()
            if now - self._read_at >= CACHE_S:
                self._read_at, self._token = now, self._read()
            return self._token

    def _read(self) -> str:
        try:
            return read_text(self._path).strip()
        except (OSError, ValueError) as error:
            if self._lines.is_due("unreadable"):
                _log.error(
                    "web.token", "HTTP_TOKEN_FILE=%s cannot be read (%s): page and figures are closed",
                    redact_value(self._path), file_error_reason(error),
                )  # fmt: skip
            return ""
