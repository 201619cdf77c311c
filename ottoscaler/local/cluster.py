"""The embedded cluster's process: ``python -m ottoscaler.local.cluster --data-dir DIR [--port N]``.

Serves the Kubernetes API on 127.0.0.1 with one node included, and writes DIR/kubeconfig when it is ready: that file's
appearance is the signal. Ends in order on SIGTERM or SIGINT. Objects live in memory only.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import uuid
from pathlib import Path

from ottoscaler.local.api import Api
from ottoscaler.local.node import LocalNode
from ottoscaler.local.server import ApiServer
from ottoscaler.local.store import Store

_KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters:
- name: ottoscaler-local
  cluster:
    server: {url}
users:
- name: ottoscaler-local
  user: {{}}
contexts:
- name: ottoscaler-local
  context:
    cluster: ottoscaler-local
    user: ottoscaler-local
    namespace: default
current-context: ottoscaler-local
"""


def _write_kubeconfig(path: Path, url: str) -> None:
    """Written at once: a reader of the file sees all of it."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(_KUBECONFIG.format(url=url))
    os.replace(unfinished, path)


def _pipe_of_the_end() -> tuple[int, int]:
    """Where the end is read, and where it is written: by a signal too, without a handler that takes a lock.

    The main thread may be inside the lock of whatever it waits for when a signal comes: the interpreter's own handler
    writes into the pipe, and ours do nothing.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return reading, writing


def _stop_when_a_thread_dies(writing: int) -> None:
    """A node that no longer looks after its pods must not look alive: end, with the traceback in the log."""
    report = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        report(arguments)
        os.write(writing, b"!")

    threading.excepthook = hook


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM or SIGINT. Returns 1 when the port cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m ottoscaler.local.cluster", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args(arguments)
    reading, writing = _pipe_of_the_end()
    _stop_when_a_thread_dies(writing)
    options.data_dir.mkdir(parents=True, exist_ok=True)
    # Many short requests on many threads: the default switch interval of 5 ms would be most of their time.
    sys.setswitchinterval(0.001)
    store = Store()
    node = LocalNode(store, options.data_dir / "pods")
    api = Api(store, node)
    # the data folder is the cluster: a queue in a Redis that outlives this process goes on belonging to it
    api.add_namespace("default", str(uuid.uuid5(uuid.NAMESPACE_URL, options.data_dir.resolve().as_uri())))
    try:
        server = ApiServer(api, options.port)
    except OSError as error:
        sys.stderr.write(f"port {options.port} cannot be used: {error.strerror}\n")
        return 1
    node.start()
    server.start()
    _write_kubeconfig(options.data_dir / "kubeconfig", server.url)
    os.read(reading, 1)
    server.close()
    node.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
