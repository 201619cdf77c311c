"""`agent -- COMMAND...`: runs a command inside a worker, and sends its output to the log handler line by line.

The command's result comes before its log: it starts before the agent connects, its output is printed as well, its exit
code is the agent's, and neither a fault of the log's configuration nor a handler that is away changes any of that.

Environment: LOG_HANDLER_ADDRESS and the other variables of the log handler; OTTO_MASK_ENV, names of variables with
values that must not be seen, separated by commas or spaces. The worker is named by OTTO_POD_NAME and OTTO_TASK_ID.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from ottoscaler.errors import ConfigError
from ottoscaler.forwarder.masking import ValueMasker
from ottoscaler.settings_log_handler import LogHandlerSettings

_USAGE: Final = "usage: ottoscaler.py agent -- COMMAND [ARGUMENT...]"
#: As shells report a command that cannot be run, or cannot be found.
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
#: The command gets these from the agent, which is process 1 in a container.
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_READ: Final = 64 * 1024
#: How long output is awaited that processes of the command's write after its end, seconds.
_REST_S: Final = 1.0
_LABELS: Final = ("event_id", "task_key", "worker_index", "worker_count", "attempt")


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code, 128 and the signal's number if a signal ended it, 126 or 127 if it could
    not be started, 2 for wrong usage.
    """
    if list(arguments[:1]) in (["-h"], ["--help"]):
        print(f"{_USAGE}\n\n{__doc__}")
        return 0
    if len(arguments) < 2 or arguments[0] != "--":
        print(_USAGE, file=sys.stderr)
        return 2
    command = arguments[1:]
    settings, masker = _load(os.environ)
    if settings.address is None and masker() is None:
        return _become(command)
    return asyncio.run(_Agent(command, settings, masker).run())


def _load(environ: Mapping[str, str]) -> tuple[LogHandlerSettings, Any]:
    """The settings, and what makes a masker of values for one output, or None. Faults cost the log, not the command."""
    try:
        settings = LogHandlerSettings.load(environ)
    except ConfigError as error:
        for fault in error.faults:
            _say(fault)
        _say("No logs are streamed: the configuration of the log handler is wrong.")
        settings = LogHandlerSettings()
    names = re.split(r"[\s,]+", environ.get("OTTO_MASK_ENV", "").strip())
    values = [environ[name] for name in names if environ.get(name)]
    return settings, lambda: ValueMasker(values) if values else None


def _become(command: Sequence[str]) -> int:
    """There is nothing to do with the output: the command takes the place of this process."""
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        return _not_started(command[0], error)


def _not_started(program: str, error: OSError) -> int:
    _say(f"Cannot run {program!r}: {os.strerror(error.errno or errno.EIO)}")
    return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"ottoscaler agent: {sentence}", file=sys.stderr, flush=True)


