"""The embedded Redis: there when start returns, durable, and never left behind."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from ottoscaler.errors import LocalSystemError
from ottoscaler.local.redis import EmbeddedRedis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A started server."""
    embedded = EmbeddedRedis(tmp_path / "redis")
    embedded.start()
    yield embedded
    embedded.close()


def connect(server: EmbeddedRedis) -> redis.Redis:
    """A client that closes its connection after use in a with block."""
    return redis.Redis(host=server.host, port=server.port, decode_responses=True)


def test_it_answers_when_start_returns(server: EmbeddedRedis) -> None:
    """On loopback only."""
    with connect(server) as client:
        assert client.ping()
        assert client.config_get("bind")["bind"] == "127.0.0.1"


def test_its_settings_are_those_that_ottoscaler_asks_for(server: EmbeddedRedis) -> None:
    """Append-only file on, nothing evicted, no snapshots."""
    with connect(server) as client:
        found = client.config_get("appendonly", "maxmemory-policy", "save")
    assert found == {"appendonly": "yes", "maxmemory-policy": "noeviction", "save": ""}


def test_what_was_acknowledged_survives_a_killed_server(server: EmbeddedRedis, tmp_path: Path) -> None:
    """Stream, group and pending entries come back from the append-only file."""
    with connect(server) as client:
        entry = client.xadd("events", {"type": "scale_up"})
        client.xgroup_create("events", "otto", id="0")
        client.xreadgroup("otto", "one", {"events": ">"})
        # While a slow disk still syncs, the server may put off the next write, by two seconds at most.
        assert client.execute_command("WAITAOF", 1, 0, 20_000)[0] == 1
        os.kill(client.info("server")["process_id"], signal.SIGKILL)
    server.close()
    server.start()
    with connect(server) as client:
        assert client.xlen("events") == 1
        assert [each["message_id"] for each in client.xpending_range("events", "otto", "-", "+", 10)] == [entry]


def test_a_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    """Not a server that answers for another."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(LocalSystemError, match=f"port {port} cannot be used"):
            EmbeddedRedis(tmp_path, port=port).start()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    """Its own last words are in the error."""
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho out of luck\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(LocalSystemError, match=r"exit code 3.*out of luck"):
        EmbeddedRedis(tmp_path / "data", port=None, binary=broken).start()


def test_close_ends_the_server_and_may_be_repeated(server: EmbeddedRedis) -> None:
    """No process listens afterwards."""
    port = server.port
    server.close()
    server.close()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_the_port_is_unknown_before_the_start(tmp_path: Path) -> None:
    """Unless it was asked for."""
    assert EmbeddedRedis(tmp_path, port=7000).port == 7000
    with pytest.raises(LocalSystemError, match="only after start"):
        _ = EmbeddedRedis(tmp_path).port
