"""Which command was meant: the first word of the command line, and the module that carries it out.

Each command is a module with `main(arguments) -> exit code` that parses its own arguments. Here is what all of them
share: how an error becomes one sentence and an exit code, and what happens when the output is closed.
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from ottoscaler import __version__
from ottoscaler.errors import ConfigError, OttoscalerError

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
#: 128 + SIGINT, as shells report it.
EXIT_INTERRUPTED: Final = 130

_NOT_IN_IMAGE: Final = (
    "This image does not have the command '{name}': it needs a checkout, where 'make {name}' runs it."
)


class Command(NamedTuple):
    """Where a command lives, and its line in the help."""

    module: str
    help: str


COMMANDS: Final[Mapping[str, Command]] = {
    "run": Command("ottoscaler.cli.run", "the controller; this is the default"),
    "local": Command(
        "ottoscaler.cli.local", "the whole system on this machine: Redis, Kubernetes API, workers, controller"
    ),
    "demo": Command("ottoscaler.cli.demo", "as local, with a fixed set of events and a table of how they ended"),
    "send": Command("ottoscaler.cli.send", "send one event: FIELD=VALUE... [--wait]"),
    "plan": Command("ottoscaler.cli.plan", "the pods that an event would make: FIELD=VALUE... [--server]"),
    "status": Command("ottoscaler.cli.status", "tasks, workers by state, backlog, dead letters [--watch] [--json]"),
    "explain": Command("ottoscaler.cli.explain", "why an event is where it is, and what comes next: ID [--json]"),
    "doctor": Command("ottoscaler.cli.doctor", "checks Redis, Kubernetes, log handler, policy and clocks [--json]"),
    "logs": Command("ottoscaler.cli.logs", "the output of a task's workers: TASK_ID [--follow] [--worker N]"),
    "dead": Command("ottoscaler.cli.dead", "dead letters: list, show ID, redrive ID [FIELD=VALUE...], purge ID"),
    "agent": Command("ottoscaler.cli.agent", "inside a worker: -- COMMAND..., its output goes to the log handler, too"),
    "handler": Command("ottoscaler.cli.handler", "a log handler for development and tests"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name (default: those of the process), and return its exit code.

    Bad configuration and bad usage give 2, what this project raises on purpose 1 and its sentence, Ctrl-C 130.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_missing_streams()
    if argv is None and (arguments or ["run"])[0] == "run":
        # In a container it is process 1, which gets only signals that it has a handler for: this one, until all is
        # imported and `run` sets its own. Nothing has been begun by then.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os._exit(EXIT_OK))
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
    except ConfigError as error:
        print(*error.faults, sep="\n", file=sys.stderr)
        return EXIT_USAGE
    except OttoscalerError as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # `status | head`: https://docs.python.org/3/library/signal.html#note-on-sigpipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except SystemExit as end:  # argparse, after --help or a wrong argument
        return end.code if isinstance(end.code, int) else EXIT_OK
    return code


def _open_missing_streams() -> None:
    """Open the null device in place of each standard stream that was closed by the parent process (`>&-`).

    Python has None there, on which every flush would fail, and the next socket would get the free descriptor: a library
    that writes to descriptor 1 or 2 would write into a connection.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with suppress(OSError):
                os.fstat(number)
                continue
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: SIM115


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "run"
    if name in ("-h", "--help", "help"):
        print(usage())
        return EXIT_OK
    if name == "--version":
        print(f"ottoscaler {__version__}")
        return EXIT_OK
    command = COMMANDS.get(name)
    if command is None:
        print(_unknown_command_text(name), file=sys.stderr)
        return EXIT_USAGE
    if not _is_installed(command):
        print(_NOT_IN_IMAGE.format(name=name), file=sys.stderr)
        return EXIT_USAGE
    # Imported by name and only when asked for: `send` and `status` must not pay for the Kubernetes client of `run`.
    module = importlib.import_module(command.module)
    return int(module.main(arguments[1:]))


def _is_installed(command: Command) -> bool:
    """Whether the command's module exists: the image has neither `local` nor `demo`, which are for a checkout only."""
    return Path(__file__).with_name(f"{command.module.rpartition('.')[2]}.py").exists()


def usage() -> str:
    """The help: what there is, one line each."""
    lines = [f"  {name:<8}{command.help}" for name, command in COMMANDS.items() if _is_installed(command)]
    head = "usage: python ottoscaler.py [COMMAND] [ARGUMENTS]"
    tail = "'python ottoscaler.py COMMAND --help' says more. Configuration is by environment variables; see README."
    return "\n".join([head, "", *lines, "", tail])


def _unknown_command_text(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"There is no command {name!r}; there are {', '.join(COMMANDS)}.{hint}"