class _Agent:
    """One command and its output. One event loop."""

    def __init__(self, command: Sequence[str], settings: LogHandlerSettings, masker: Any) -> None:
        self._command = command
        self._settings = settings
        self._masker = masker
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        self._hurry = asyncio.Event()  # set: a signal after the command's end; do not wait for the log any longer

    async def run(self) -> int:
        """Returns the exit code."""
        loop = asyncio.get_running_loop()
        terminal = os.isatty(0)
        for number in _PASSED_ON:
            if not (terminal and number == signal.SIGINT):  # the terminal sends it to the command itself
                loop.add_signal_handler(number, partial(self._pass_on, number))
        if terminal:
            loop.add_signal_handler(signal.SIGINT, lambda: None)
        try:
            # Before gRPC has any thread: a process that forks with a channel open may stand still.
            self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except OSError as error:
            return _not_started(self._command[0], error)
        for early in self._early:
            self._pass_on(early)
        delivery, client = self._delivery()
        sending = asyncio.ensure_future(delivery.run()) if delivery else None
        await self._carry(delivery)
        if delivery and sending:
            await self._drain(delivery, sending)
            await client.close()
        code = self._process.returncode
        return 128 - code if code < 0 else code

    def _pass_on(self, number: int) -> None:
        if self._process is None:
            self._early.append(number)
        elif self._process.returncode is None:
            self._process.send_signal(number)
        else:
            self._hurry.set()

    def _delivery(self) -> tuple[Any, Any]:
        """The way to the handler; None without one. gRPC is imported here, while the command runs already."""
        if self._settings.address is None:
            return None, None
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        try:
            client_module = importlib.import_module("ottoscaler.adapters.log_client")
            delivery_module = importlib.import_module("ottoscaler.forwarder.delivery")
        except ImportError as error:
            _say(f"No logs are streamed: gRPC for Python is not installed ({error})")
            return None, None
        client = client_module.LogHandlerClient(self._settings)
        return delivery_module.Delivery(client, self._worker(), _say), client

    def _worker(self) -> Any:
        entries = importlib.import_module("ottoscaler.forwarder.entries")
        environ = os.environ
        name = environ.get("OTTO_POD_NAME") or socket.gethostname()
        labels = {label: environ.get(f"OTTO_{label.upper()}", "") for label in _LABELS}
        return entries.WorkerIdentity(
            name,
            environ.get("OTTO_TASK_ID") or name,
            {label: value for label, value in labels.items() if value},
            namespace=environ.get("OTTO_NAMESPACE", ""),
        )

    async def _carry(self, delivery: Any) -> None:
        """Read both outputs until the command has ended and they are empty."""
        process = self._process
        assert process is not None
        collectors: list[Any] = [None, None]
        if delivery:
            module = importlib.import_module("ottoscaler.forwarder.collector")
            patience = module.Patience()  # one for both: the command is held up as a whole
            collectors = [module.Collector(source, delivery, patience) for source in ("stdout", "stderr")]
        outputs = [_Output(descriptor, lines, self._masker()) for descriptor, lines in enumerate(collectors, 1)]
        pipes = (process.stdout, process.stderr)
        reading = [asyncio.ensure_future(each.read(pipe)) for each, pipe in zip(outputs, pipes, strict=True)]
        await asyncio.to_thread(process.wait)
        # A process that the command has left behind may hold its output open for as long as it likes.
        _, open_ones = await asyncio.wait(reading, timeout=_REST_S)
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        for each in outputs:
            await each.end()

    async def _drain(self, delivery: Any, sending: asyncio.Future[None]) -> None:
        """Give the last lines their time to be acknowledged."""
        collector = importlib.import_module("ottoscaler.forwarder.collector")
        delivery.finish(collector.now_text())
        hurry = asyncio.ensure_future(self._hurry.wait())
        waits: list[asyncio.Future[Any]] = [sending, hurry]
        await asyncio.wait(waits, timeout=self._settings.drain_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        delivery.stream.give_up()
        account = delivery.stream.account
        if account.dropped or not account.ended:
            _say(f"Log: {account.dropped} of {account.lines} lines did not get to the log handler")


class _Output:
    """One of the two outputs: masked, printed, sent on."""

    def __init__(self, descriptor: int, lines: Any, values: ValueMasker | None) -> None:
        self._descriptor = descriptor
        self._lines = lines
        self._values = values

    async def read(self, pipe: Any) -> None:
        """Until the end of the output."""
        reader = asyncio.StreamReader(limit=_READ)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            while data := await reader.read(_READ):
                await self._take(self._values.feed(data) if self._values else data)
        finally:
            transport.close()

    async def end(self) -> None:
        """What was held back, and the last line."""
        if self._values:
            await self._take(self._values.end())
        if self._lines:
            await self._lines.end()

    async def _take(self, data: bytes) -> None:
        self._write_out(data)
        if self._lines:
            await self._lines.feed(data)

    def _write_out(self, data: bytes) -> None:
        """A reader that has gone away changes nothing for the command, or for its log."""
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self._descriptor, data) :]
