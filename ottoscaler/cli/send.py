"""`send FIELD=VALUE...`: put one event into the stream, and with `--wait` see it to its end.

What the controller would refuse is refused here, by the same rules and in the same words: an error now is of more use
at a terminal than a dead letter later. `--force` sends it all the same.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ottoscaler.cli.connection import load_checked, open_reader
from ottoscaler.cli.follow import EventProgress, Follower, describe_end
from ottoscaler.cli.rules import rules_of
from ottoscaler.cli.table import console, printable, progress_text
from ottoscaler.core.events import KNOWN_FIELDS, BadEvent, ignored_fields_warning, parse
from ottoscaler.errors import RedisUnavailable
from ottoscaler.misspellings import closest_known_name, suggest_replacement
from ottoscaler.settings import Settings

#: The variables that say which events the controller accepts.
LIMIT_VARIABLES: Final = ("MAX_PODS_PER_EVENT", "WORKER_DEADLINE_S", "POLICY_FILE")
#: If no controller takes the event within this time, the command asks whether one runs, seconds.
_NO_CONTROLLER_AFTER_S: Final = 5.0
_WAIT_S: Final = 1.0
#: An entry's id of the usual length: it is what the task is called that has no name of its own.
_SOME_ID: Final = "1714557600000-0"


def main(arguments: Sequence[str]) -> int:
    """Send the event and print its entry's id. Returns 0; 1 if the controller would refuse it, and with `--wait` unless
    all workers succeeded.

    Raises ConfigError, RedisUnavailable; SystemExit (2) for an argument that is not FIELD=VALUE.
    """
    parser = _argument_parser()
    options = parser.parse_intermixed_args(arguments)
    fields = fields_of(parser, options.fields)
    settings = load_checked(*LIMIT_VARIABLES)
    raw = {name.encode(): value.encode() for name, value in fields.items()}
    if not check_event(raw, settings, force=options.force):
        return 1
    with open_reader(settings) as opened:
        follower = Follower(opened, fields)
        print(follower.send(), flush=True)
        if not options.wait:
            return 0
        try:
            return _follow_event(follower, options.timeout)
        except RedisUnavailable as error:
            raise RedisUnavailable(f"{error}\nThe event {follower.stream_id} was sent all the same.") from error


def _argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ottoscaler.py send",
        description="Send one scaling event and print its id.",
        epilog="Example: ottoscaler.py send type=scale_up pod_count=3 task_id=task-123 --wait",
    )
    parser.add_argument(
        "fields", nargs="+", metavar="FIELD=VALUE", help="type=scale_up, pod_count=3, task_id=task-123, ..."
    )
    parser.add_argument(
        "--wait", action="store_true", help="follow it to the end; exit code 0 only if all workers succeeded"
    )
    parser.add_argument(
        "--force", action="store_true", help="send it even if the controller, as configured here, would refuse it"
    )
    parser.add_argument(
        "--timeout", type=_parse_seconds, metavar="SECONDS", help="with --wait: give up after so long (exit code 1)"
    )
    return parser


def check_event(raw: Mapping[bytes, bytes], settings: Settings, *, force: bool) -> bool:
    """Report on standard error what is wrong with the event, and what may be; for `dead redrive` too.

    Arguments: the fields as they would be sent, and the configuration, read with LIMITS.
    Returns False if the controller would refuse the event, unless `force` is set.
    """
    warn_of_fields(raw)
    parsed = parse(_SOME_ID, raw, settings.flow.max_pods_per_event, rules_of(settings)())
    if not isinstance(parsed, BadEvent):
        return True
    if force:
        _print_warning(f"the controller refuses this event: {parsed.reason}: {parsed.detail}")
        return True
    print(f"Not sent, the controller would refuse it: {parsed.reason}: {parsed.detail}", file=sys.stderr)
    return False


def warn_of_fields(raw: Mapping[bytes, bytes], missing: Collection[str] = ()) -> None:
    """Report on standard error which fields are probably misspelt and which have no effect; for `plan` too. `missing`
    are fields that the command has a value for, and that were not sent.
    """
    names = [name.decode("utf-8", "backslashreplace") for name in raw]
    sent, meant = suggest_replacement(missing, [name for name in names if name not in KNOWN_FIELDS])
    for name in names:
        if near := closest_known_name(name, KNOWN_FIELDS) or (meant if name == sent else ""):
            _print_warning(f"field {name} is only passed on; did you mean {near}?")
    if sentence := ignored_fields_warning(raw):
        _print_warning(sentence)


def _print_warning(text: str) -> None:
    print(f"warning: {printable(text)}", file=sys.stderr)


def _parse_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def fields_of(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, str]:
    """The fields that the arguments name, for `dead redrive` too. SystemExit (2) for one that is not FIELD=VALUE."""
    fields: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not name or name != name.strip():
            parser.error(f"{argument!r} is not of the form FIELD=VALUE")
        if name in fields:
            parser.error(f"{name} is given twice")
        if any("\ud800" <= char <= "\udfff" for char in argument):
            parser.error(f"{name} is not UTF-8")  # Python keeps such bytes of the command line as lone surrogates
        fields[name] = value
    return fields


def _follow_event(follower: Follower, timeout_s: float | None) -> int:
    screen = console()
    deadline = time.monotonic() + (math.inf if timeout_s is None else timeout_s)
    progress = (
        _follow_on_terminal(follower, deadline, screen) if screen.is_terminal else _follow_in_lines(follower, deadline)
    )
    if progress.done:
        print(*describe_end(progress), sep="\n")
        return 0 if progress.succeeded else 1
    print(
        f"Not finished after {timeout_s:g} s: {progress_text(progress.task)}. The task goes on; `status` shows it.",
        file=sys.stderr,
    )
    return 1


def _follow_in_lines(follower: Follower, deadline: float) -> EventProgress:
    """For logs and pipes: one line for each change."""
    lonely_at, said = time.monotonic() + _NO_CONTROLLER_AFTER_S, ""
    while True:
        progress = follower.poll(_wait_s(deadline))
        text = progress_text(progress.task)
        if progress.task is not None and not progress.done and text != said:
            print(text, flush=True)
            said = text
        if progress.done or time.monotonic() >= deadline:
            return progress
        if progress.task is None and time.monotonic() >= lonely_at:
            print(_no_controller_warning(), file=sys.stderr, flush=True)
            lonely_at = math.inf


def _follow_on_terminal(follower: Follower, deadline: float, screen: Console) -> EventProgress:
    """A bar of the workers that have ended, drawn by this thread alone."""
    lonely_at = time.monotonic() + _NO_CONTROLLER_AFTER_S
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=screen, auto_refresh=False, transient=True) as bars:
        bar = bars.add_task("", total=None)
        while True:
            progress = follower.poll(_wait_s(deadline))
            lonely = progress.task is None and time.monotonic() >= lonely_at
            ended = progress.task.succeeded + progress.task.failed + progress.task.cancelled if progress.task else 0
            total = (progress.task.pod_count if progress.task else 0) or None
            text = _no_controller_warning() if lonely else progress_text(progress.task)
            bars.update(bar, total=total, completed=ended, description=text)
            bars.refresh()
            if progress.done or time.monotonic() >= deadline:
                return progress


def _wait_s(deadline: float) -> float:
    return max(0.0, min(_WAIT_S, deadline - time.monotonic()))


def _no_controller_warning() -> str:
    return "No controller has taken the event yet; is one running?"
