"""What all tests share: how threads are switched, what a test may ask of the machine, a log left as found."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from ottoscaler import logs

# A loaded machine, or a hostile switch interval, must not turn a slow example into a failure.
# OTTO_SAME_EXAMPLES=1: the examples are those of the run before, so what turns red was broken by the change.
settings.register_profile("otto", deadline=None, derandomize=os.environ.get("OTTO_SAME_EXAMPLES") == "1")
settings.load_profile("otto")


def pytest_configure(config: pytest.Config) -> None:
    """Switch threads as often as OTTO_SWITCH_INTERVAL (seconds) says: what holds at 1e-6 has few races left."""
    if interval := os.environ.get("OTTO_SWITCH_INTERVAL"):
        sys.setswitchinterval(float(interval))
    # A shell has what it starts in the background ignore Ctrl-C, and so would each command that is tested as a process.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _kubernetes() -> str | None:
    path = os.environ.get("TEST_KUBECONFIG", "")
    return path if path and Path(path).is_file() else None


def _docker() -> str | None:
    program = shutil.which("docker")
    if program and subprocess.run([program, "version"], capture_output=True, timeout=30, check=False).returncode == 0:
        return program
    return None


def _kube_program(name: str) -> str | None:
    """From the folder TEST_KUBE_BIN, otherwise from PATH."""
    folder = os.environ.get("TEST_KUBE_BIN", "")
    return shutil.which(name, path=folder or None)


_WANTED: dict[str, tuple[Callable[[], str | None], str]] = {
    "redis-server": (lambda: shutil.which("redis-server"), "the program redis-server"),
    "kubernetes": (_kubernetes, "a Kubernetes API server, its kubeconfig named by TEST_KUBECONFIG"),
    "etcd": (lambda: _kube_program("etcd"), "the program etcd, on PATH or in the folder TEST_KUBE_BIN"),
    "kube-apiserver": (
        lambda: _kube_program("kube-apiserver"),
        "the program kube-apiserver, on PATH or in the folder TEST_KUBE_BIN",
    ),
    "go": (lambda: shutil.which("go"), "the Go tools, 1.21 or later, on PATH"),
    "node": (lambda: shutil.which("node"), "the program node (Node.js)"),
    "promtool": (lambda: shutil.which("promtool"), "the program promtool (Debian's package prometheus)"),
    "prometheus": (lambda: shutil.which("prometheus"), "the program prometheus (Debian's package prometheus)"),
    "chromium": (lambda: shutil.which("chromium"), "the program chromium"),
    "npm": (lambda: shutil.which("npm"), "the program npm"),
    "openssl": (lambda: shutil.which("openssl"), "the program openssl"),
    "git": (lambda: shutil.which("git"), "the program git"),
    "make": (lambda: shutil.which("make"), "the program make"),
    "docker": (_docker, "a Docker daemon that answers"),
    "image-load": (
        lambda: os.environ.get("TEST_IMAGE_LOAD"),
        "TEST_IMAGE_LOAD, a command line that brings an image archive, named by its last argument, onto the nodes",
    ),
    "kind": (lambda: shutil.which("kind"), "the program kind"),
    "kubectl": (lambda: shutil.which("kubectl"), "the program kubectl"),
}


def require(name: str) -> str:
    """The path of a program or kubeconfig that a test needs; without it the test is skipped.

    With OTTO_CI=1 it fails instead: there, a server that did not come up must not look like a pass.
    """
    find, description = _WANTED[name]
    if found := find():
        return found
    if os.environ.get("OTTO_CI") == "1":
        pytest.fail(f"needs {description}, and in CI nothing may be left out", pytrace=False)
    pytest.skip(f"needs {description}")


@pytest.fixture(autouse=True)
def _log_as_found() -> Iterator[None]:
    """Put back what a test's `logs.setup` changed, or later tests would write to its closed stream; and forget what a
    simulated process had bound when it died.
    """
    logs._bound.set({})
    loggers = [logging.getLogger(), logging.getLogger("ottoscaler")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = [handler for handler in logger.handlers if handler in handlers]
    logging.captureWarnings(False)
