"""How a command that only needs Redis gets at it: the configuration from the environment, and the board."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing

from ottoscaler.adapters.board import Board
from ottoscaler.adapters.dead import DeadLetters
from ottoscaler.settings import Settings


def load(environ: Mapping[str, str]) -> Settings:
    """The configuration without Kubernetes. Raises ConfigError.

    KUBECONFIG is left out: whoever sends an event need not have the file that it names.
    """
    return Settings.load({**environ, "KUBECONFIG": ""}, socket.gethostname(), None)


def board() -> AbstractContextManager[Board]:
    """The board of the Redis that the environment names, closed at the end. Raises ConfigError."""
    settings = load(os.environ)
    return closing(Board(settings.redis, settings.keys))


def dead_letters() -> AbstractContextManager[DeadLetters]:
    """The dead-letter stream of the Redis that the environment names, closed at the end. Raises ConfigError."""
    settings = load(os.environ)
    return closing(DeadLetters(settings.redis, settings.keys))
