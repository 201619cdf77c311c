"""How a command that only needs Redis gets at it: the configuration from the environment, and the reader."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing

from ottoscaler.adapters.dead import DeadLetters
from ottoscaler.adapters.status_reader import StatusReader
from ottoscaler.settings import REDIS_ONLY, Settings


def load(environ: Mapping[str, str]) -> Settings:
    """The configuration without Kubernetes. Raises ConfigError.

    KUBECONFIG is left out: a local system starts without the file that it names.
    """
    return Settings.load({**environ, "KUBECONFIG": ""}, socket.gethostname(), None)


def load_checked(*more: str, namespace: str | None = None) -> Settings:
    """The configuration of a command that only needs Redis, and these variables besides: a fault of any other variable,
    which the controller may have on this machine, is no reason to refuse. Raises ConfigError.

    A variable that is nearly one of ours is named on standard error.
    """
    settings = Settings.load(os.environ, socket.gethostname(), namespace, used=REDIS_ONLY | set(more))
    for sentence in settings.misspelled_variables:
        print(f"warning: {sentence}", file=sys.stderr)
    return settings


def open_reader(settings: Settings | None = None) -> AbstractContextManager[StatusReader]:
    """The reader of the Redis that the environment names, closed at the end. Raises ConfigError."""
    settings = settings or load_checked()
    return closing(StatusReader(settings.redis, settings.keys))


def dead_letters(settings: Settings) -> AbstractContextManager[DeadLetters]:
    """The dead-letter stream of the Redis that the settings name, closed at the end."""
    return closing(DeadLetters(settings.redis, settings.keys))
