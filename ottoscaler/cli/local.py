"""`local`: the whole system on this machine, without Docker, Redis or Kubernetes, until Ctrl-C.

It is for trying things out: it prints the lines with which another terminal sends events and looks at pods.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from ottoscaler.cli.signals import Signals
from ottoscaler.cli.system import SCRIPT, LocalSystem, find_redis_server

_LOOK_S: Final = 0.2


def main(arguments: Sequence[str]) -> int:
    """Run until SIGINT or SIGTERM (0), or until the controller ends by itself (1). Raises ConfigError,
    LocalSystemError.
    """
    parser = _argument_parser()
    options = parser.parse_args(arguments)
    binary = _redis_binary(parser, options.redis_server)
    stop = threading.Event()
    with ExitStack() as stack:
        # a second signal does not end it by force: what was started is to be stopped in order
        stack.enter_context(Signals(stop.set, 0, force=stop.set))
        data_dir = options.data_dir or _temporary_folder(stack)
        system = LocalSystem(data_dir, os.environ, binary=binary, external=options.external_redis)
        stack.enter_context(system)
        print(_introduction(system, kept=options.data_dir), flush=True)
        system.start_controller()
        while system.exit_code is None and not stop.wait(_LOOK_S):
            continue
        code = system.exit_code
    if code is not None and not stop.is_set():
        print(f"The controller ended by itself with exit code {code}; its last lines say why.", file=sys.stderr)
        return 1
    print("Stopped.")
    return 0


def _argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ottoscaler.py local",
        description="The whole system on this machine; Ctrl-C stops all of it. The controller gets the environment.",
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="keep Redis's data and the workers' files here")
    redis = parser.add_mutually_exclusive_group()
    redis.add_argument(
        "--redis-server", metavar="PATH|auto", help="a Redis server's program instead of the embedded one"
    )
    redis.add_argument("--external-redis", action="store_true", help="use the Redis that REDIS_HOST and the like name")
    return parser


def _redis_binary(parser: argparse.ArgumentParser, given: str | None) -> Path | None:
    if given is None:
        return None
    if given == "auto":
        return find_redis_server()
    found = shutil.which(given)
    if found is None:
        parser.error(f"--redis-server: {given!r} is not a program")
    return Path(found)


def _temporary_folder(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ottoscaler-", ignore_cleanup_errors=True)))


def _introduction(system: LocalSystem, *, kept: Path | None) -> str:
    settings = system.settings
    server, stream, web = settings.redis, settings.keys.stream, settings.web
    host = f"[{web.address}]" if ":" in web.address else web.address
    prefix = system.shell_prefix()
    ours = " ".join(filter(None, [prefix, interpreter(), shlex.quote(_relative_if_below(SCRIPT))]))
    lines = [
        f"Redis            {server.host}:{server.port}",
        f"Kubernetes API   {system.url}",
        *([f"Probes, figures  http://{host}:{web.port}/"] if web.port else []),
        f"Data             {kept.resolve() if kept else 'in a temporary directory, removed at the end'}",
        "",
        "In another terminal:",
        f"  {ours} send type=scale_up pod_count=3 task_id=task-123 --wait",
        f"  {ours} status --watch",
        f"  KUBECONFIG={shlex.quote(str(system.kubeconfig))} {ours} logs task-123 --follow",
        f"  redis-cli -h {server.host} -p {server.port} XADD {shlex.quote(stream)} '*' "
        "type scale_up pod_count 3 task_id task-124",
        f"  KUBECONFIG={shlex.quote(str(system.kubeconfig))} kubectl get pods --watch",
        "",
        "Ctrl-C stops everything. The controller's log:",
    ]
    return "\n".join(lines)


def interpreter() -> str:
    """How to call this Python: `python` if that is what PATH finds, otherwise its path."""
    found = shutil.which("python")
    return (
        "python"
        if found and Path(found) == Path(sys.executable)
        else shlex.quote(_relative_if_below(Path(sys.executable)))
    )


def _relative_if_below(path: Path) -> str:
    """A path as one would type it from here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
