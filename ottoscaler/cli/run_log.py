"""The log of `run`: how it is set up, and the faults of the configuration as lines of it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from ottoscaler import logs
from ottoscaler.cli.main import EXIT_USAGE
from ottoscaler.errors import ConfigError
from ottoscaler.settings import Settings, asked_log

_log = logs.get(__name__)


def set_up_log(settings: Settings) -> None:
    """Log in the form and from the level on that the settings say, without the secrets that they hold."""
    form = settings.log.format or ("text" if sys.stdout.isatty() else "json")
    consumer = settings.keys.consumer
    logs.setup(settings.log.level, form, sys.stdout, instance=settings.instance, consumer=consumer)
    logs.register_secret(settings.redis.password)
    if settings.redis.password_file:
        logs.register_secret(Path(settings.redis.password_file).read_text(encoding="utf-8").strip())
    for _, value in settings.traces.headers:
        logs.register_secret(value)
        logs.register_secret(value.rpartition(" ")[2])  # of "Bearer TOKEN" the token


def with_faults_logged(environ: Mapping[str, str], run: Callable[[], int]) -> int:
    """The exit code of `run`. Where LOG_FORMAT asks for JSON, the faults of a ConfigError become lines of the log, one
    each, and the exit code is 2: a collector that reads the log would get lines that are no JSON otherwise. Without
    that, raises the ConfigError.
    """
    try:
        return run()
    except ConfigError as error:
        form, names = asked_log(environ, socket.gethostname())
        if form != "json":
            raise
        logs.setup("ERROR", form, sys.stdout, **names)  # the settings may have none, and then nothing was set up
        for fault in error.faults:
            _log.error("config.invalid", "%s", fault)
        return EXIT_USAGE
