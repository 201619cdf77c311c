"""The lines that the program writes: one each, complete, in order, and with no secret in them."""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import re
import threading
import warnings
from base64 import b64encode
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler import logs
from ottoscaler.errors import RedisUnavailable

log = logs.get("ottoscaler.tests")
FACTS = st.dictionaries(st.text(min_size=1), st.none() | st.booleans() | st.integers() | st.floats() | st.text())


class Hostile:
    """A fact that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def written(fmt: str = "json", level: str = "DEBUG") -> io.StringIO:
    """A stream that the log writes to from now on."""
    stream = io.StringIO()
    logs.setup(level, fmt, stream)
    return stream


def only(stream: io.StringIO) -> dict[str, Any]:
    """The fields of the one line that was written."""
    (line,) = stream.getvalue().splitlines()
    fields = json.loads(line)
    assert isinstance(fields, dict)
    return fields


def test_a_line_has_its_fields_in_order() -> None:
    """A person who reads the raw line sees the same thing first each time."""
    stream = written()
    log.info(
        "worker.created", "Creating worker pod: %s", "a-1", zone="x", pod="a-1", task_id="t", event_id="e", worker=1
    )
    assert list(only(stream)) == [
        "timestamp",
        "level",
        "event",
        "message",
        "event_id",
        "task_id",
        "worker",
        "pod",
        "zone",
    ]


def test_a_line_says_what_happened() -> None:
    """Level, event and the filled-in message are as the caller gave them."""
    stream = written()
    log.warning("watch.lost", "Lost after %d s", 3, duration_s=3.25)
    fields = only(stream)
    assert (fields["level"], fields["event"], fields["message"]) == ("WARNING", "watch.lost", "Lost after 3 s")
    assert fields["duration_s"] == 3.25


def test_the_time_is_utc_in_milliseconds() -> None:
    """RFC 3339 with three digits and a Z."""
    stream = written()
    log.info("a.b", "c")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", only(stream)["timestamp"])


def test_each_line_names_its_process() -> None:
    """Also one of a library, one of the standard library, and one without any fact; a line's own fact wins."""
    stream = io.StringIO()
    logs.setup("INFO", "json", stream, instance="blue", consumer="blue-1")
    log.info("a.b", "ours")
    log.info("a.b", "another's", consumer="blue-2")
    logging.getLogger("urllib3.pool").warning("of a library")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.setup("INFO", "json", stream, instance="blue", consumer="blue-1")
        warnings.warn("of Python", stacklevel=1)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["instance"] for line in lines] == ["blue"] * 4
    assert [line["consumer"] for line in lines] == ["blue-1", "blue-2", "blue-1", "blue-1"]


def test_a_line_for_people_does_not_name_its_process() -> None:
    """A terminal shows the lines of one process."""
    stream = io.StringIO()
    logs.setup("INFO", "text", stream, instance="blue", consumer="blue-1")
    log.info("a.b", "ours")
    assert "blue" not in stream.getvalue()


def test_bound_facts_are_added_and_taken_away() -> None:
    """Ids are named once per thread; the inner block and the call itself win."""
    stream = written()
    with logs.bind(event_id="e", worker=1):
        with logs.bind(worker=2):
            log.info("a.b", "inner", attempt=3)
        log.info("a.b", "outer")
    log.info("a.b", "outside")
    inner, outer, outside = map(json.loads, stream.getvalue().splitlines())
    assert (inner["event_id"], inner["worker"], inner["attempt"]) == ("e", 2, 3)
    assert outer["worker"] == 1
    assert "event_id" not in outside


def test_bound_facts_stay_in_their_thread() -> None:
    """What one worker's thread binds is not said of another's."""
    stream = written()
    with logs.bind(worker=1):
        thread = threading.Thread(target=log.info, args=("a.b", "elsewhere"))
        thread.start()
        thread.join(10)
    assert "worker" not in only(stream)


@pytest.mark.parametrize(
    "name", ["name", "args", "msg", "message", "asctime", "levelname", "exc_info", "self", "event"]
)
def test_a_fact_may_be_called_anything(name: str) -> None:
    """Attributes of a LogRecord are no trap; what would hide a field of ours gets an underscore."""
    stream = written()
    log.info("a.b", "c", **{name: "fact"})
    fields = only(stream)
    assert "fact" in (fields.get(name), fields.get(name + "_"))
    assert (fields["event"], fields["message"]) == ("a.b", "c")


