"""What the program says: one line per event, JSON for machines or text for a terminal, and never a secret.

A line is an event with a stable dotted name and facts, so that a search by a name or an id shows what happened; the
message is for people. Callers get a `Log` for their module and name the ids once per thread with `bind`. Facts never
touch the attributes of a `LogRecord`: the standard library raises in the calling thread when the two clash.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, TextIO
from urllib.parse import quote

from pythonjsonlogger.json import JsonFormatter

from ottoscaler.errors import OttoscalerError

PACKAGE: Final = "ottoscaler"
#: Longest text of one field, in characters: what comes in events must not flood the log.
MAX_TEXT: Final = 2000
MAX_TRACEBACK: Final = 8000
MASK: Final = "***"

_HEAD: Final = ("timestamp", "level", "event", "message")
_USUAL: Final = ("event_id", "task_id", "worker", "pod", "attempt", "duration_s", "error")
_SHORTEST_SECRET: Final = 4
_ALIKE: Final = 80
_FORGOTTEN_S: Final = 60.0
#: What a text has, in small letters, wherever the pattern may match: looking for that is cheap. Pattern, mask.
_PATTERNS: Final = (
    ("://", re.compile(r"://[^\s/?#]*@"), f"://{MASK}@"),
    ("auth", re.compile(r"(?i)\b(authorization[\"']?\s*[:=]\s*[\"']?)[^\"'\r\n,}]+"), rf"\1{MASK}"),
    ("bearer", re.compile(r"(?i)\b(bearer)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {MASK}"),
    ("passw", re.compile(r"(?i)(passw(?:or)?d[\"']?\s*[:=]\s*[\"']?)[^\s\"',;&}]+"), rf"\1{MASK}"),
)
_bound: ContextVar[Mapping[str, object]] = ContextVar("ottoscaler.logs.bound", default=MappingProxyType({}))


class Log:
    """Says events on behalf of one module. Any thread; never raises, whatever the facts are called or contain."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, message: str, /, *args: object, **facts: object) -> None:
        """For debugging: details, polls, rejected alternatives."""
        self._log_event(logging.DEBUG, event, message, args, facts)

    def info(self, event: str, message: str, /, *args: object, **facts: object) -> None:
        """The main flow: `log.info("worker.created", "Creating worker pod: %s", name, pod=name)`."""
        self._log_event(logging.INFO, event, message, args, facts)

    def warning(self, event: str, message: str, /, *args: object, **facts: object) -> None:
        """Not as it should be, and the program goes on by itself."""
        self._log_event(logging.WARNING, event, message, args, facts)

    def error(self, event: str, message: str, /, *args: object, **facts: object) -> None:
        """An operator has to act."""
        self._log_event(logging.ERROR, event, message, args, facts)

    def exception(self, event: str, message: str, /, *args: object, **facts: object) -> None:
        """As `error`, inside an `except` block, with the exception and its traceback."""
        self._log_event(logging.ERROR, event, message, args, _facts_of(sys.exception()) | facts)

    def _log_event(
        self, level: int, event: str, message: str, args: tuple[object, ...], facts: dict[str, object]
    ) -> None:
        if self._logger.isEnabledFor(level):
            extra = {"otto_event": event, "otto_facts": {**_bound.get(), **facts}}
            # `Logger.log` does this too, but first looks for the place in the code, which no line of ours shows
            name, text = self._logger.name, _format_message(message, args)
            self._logger.handle(self._logger.makeRecord(name, level, "", 0, text, (), None, extra=extra))


