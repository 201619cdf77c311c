"""The pictures of the status page: `python -m tests.page_pictures FOLDER`, in less than a minute.

Rows as the controller's adapters write them, in a Redis of its own, drawn by Chromium: on a desk in the light scheme,
and on a phone in the dark one.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

import redis
from PIL import Image

from ottoscaler.adapters.page_reader import PageReader
from ottoscaler.adapters.task_codec import RedisKeys
from ottoscaler.cli.page_source import PageSource
from ottoscaler.cli.status_page import pages_of
from ottoscaler.cli.worker_details import WorkerDetails
from ottoscaler.core.manifest import AttemptKey, event_hash, pod_name
from ottoscaler.core.pods import Phase, PodSnapshot
from ottoscaler.core.results import rfc3339
from ottoscaler.core.status_codes import StatusCode
from ottoscaler.local.redis import EmbeddedRedis
from ottoscaler.ports import StatusUpdate
from ottoscaler.settings import KeySettings, Settings
from ottoscaler.stored import TaskNote, WorkerNote
from tests.adapters.web_server import serving
from tests.cli.browser import Browser, browser
from tests.cli.conftest import Controller

INSTANCE: Final = "ottoscaler"
#: Name, colour scheme, width and height.
PICTURES: Final = (("light", "light", 1165, 1000), ("phone-dark", "dark", 400, 860))
#: Bars of the last hour: workers that ended, by minute.
_MOST, _LEAST = 26, 3
_COLOURS: Final = 128


@dataclass(frozen=True, slots=True)
class _Task:
    """A task: how many of its workers stand where, and since when, seconds ago; the worst first."""

    name: str
    repository: str
    commit: str
    workers: Sequence[tuple[int, StatusCode, str]]
    since_s: float
    next_s: float
    pods: Mapping[StatusCode, Phase] = field(default_factory=dict)


TASKS: Final = (
    _Task(
        "deploy-77", "acme/shop", "9f31c0e2a7d4",
        [(2, StatusCode.IMAGE_BACKOFF, "back-off 3 of the image registry.example.com/ci/deploy:2026-11: not found")],
        96, 300, {StatusCode.IMAGE_BACKOFF: Phase.PENDING},
    ),
    _Task(
        "test-1204", "acme/api", "c0ffee12ab90",
        [(12, StatusCode.QUOTA, "requests.cpu=28 of 28"), (3, StatusCode.STARTING, ""), (25, StatusCode.RUNNING, "")],
        41, 4, {StatusCode.STARTING: Phase.PENDING, StatusCode.RUNNING: Phase.RUNNING},
    ),
    _Task(
        "lint-88", "acme/web", "51c0de5fe221", [(3, StatusCode.RUNNING, "")], 36, 3000,
        {StatusCode.RUNNING: Phase.RUNNING},
    ),
)  # fmt: skip


def main(folder: Path) -> None:
    """Write the rows, open the page, take the pictures."""
    with ExitStack() as stack:
        made = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = EmbeddedRedis(made / "redis")
        server.start()
        stack.callback(server.close)
        environ = {"REDIS_HOST": server.host, "REDIS_PORT": str(server.port)}
        settings = Settings.load(environ, "otto-0", None)
        client = stack.enter_context(redis.Redis(host=server.host, port=server.port, decode_responses=True))
        _write_hour(client, settings.keys.result_stream)
        acting = Controller(settings)
        stack.callback(acting.stream.close)
        pods = {pod.name: pod for task in TASKS for pod in _write(acting, client, settings.keys, task)}
        client.xadd(settings.keys.stream, {"type": "scale_up", "pod_count": "0"})
        acting.take()
        reader = stack.enter_context(closing(PageReader(settings.redis, settings.keys)))
        source = PageSource(reader, lambda: {"health": [], "live": len(pods), "max": 100}, lambda: pods)
        pages, viewers = pages_of(source, cast(WorkerDetails, None))
        port = stack.enter_context(serving(pages, viewers))
        chromium = stack.enter_context(browser(made / "profile"))
        for name, scheme, width, height in PICTURES:
            _take(chromium, port, folder / f"{name}.png", scheme, width, height)


def _take(chromium: Browser, port: int, path: Path, scheme: str, width: int, height: int) -> None:
    tab = chromium.tab()
    tab.emulate(scheme, width)
    tab.open(f"http://127.0.0.1:{port}/")
    tab.until("link", "Live")
    tab.until("workers", "Details")
    tab.picture(path, height)
    tab.close()
    Image.open(path).convert("RGB").quantize(_COLOURS).save(path, optimize=True)  # less than half as many bytes


def _write_hour(client: redis.Redis, stream: str) -> None:
    """Results of the last hour: none of them is about one of our tasks."""
    now = int(time.time())
    with client.pipeline(transaction=False) as pipe:
        for ago in range(59, 0, -1):
            share = (1 + math.sin(ago / 7) * math.cos(ago / 17)) / 2
            for number in range(_LEAST + round((_MOST - _LEAST) * share)):
                entry_id = f"{(now - ago * 60) * 1000 + number}-0"
                fields = {"kind": "worker", "event_id": entry_id, "task_id": f"build-{ago}", "index": "1"}
                pipe.xadd(stream, {**fields, "outcome": "succeeded", "reason": "Completed"}, entry_id)  # type: ignore[arg-type]
        pipe.execute()


def _write(acting: Controller, client: redis.Redis, keys: KeySettings, task: _Task) -> list[PodSnapshot]:
    """Send the event, and write what the owner of the task writes of it. Returns the pods that it has."""
    count = sum(count for count, _, _ in task.workers)
    fields = {"type": "scale_up", "pod_count": str(count), "task_id": task.name}
    client.xadd(keys.stream, {**fields, "repository": task.repository, "commit_sha": task.commit})  # type: ignore[arg-type]
    taken = acting.take()
    assert taken is not None
    event_id = taken.event.event_id
    since = time.time() - task.since_s
    client.hset(RedisKeys(keys.prefix).task(event_id), "received_at", rfc3339(since - 5))
    next_at, notes, pods = rfc3339(time.time() + task.next_s), dict[int, WorkerNote](), list[PodSnapshot]()
    for number, code, detail in task.workers:
        for _ in range(number):
            key = AttemptKey(event_hash(INSTANCE, event_id), len(notes) + 1, 1)
            name = pod_name(key)
            notes[key.index] = WorkerNote(
                code.facts.state, 1, name, code=code, detail=detail, since=rfc3339(since), next_at=next_at
            )
            if (phase := task.pods.get(code)) is not None:
                started = since if phase is Phase.RUNNING else None
                pods.append(
                    PodSnapshot(
                        key, name, f"uid-{name}", "7", event_id, INSTANCE, phase, since - 4.6, since - 4, started,
                        node=f"node-{1 + key.index % 3}",
                    )
                )  # fmt: skip
    number, worst, detail = task.workers[0]
    why = f"{number} of {count} workers: {worst.facts.why(detail)}"
    of_task = TaskNote(why, code=worst, since=rfc3339(since), next_at=next_at)
    acting.stream.write_status([StatusUpdate(event_id, taken.owner, notes, of_task)])
    return pods


if __name__ == "__main__":
    main(Path(sys.argv[1]))