@given(facts=FACTS, message=st.text(), args=st.lists(st.integers() | st.text()))
@pytest.mark.parametrize("fmt", ["json", "text"])
def test_nothing_makes_the_log_raise_or_break_the_line(
    fmt: str, facts: dict[str, Any], message: str, args: list[int | str]
) -> None:
    """Whatever comes in, there is one line, and in JSON it can be read."""
    stream = written(fmt)
    log.info("a.b", message, *args, **facts)
    (line,) = stream.getvalue().removesuffix("\n").split("\n")
    assert len(line.splitlines()) == 1
    assert fmt == "text" or set(json.loads(line)) >= set(facts) - {"timestamp", "level", "event", "message"}


@pytest.mark.parametrize("value", [Hostile(), math.nan, math.inf, 10**5000, "\udc80", {"a": 1}, b"x"], ids=range(7))
def test_any_value_becomes_a_scalar(value: object) -> None:
    """What JSON cannot say is said as text."""
    stream = written()
    log.info("a.b", "%s", value, fact=value)
    assert isinstance(only(stream)["fact"], str)


@pytest.mark.parametrize(("template", "value"), [("%d pods", "many"), ("%d pods", math.inf), ("%(a)s", "x"), ("%y", 1)])
def test_a_wrong_placeholder_costs_nothing(template: str, value: object) -> None:
    """The line comes, with what was to be filled in behind it."""
    stream = written()
    log.info("a.b", template, value)
    assert only(stream)["message"] == f"{template} {(value,)}"


def test_json_lines_are_ascii() -> None:
    """Characters that some readers take for a line end are escaped."""
    stream = written()
    log.info("a.b", "c", fact="a\u2028b\x85c")
    assert stream.getvalue().isascii()
    assert only(stream)["fact"] == "a\u2028b\x85c"


def test_a_long_text_is_cut() -> None:
    """A field of an event cannot flood the log."""
    stream = written()
    log.info("a.b", "c", fact="x" * 5000)
    assert only(stream)["fact"] == "x" * logs.MAX_TEXT + "..."


def test_a_long_traceback_keeps_its_end() -> None:
    """The last frames and the error are what one looks for."""
    stream = written()
    try:
        raise ValueError("x" * 20000 + "end")
    except ValueError:
        log.exception("a.b", "c")
    assert only(stream)["traceback"].endswith("xend")
    assert len(only(stream)["traceback"]) == logs.MAX_TRACEBACK + 3


def test_an_exception_is_logged_with_its_traceback() -> None:
    """The short form in `error`, the long one in `traceback`, both in the same line."""
    stream = written()
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("thread.died", "A thread ended", error="not this one")
        log.exception("thread.died", "A thread ended")
    chosen, fields = map(json.loads, stream.getvalue().splitlines())
    assert chosen["error"] == "not this one"
    assert fields["error"] == "ValueError: two\nlines"
    assert fields["traceback"].startswith("Traceback")
    assert "test_logs.py" in fields["traceback"]


@pytest.mark.parametrize(
    "text",
    [
        "redis://user:hunter22@host:6379/0",
        "redis://:p@hunter22@host",
        "Authorization: Bearer hunter22hunter22",
        "{'authorization': 'Basic hunter22'}",
        "got bearer hunter22.hunter22",
        "password=hunter22",
        '{"password": "hunter22"}',
    ],
)
@pytest.mark.parametrize("fmt", ["json", "text"])
def test_credentials_are_masked_wherever_they_are(fmt: str, text: str) -> None:
    """Message, facts and exceptions go through the same filter."""
    stream = written(fmt)
    try:
        raise RuntimeError(text)
    except RuntimeError as error:
        log.exception("a.b", "failed: %s", error, fact=text, cause=error)
    assert "hunter" not in stream.getvalue()
    assert stream.getvalue().count(logs.MASK) >= 4


