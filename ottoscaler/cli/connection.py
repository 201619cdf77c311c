"""How a command that only needs Redis gets at it: the configuration from the environment, and the board."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ottoscaler.adapters.board import Board
from ottoscaler.adapters.dead import DeadLetters
from ottoscaler.settings import Settings


def load(environ: Mapping[str, str]) -> Settings:
    """The configuration without Kubernetes. Raises ConfigError.

    KUBECONFIG is left out: whoever sends an event need not have the file that it names.
    """
    return Settings.load({**environ, "KUBECONFIG": ""}, socket.gethostname(), None)


@contextmanager
def board() -> Iterator[Board]:
    """The board of the Redis that the environment names, closed at the end. Raises ConfigError."""
    settings = load(os.environ)
    opened = Board(settings.redis, settings.keys)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def dead_letters() -> Iterator[DeadLetters]:
    """The dead-letter stream of the Redis that the environment names, closed at the end. Raises ConfigError."""
    settings = load(os.environ)
    opened = DeadLetters(settings.redis, settings.keys)
    try:
        yield opened
    finally:
        opened.close()
