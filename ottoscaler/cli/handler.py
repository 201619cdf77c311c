"""`handler`: a log handler for development and tests. It prints what workers send, and options make it behave badly."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ottoscaler.cli.table import printable
from ottoscaler.errors import ConfigError
from ottoscaler.settings_files import file_error_reason, load_certificates, read_text
from ottoscaler.settings_log_handler import is_loopback

_INSTALL: Final = (
    "gRPC for Python is not installed: "
    "{python} -m pip install --require-hashes -r ottoscaler/forwarder/requirements.txt"
)
#: How long streams that are open may take to end when the handler is stopped, seconds.
_GRACE_S: Final = 1.0


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM or Ctrl-C. Returns 0; raises ConfigError."""
    options = _parser().parse_args(arguments)
    _check(options)
    # only now: the other commands, and `--help`, need no gRPC
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        server = importlib.import_module("ottoscaler.adapters.log_server")
        reference = importlib.import_module("ottoscaler.forwarder.reference_handler")
    except ImportError as error:
        raise ConfigError((_INSTALL.format(python=sys.executable),)) from error
    asyncio.run(_serve(options, server, reference))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ottoscaler.py handler",
        description="A log handler for development and tests: it prints what workers send.",
        epilog="Set LOG_HANDLER_ADDRESS to its address for 'ottoscaler.py agent'.",
    )
    add = parser.add_argument
    add("--address", default="127.0.0.1:50051", metavar="HOST:PORT", help="port 0: any free one (%(default)s)")
    add("--store", type=Path, metavar="FOLDER", help="store lines there, one file per worker, and go on from it")
    add("--keep", type=_count, default=1000, metavar="N", help="lines kept in memory per worker (%(default)s)")
    add("--quiet", action="store_true", help="do not print lines")
    tls = parser.add_argument_group("security")
    tls.add_argument("--cert-file", metavar="FILE", help="certificate of the handler, PEM")
    tls.add_argument("--key-file", metavar="FILE", help="its key")
    tls.add_argument("--client-ca-file", metavar="FILE", help="clients need a certificate of this authority")
    tls.add_argument("--token-file", metavar="FILE", help="clients need this bearer token; read for each stream")
    tls.add_argument("--plaintext", action="store_true", help="listen without TLS on an address that others reach")
    config = parser.add_argument_group("what senders are asked for (LoggingConfig; 0: their own value)")
    for name, default in (("rate-limit", 0), ("buffer-size", 5000), ("max-message-size", 0), ("max-batch", 500)):
        config.add_argument(f"--{name}", type=_count, default=default, metavar="N", help="%(default)s by default")
    config.add_argument("--include-metadata", action="store_true")
    config.add_argument("--max-streams", type=_count, default=0, metavar="N", help="streams per connection")
    config.add_argument("--max-workers", type=_count, default=1000, metavar="N", help="then SERVER_FULL (%(default)s)")
    bad = parser.add_argument_group("bad habits, for tests (N: each n-th entry)")
    bad.add_argument("--answer", choices=("message", "entry", "position"), default="message", help="what is answered")
    bad.add_argument("--delay-ms", type=_count, default=0, metavar="MS", help="pause after each message")
    bad.add_argument("--full-first", type=_count, default=0, metavar="N", help="N registrations are SERVER_FULL")
    bad.add_argument("--invalid", action="store_true", help="registrations are INVALID_REQUEST")
    for name, text in (("retry", "RETRY"), ("drop", "DROP"), ("lose-answer", "no answer"), ("cut", "end the stream")):
        bad.add_argument(f"--{name}-every", type=_count, default=0, metavar="N", help=text)
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 999999999")
    return int(text)


def _check(options: argparse.Namespace) -> None:
    """Raises ConfigError with all faults: before anything is opened."""
    faults = []
    host, _, port = options.address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        faults.append(f"--address={options.address!r}: expected host:port")
    elif not is_loopback(host.strip("[]")) and not options.cert_file and not options.plaintext:
        faults.append(
            f"--address={options.address!r}: others reach it, so expected --cert-file, or --plaintext as well"
        )
    if bool(options.cert_file) != bool(options.key_file):
        faults.append("--cert-file and --key-file: expected both or none")
    if options.client_ca_file and not options.cert_file:
        faults.append("--client-ca-file: expected --cert-file as well")
    for name, check in (
        ("cert", load_certificates),
        ("client-ca", load_certificates),
        ("key", read_text),
        ("token", read_text),
    ):
        path = getattr(options, f"{name.replace('-', '_')}_file")
        try:
            if path:
                check(path)
        except (OSError, ValueError) as error:
            faults.append(f"--{name}-file={path!r}: expected a readable file ({file_error_reason(error)})")
    if options.store and not options.store.is_dir():
        faults.append(f"--store={str(options.store)!r}: expected a folder that exists")
    if faults:
        raise ConfigError(tuple(faults))


async def _serve(options: argparse.Namespace, server: Any, reference: Any) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)

    def chosen(*names: str) -> dict[str, Any]:
        return {name: getattr(options, name) for name in names}

    habits = reference.Habits(
        **chosen("keep", "max_workers", "answer", "full_first", "invalid"),
        **chosen("retry_every", "drop_every", "lose_answer_every", "cut_every"),
    )
    config = reference.LoggingConfig(
        **chosen("rate_limit", "buffer_size", "max_message_size", "max_batch", "include_metadata")
    )
    show = (lambda *_: None) if options.quiet else _print
    receiver = reference.ReferenceHandler(config, habits, folder=options.store, show=show)
    settings = server.ServerSettings(
        **chosen("address", "cert_file", "key_file", "client_ca_file", "token_file", "max_streams"),
        delay_s=options.delay_ms / 1000,
        cut=(reference.Cut,),
    )
    running, port = await server.start(receiver, settings)
    host = options.address.rpartition(":")[0]
    print(f"Log handler listens on {host}:{port} ({'TLS' if options.cert_file else 'plaintext'})", flush=True)
    await stopped.wait()
    await running.stop(_GRACE_S)
    for worker_id, log in sorted(receiver.workers.items()):
        end = f"{log.end.lines} lines, {log.end.dropped} dropped" if log.end else "without its end"
        print(f"{worker_id}: {log.received} entries received, {log.doubled} of them again; log {end}", flush=True)


def _print(worker_id: str, entry: Any) -> None:
    print(printable(f"{worker_id} {entry.source}: {entry.message}"), flush=True)