SHAPES: dict[str, Callable[[str], str]] = {
    "bare": str,
    "url": lambda secret: quote(secret, safe=""),
    "repr": lambda secret: repr({"k": [secret]}),
    "json": json.dumps,
    "base64": lambda secret: b64encode(secret.encode()).decode(),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_registered_secret_never_comes_out(shape: str) -> None:
    """Neither as it stands nor in any of the forms in which programs pass it on."""
    stream = written()
    logs.register_secret("qu/'\"\\\u00f6zz")
    log.info("a.b", "c", fact=SHAPES[shape]("qu/'\"\\\u00f6zz"))
    assert only(stream)["fact"] in (logs.MASK, f'"{logs.MASK}"', f"{{'k': ['{logs.MASK}']}}")


def test_a_secret_inside_a_longer_one_leaves_nothing_of_it() -> None:
    """The longer one goes first."""
    stream = written()
    logs.register_secret("inner-secret")
    logs.register_secret("inner-secret-and-more")
    log.info("a.b", "c", fact="inner-secret-and-more")
    assert only(stream)["fact"] == logs.MASK


def test_a_secret_of_a_letter_does_not_eat_the_log() -> None:
    """What is that short protects nothing and would make every line unreadable."""
    stream = written()
    logs.register_secret("e")
    log.info("a.b", "hello there")
    assert only(stream)["message"] == "hello there"


def test_a_secret_at_the_cut_does_not_come_out_in_part() -> None:
    """Texts are cut after secrets are taken out, not before."""
    stream = written()
    logs.register_secret("half-a-secret")
    log.info("a.b", "c", fact="x" * (logs.MAX_TEXT - 4) + "half-a-secret")
    assert "half" not in stream.getvalue()


def test_a_secret_that_is_not_utf8_can_be_registered() -> None:
    """An environment variable may hold any bytes; the log of the start must not end the start."""
    logs.register_secret("caf\udce9-secret")


@pytest.mark.contract("2.LOG_LEVEL")
def test_the_level_holds_for_the_package() -> None:
    """DEBUG is for our own lines: what the clients say at that level would be endless, and full of headers."""
    stream = written(level="DEBUG")
    logging.getLogger("urllib3").debug("noise")
    log.debug("a.b", "ours")
    assert only(stream)["event"] == "a.b"


def test_what_libraries_say_has_the_same_form() -> None:
    """Warnings of others are lines like ours, not loose text on standard error."""
    stream = written()
    logging.getLogger("urllib3.pool").warning("pool %s is full", "x")
    assert (only(stream)["event"], only(stream)["message"]) == ("library.urllib3.pool", "pool x is full")


def test_python_warnings_are_lines_too() -> None:
    """A deprecation that shows up in production is found in the log."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        stream = written()
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert "old" in only(stream)["message"]


def test_a_second_setup_replaces_the_first() -> None:
    """No line is written twice."""
    first, second = written(), written()
    log.info("a.b", "c")
    assert first.getvalue() == ""
    assert only(second)["event"] == "a.b"


@pytest.mark.contract("2.LOG_FORMAT")
def test_text_is_for_people() -> None:
    """Time, level, event, message and facts, on one line, with nothing that moves the cursor."""
    stream = written("text")
    log.info("worker.created", "Creating\x1b[2J %s", "a\nb", pod="p", why="two words")
    line = stream.getvalue()
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3}Z INFO    worker\.created ", line)
    assert line.endswith('Creating\\x1b[2J a\\nb pod=p why="two words"\n')


class TestSeldom:
    """Lines that would be many."""

    def test_ever_less_often(self) -> None:
        """The first, the second, the fourth, the eighth."""
        limited = logs.RateLimited()
        assert [number for number in range(1, 20) if limited.is_due("away")] == [1, 2, 4, 8, 16]

    def test_another_line_is_said(self) -> None:
        """It is no less news because another was said."""
        limited = logs.RateLimited()
        assert [limited.is_due(text) for text in ("away", "away", "away", "full")] == [True, True, False, True]

    def test_after_a_quiet_minute_it_is_news_again(self) -> None:
        """The next outage is another one, and nothing is remembered without limit."""
        now = [0.0]
        limited = logs.RateLimited(lambda: now[0])
        assert [limited.is_due("away") for _ in range(3)] == [True, True, False]
        now[0] = 61.0
        assert limited.is_due("away")


def test_a_stream_that_takes_no_lines_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Its reader is gone: one sentence on standard error; once more after it took lines meanwhile."""

    class Pipe(io.StringIO):
        broken = True

        def write(self, text: str) -> int:
            if self.broken:
                raise BrokenPipeError(errno.EPIPE, "Broken pipe")
            return super().write(text)

    pipe = Pipe()
    logs.setup("INFO", "json", pipe)
    log = logs.get("ottoscaler.test")
    sentence = (
        "Cannot write log lines to standard output; the controller runs on without a log: [Errno 32] Broken pipe\n"
    )
    for _ in range(3):
        log.info("a.b", "A line")
    assert capsys.readouterr().err == sentence
    pipe.broken = False
    log.info("a.b", "Another line")
    pipe.broken = True
    log.info("a.b", "A line")
    assert capsys.readouterr().err == sentence
    assert "Another line" in pipe.getvalue()


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (RedisUnavailable("Redis at h:1 cannot be reached", unclear=False), "Redis at h:1 cannot be reached"),
        (KeyError("attempt"), "KeyError: 'attempt'"),
        (ValueError(), "ValueError"),
    ],
    ids=repr,
)
def test_an_error_of_ours_is_a_sentence_and_one_of_others_has_its_type(error: Exception, shown: str) -> None:
    """The name of a class is no help to an operator where the sentence is whole."""
    out = io.StringIO()
    logs.setup("INFO", "json", out)
    logs.get("t").warning("retry.scheduled", "Cannot look: %s", error, error=error)
    line = json.loads(out.getvalue())
    assert (line["message"], line["error"]) == (f"Cannot look: {shown}", shown)