class RateLimited:
    """A rate limit for like log lines: the first, the second, the fourth, the eighth … of an outage are logged.

    An outage that is long, or meets hundreds of workers, must not fill the log. Any thread.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._counts: dict[str, tuple[int, float]] = {}  # guarded by _lock: how often, and when last

    def is_due(self, text: str) -> bool:
        """Is this line to be logged? Lines with the same beginning count together; a minute without any resets the
        count.
        """
        key, now = text[:_ALIKE], self._now()
        with self._lock:
            for old in [old for old, (_, last) in self._counts.items() if now - last > _FORGOTTEN_S]:
                del self._counts[old]
            count = self._counts.get(key, (0, now))[0] + 1
            self._counts[key] = (count, now)
        return count & (count - 1) == 0


def get(name: str) -> Log:
    """The log of a module: `log = logs.get(__name__)`."""
    return Log(name)


def bind(**facts: object) -> AbstractContextManager[None]:
    """Add facts to each line that this thread writes inside the block; inner ones win."""
    return _Bound({**_bound.get(), **facts})


class _Bound:
    """Every live worker is inside such a block for as long as it runs: 320 bytes, where a generator takes 800."""

    __slots__ = ("_facts", "_token")

    def __init__(self, facts: Mapping[str, object]) -> None:
        self._facts = facts

    def __enter__(self) -> None:
        self._token = _bound.set(self._facts)

    def __exit__(self, *error: object) -> None:
        _bound.reset(self._token)


class _Secrets:
    """The values that must never be seen. Any thread: readers see the old tuple or the new one, only writers lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards: values
        self.values: tuple[str, ...] = ()

    def add(self, secret: str) -> None:
        encoded = secret.encode(errors="surrogateescape")  # an environment may hold bytes that are not UTF-8
        # As it stands, as in a URL, as repr() and JSON show it, as a header carries it.
        shown = {secret, quote(encoded, safe=""), repr(secret)[1:-1], json.dumps(secret)[1:-1]}
        forms = shown | {base64.b64encode(encoded).decode()}
        with self._lock:
            # The longest first, or what a short one leaves of a longer one would stay.
            self.values = tuple(sorted({*self.values, *forms}, key=len, reverse=True))


_secrets = _Secrets()


def register_secret(secret: str | None) -> None:
    """Never let this value out again, wherever it turns up. Below four characters it would only garble the log."""
    if secret and len(secret) >= _SHORTEST_SECRET:
        _secrets.add(secret)


def redact(text: str) -> str:
    """The text without registered secrets, passwords in URLs and the values of authorization headers."""
    for secret in _secrets.values:
        text = text.replace(secret, MASK)
    small = text.casefold()
    for sign, pattern, mask in _PATTERNS:
        if sign in small:
            text = pattern.sub(mask, text)
    return text


class _Handler(logging.StreamHandler[TextIO]):
    """Writes lines to a stream. Where it takes none (its reader is gone, the disk is full), the line is lost, and the
    work goes on: that is reported once, in one sentence, until the stream takes lines again.
    """

    _lost = _failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self._failed = False
        super().emit(record)
        self._lost = self._failed

    def handleError(self, record: logging.LogRecord) -> None:
        """Called by `emit`, with its lock held, while the error is handled."""
        self._failed = True
        if not self._lost:
            with suppress(OSError, ValueError, AttributeError):  # standard error may be closed as well
                sentence = "Cannot write log lines to standard output; the controller runs on without a log"
                sys.stderr.write(f"{sentence}: {redact(str(sys.exc_info()[1]))}\n")
                sys.stderr.flush()


def setup(level: str, fmt: str, stream: TextIO, **process_facts: object) -> None:
    """Send the lines of the package, from `level` on, to a stream: `json` or `text`. A second call replaces the first.

    What libraries have to say comes as a line of the same form, from WARNING on. `process_facts` are in each line of
    the form `json`, whichever program wrote it: a collector mixes the lines of all replicas. A person at a terminal has
    one.
    """
    handler = _Handler(stream)
    handler.setFormatter(_Json(process_facts) if fmt == "json" else _Text())
    package, root = logging.getLogger(PACKAGE), logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old.formatter, _Json | _Text)]:
        root.removeHandler(old)
    # One handler, at the root: so nothing of ours is written twice, and nothing of others past the form.
    root.addHandler(handler)
    package.setLevel(level)
    root.setLevel(max(package.level, logging.WARNING))
    logging.captureWarnings(True)


