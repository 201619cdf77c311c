"""What the logs of many pods cost in memory: there may be a thousand."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from ottoscaler.adapters.pod_log_client import PodLogClient
from ottoscaler.errors import PodLogUnavailable
from ottoscaler.settings import KubeSettings
from tests.adapters.tls_pods import LONG, tls_pods
from tests.forwarder.processes import handler
from tests.readme import ROOT

#: Measured with OpenSSL 3.0: 37 KiB; 48 with a buffer of OpenSSL for each connection, 54 with one of asyncio. OpenSSL
#: 3.5 keeps 20 KiB more for each, whatever we do: 58 KiB, and 74 with a buffer of asyncio.
MOST_KIB = 43 if ssl.OPENSSL_VERSION_INFO < (3, 2) else 65
#: Measured: 22 KiB; 28 where gRPC may try again.
MOST_STREAM_KIB = 25


def test_a_quiet_follow_keeps_no_buffer(tmp_path: Path) -> None:
    """Neither the one that asyncio reads into nor the one that OpenSSL writes from: each has 16 KiB."""
    with tls_pods(tmp_path) as settings:
        assert grown("quiet_follows", settings.kubeconfig) < MOST_KIB


def test_a_quiet_stream_keeps_nothing_for_another_attempt(tmp_path: Path) -> None:
    """Of gRPC, which would try again by itself."""
    with handler(tmp_path) as process:
        assert grown("quiet_streams", process.port) < MOST_STREAM_KIB


def grown(module: str, server: object) -> float:
    """What each of 150 costs more than 50 do, KiB: by a process with the memory settings of the image."""
    command = [sys.executable, "-m", f"tests.adapters.{module}", str(server), "50", "150"]
    environ = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=True)
    return float(done.stdout)


def test_logs_that_are_read_at_once_are_not_mixed(tmp_path: Path) -> None:
    """All connections read into one buffer."""
    with tls_pods(tmp_path) as settings:
        found = asyncio.run(asyncio.wait_for(_read_all(settings, "abcd"), 60))
    assert found == [letter.encode() * LONG for letter in "abcd"]


async def _read_all(settings: KubeSettings, letters: str) -> list[bytes]:
    client = PodLogClient(settings)

    async def read(letter: str) -> bytes:
        found = b""
        async with client.open(f"long-{letter}", since="", follow=True) as log:
            while part := await log.read():
                found += part
        return found

    try:
        return await asyncio.gather(*map(read, letters))
    finally:
        await client.close()


@pytest.mark.parametrize("status", [200, 401, 404, 503])
def test_an_answer_that_comes_with_the_end_of_its_connection_is_read(tmp_path: Path, status: int) -> None:
    """A refusal is known by its status, and a log is there."""
    with tls_pods(tmp_path) as settings:
        found = asyncio.run(asyncio.wait_for(_read_one(settings, f"gone-{status}"), 60))
    assert found == (status, "why it is so")


async def _read_one(settings: KubeSettings, pod: str) -> tuple[int, str]:
    client = PodLogClient(settings)
    try:
        async with client.open(pod, since="", follow=True) as log:
            return 200, (await log.read()).decode()
    except PodLogUnavailable as error:
        return error.status, str(error).rpartition(": ")[2]
    finally:
        await client.close()
