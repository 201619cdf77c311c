"""`dead list|show|redrive|purge`: what became of events that could not be carried out, and a second chance for them.

An id is that of the entry in the dead-letter stream, as `list` shows it. `list --json` prints a list of objects, `show
--json` one; their keys are the fields of a dead letter, `id`, and `redriven`: the entry that it was sent again as.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, Final

from ottoscaler.adapters.dead import (
    DeadLetterOutcome,
    DeadLetters,
    NotRedrivable,
    StoredDeadLetter,
    canonical_entry_id,
    redrive_id,
)
from ottoscaler.cli.connection import dead_letters, load_checked
from ottoscaler.cli.send import LIMIT_VARIABLES, check_event, fields_of
from ottoscaler.cli.table import console, grid, printable
from ottoscaler.core.events import MAX_FIELDS
from ottoscaler.core.nesting import MAX_JSON_DEPTH, json_depth
from ottoscaler.core.wording import count_text
from ottoscaler.errors import OttoscalerError
from ottoscaler.settings import Settings

#: At most a screen of rows, unless more are asked for.
_ROWS: Final = 40
_HEADINGS: Final = ("id", "reason", "event", "at", "sent again as", "detail")


class NoSuchDeadLetter(OttoscalerError):
    """There is no dead letter of that id."""


def main(arguments: Sequence[str]) -> int:
    """Do what the first argument says. Returns 0; 1 if `redrive` refuses what the controller would refuse.

    Raises ConfigError, RedisUnavailable, NoSuchDeadLetter, NotRedrivable; SystemExit (2) for wrong arguments.
    """
    parser = _argument_parser()
    options = parser.parse_args(arguments)
    settings = load_checked(*(LIMIT_VARIABLES if options.action == "redrive" else ()))
    with dead_letters(settings) as opened:
        match options.action:
            case "list":
                _list(opened, options.count, options.json)
            case "show":
                _show(_find_or_fail(opened, options.id), options.json)
            case "redrive":
                return _redrive(parser, opened, options, settings)
            case "purge":
                _purge(opened, options.id)
    return 0


def _argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ottoscaler.py dead", description="Events that could not be carried out.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|redrive|purge")
    listing = actions.add_parser("list", help="the dead letters, newest first")
    listing.add_argument(
        "--count", type=_parse_count, default=_ROWS, metavar="N", help=f"at most this many (default {_ROWS})"
    )
    showing = actions.add_parser("show", help="one of them, with its event")
    again = actions.add_parser("redrive", help="send its event again, changed as asked; a second time changes nothing")
    away = actions.add_parser("purge", help="take one away")
    for action in (listing, showing):
        action.add_argument("--json", action="store_true", help="as JSON")
    for action in (showing, again, away):
        action.add_argument(
            "id",
            metavar="ID",
            type=_parse_dead_letter_id,
            help="its id in the dead-letter stream, such as 1714557600000-0",
        )
    again.add_argument("fields", nargs="*", metavar="FIELD=VALUE", help="fields that are changed or added")
    again.add_argument(
        "--without", action="append", default=[], metavar="FIELD", help="a field that is left out; may be repeated"
    )
    again.add_argument(
        "--force", action="store_true", help="send it even if the controller, as configured here, would refuse it"
    )
    return parser


def _parse_count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:10]) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1000000")
    return int(text)


def _parse_dead_letter_id(text: str) -> str:
    dead_id = canonical_entry_id(text)
    if dead_id is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no id of a dead letter; those look like 1714557600000-0")
    return dead_id


def _find_or_fail(opened: DeadLetters, dead_id: str) -> StoredDeadLetter:
    letter = opened.find(dead_id)
    if letter is None:
        raise NoSuchDeadLetter(_no_such_letter_text(dead_id))
    return letter


def _no_such_letter_text(dead_id: str) -> str:
    return f"There is no dead letter {dead_id}; 'dead list' shows those that there are"


def _list(opened: DeadLetters, count: int, as_json: bool) -> None:
    letters = opened.newest(count)
    if as_json:
        print(json.dumps([_letter_json(letter) for letter in letters]))
        return
    more = opened.count() - len(letters)
    screen = console()
    if not letters:
        print("No dead letters")
    elif screen.is_terminal:
        screen.print(grid(_HEADINGS, [_table_row(letter) for letter in letters]))
    else:
        print(*(_letter_line(letter) for letter in letters), sep="\n")
    if more > 0:
        print(f"and {count_text(more, 'older one')} (--count)")


def _table_row(letter: StoredDeadLetter) -> tuple[str, ...]:
    return letter.id, letter.reason, letter.event_id, letter.at, letter.redriven_as, letter.detail


def _letter_line(letter: StoredDeadLetter) -> str:
    again = f" (sent again as {letter.redriven_as})" if letter.redriven_as else ""
    return printable(f"{letter.id}: {letter.reason}, event {letter.event_id or '-'}: {letter.detail}{again}")


def _show(letter: StoredDeadLetter, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_letter_json(letter)))
        return
    for name, value in _letter_json(letter).items():
        if name != "event":
            print(printable(f"{name}: {value}"))
    print("event:")
    print(*(f"  {line}" for line in _event_lines(letter)), sep="\n")


def _event_lines(letter: StoredDeadLetter) -> list[str]:
    """A field a line. What is not UTF-8 or was cut shows as it stands there."""
    try:
        kept = json.loads(letter.event) if json_depth(letter.event) <= MAX_JSON_DEPTH else None
    except ValueError:
        return [printable(letter.event)]
    if not isinstance(kept, dict):
        return [printable(letter.event)]
    cut = kept.get("cut") is True
    fields = kept["fields"] if cut and isinstance(kept.get("fields"), dict) else kept
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    lines = [printable(f"{name} = {text}") for name, text in texts.items()]
    return [*lines, "(cut: the rest was above 1 MiB)"] if cut else lines


def _letter_json(letter: StoredDeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "dead_reason": letter.reason,
        "dead_detail": letter.detail,
        "event_id": letter.event_id,
        "stream_id": letter.stream_id,
        "group": letter.group,
        "attempts": letter.attempts,
        "at": letter.at,
        "redriven": letter.redriven_as,
        "event": letter.event,
    }


def _redrive(
    parser: argparse.ArgumentParser, opened: DeadLetters, options: argparse.Namespace, settings: Settings
) -> int:
    """Standard output gets the id of the entry, the first time and every other time. Returns the exit code.

    An event is sent again once, so one that the controller would refuse is not sent: it would use up that one time.
    """
    changes = {name.encode(): value.encode() for name, value in fields_of(parser, options.fields).items()}
    left_out = {name.encode("utf-8", "replace") for name in options.without}
    _check_names(parser, set(changes), left_out)
    letter = _find_or_fail(opened, options.id)
    # an earlier redrive is reported before any fault of this one
    if not letter.redriven_as:
        opened.check_group(letter)
    fields = {} if letter.redriven_as else _changed_fields(letter, changes, left_out)
    whole = {**fields, b"event_id": redrive_id(letter.id).encode()}
    if not letter.redriven_as and not check_event(whole, settings, force=options.force):
        return 1
    became, sent = opened.redrive(letter.id, fields)
    if became is DeadLetterOutcome.GONE:
        raise NoSuchDeadLetter(_no_such_letter_text(letter.id))
    print(sent, flush=True)
    if became is DeadLetterOutcome.KNOWN:
        print(f"Dead letter {letter.id} was sent again before, as {sent}: nothing was changed", file=sys.stderr)
    return 0


def _check_names(parser: argparse.ArgumentParser, changed: set[bytes], left_out: set[bytes]) -> None:
    if b"event_id" in changed | left_out:
        parser.error("event_id is not to be chosen: it is redrive:ID, so that nothing is sent twice")
    for name in sorted(changed & left_out):
        parser.error(f"{name.decode()} is changed and left out at the same time")


def _changed_fields(letter: StoredDeadLetter, changes: dict[bytes, bytes], left_out: set[bytes]) -> dict[bytes, bytes]:
    fields = letter.fields()
    for name in sorted(left_out - fields.keys()):
        raise NotRedrivable(printable(f"Dead letter {letter.id} has no field {name.decode()} that could be left out"))
    fields = {name: value for name, value in (fields | changes).items() if name not in left_out}
    if len(fields.keys() | {b"event_id"}) > MAX_FIELDS:
        raise NotRedrivable(
            f"The event of dead letter {letter.id} has {len(fields)} fields, and at most {MAX_FIELDS} are taken with"
            f" {redrive_id(letter.id)} as its event_id: leave some out (--without)"
        )
    return fields


def _purge(opened: DeadLetters, dead_id: str) -> None:
    if opened.purge(dead_id) is DeadLetterOutcome.GONE:
        raise NoSuchDeadLetter(_no_such_letter_text(dead_id))
    print(f"Dead letter {dead_id} was taken away")