def _line_fields(record: logging.LogRecord) -> dict[str, object]:
    """The fields of a line, in their order, each a scalar that is fit to be seen."""
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    event = getattr(record, "otto_event", None)
    facts: dict[str, object] = getattr(record, "otto_facts", {})
    message = record.msg if event is not None else _format_message(record.msg, record.args)
    if record.exc_info:
        facts = _facts_of(record.exc_info[1]) | facts
    fields: dict[str, object] = {
        "timestamp": at.replace("+00:00", "Z"),
        "level": record.levelname,
        "event": _clean_value(event if event is not None else f"library.{record.name}"),
        "message": _clean_value(message),
    }
    for name in (*(name for name in _USUAL if name in facts), *(name for name in facts if name not in _USUAL)):
        # A fact that is called like a field of ours is kept, beside it.
        fields[f"{name}_" if name in _HEAD else name] = _clean_value(facts[name], tail=name == "traceback")
    return fields


def _facts_of(error: BaseException | None) -> dict[str, object]:
    if error is None:
        return {}
    return {"error": error, "traceback": "".join(traceback.format_exception(error)).rstrip()}


def _format_message(message: object, args: Any) -> str:
    # A wrong placeholder is a fault of the caller that must cost neither the line nor the thread.
    text = _text_of_value(message)
    if isinstance(args, tuple):  # a library may give one mapping instead
        args = tuple(arg if isinstance(arg, str | int | float) else _text_of_value(arg) for arg in args)
    try:
        return text % args if args else text
    except (TypeError, ValueError, KeyError, OverflowError):
        return f"{text} {_text_of_value(args)}"


def _text_of_value(value: object) -> str:
    """A value as text; an exception with its type, without which many say nothing: our own are whole sentences."""
    try:
        text = str(value)
    except Exception:  # any object may be a fact, and its __str__ may raise anything
        return f"<unprintable {type(value).__name__}>"
    foreign = isinstance(value, BaseException) and not isinstance(value, OttoscalerError)
    return f"{type(value).__name__}: {text}".removesuffix(": ") if foreign else text


def _clean_value(value: object, *, tail: bool = False) -> object:
    """What may be seen of a value: numbers as they are, other values as text, redacted first and cut after."""
    if value is None or (isinstance(value, int) and value.bit_length() <= 64):
        return value
    if isinstance(value, float) and value - value == 0:  # neither infinite nor NaN, which JSON does not have
        return value
    text = redact(value if type(value) is str else _text_of_value(value))
    if tail:
        return text if len(text) <= MAX_TRACEBACK else "..." + text[-MAX_TRACEBACK:]
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."


class _Json(JsonFormatter):
    """One JSON object per line, in ASCII: no character of an event can end the line."""

    def __init__(self, process_facts: Mapping[str, object]) -> None:
        super().__init__(json_ensure_ascii=True)
        self._process_facts = {name: _clean_value(value) for name, value in process_facts.items()}

    def format(self, record: logging.LogRecord) -> str:
        fields = _line_fields(record)
        for name, value in self._process_facts.items():
            fields.setdefault(name, value)  # a line that names another process keeps that name
        return self.serialize_log_record(fields)


class _Text(logging.Formatter):
    """Time, level, event, message, facts; what does not print is escaped, so it is one line and moves no cursor."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _line_fields(record)
        time, level, event, message = (str(fields.pop(name)) for name in _HEAD)
        facts = "".join(f" {name}={_quoted_if_needed(value)}" for name, value in fields.items())
        return _printable(f"{time[11:]} {level:<7} {event:<18} {message}{facts}")


def _quoted_if_needed(value: object) -> str:
    text = str(value)
    return text if text and not re.search(r"[\s\"=]", text) else json.dumps(text, ensure_ascii=False)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
