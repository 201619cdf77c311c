"""How Redis is reached: passwords, rights, TLS and sentinels, on a redis-server of the test's own."""

from __future__ import annotations

import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from ottoscaler.adapters.redis_backend import RedisBackend
from ottoscaler.adapters.redis_calls import RedisCalls
from ottoscaler.adapters.redis_client import address, connect, translate_errors
from ottoscaler.errors import RedisUnavailable
from ottoscaler.settings import KeySettings, RedisSettings
from tests.conftest import require
from tests.e2e.tcp_proxy import TcpProxy
from tests.fakes.wait import eventually

pytestmark = pytest.mark.real
Start = Callable[..., int]


def free_port() -> int:
    """A port that no process listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers with extra options on the command line, and stops them."""
    program = require("redis-server")
    running: list[subprocess.Popen[bytes]] = []

    def launch(*options: str, tls: bool = False, config: Path | None = None) -> int:
        port = free_port()
        folder = tmp_path / str(port)
        folder.mkdir()
        ports = ["--port", "0", "--tls-port", str(port)] if tls else ["--port", str(port)]
        first = [str(config)] if config else []
        command = [program, *first, *ports, "--dir", str(folder), "--save", "", *options]
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        eventually(lambda: _listens(port), what=f"a server on port {port}")
        return port

    yield launch
    for process in running:
        process.terminate()
        process.wait(10)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ping(settings: RedisSettings) -> bool:
    """Does the server answer us? Raises RedisUnavailable as the adapters do."""
    with closing(connect(settings, timeout_s=2)) as client, translate_errors(address(settings)):
        return bool(client.ping())


def refused(settings: RedisSettings) -> str:
    """The sentence with which a connection fails."""
    with pytest.raises(RedisUnavailable) as caught:
        ping(settings)
    return str(caught.value)


@pytest.mark.contract("2.REDIS_PASSWORD")
def test_the_password_is_used(start: Start) -> None:
    """A server that wants a password gets it."""
    secret = uuid.uuid4().hex
    assert ping(RedisSettings(host="127.0.0.1", port=start("--requirepass", secret), password=secret))


@pytest.mark.contract("2.REDIS_PASSWORD")
def test_a_wrong_password_is_named_and_not_shown(start: Start) -> None:
    """The sentence says which variables to set, and carries no secret."""
    wrong = uuid.uuid4().hex
    text = refused(RedisSettings(host="127.0.0.1", port=start("--requirepass", "right"), password=wrong))
    assert "REDIS_PASSWORD" in text
    assert wrong not in text


@pytest.mark.contract("2.REDIS_PASSWORD_FILE")
def test_a_rotated_password_is_used_without_a_restart(start: Start, tmp_path: Path) -> None:
    """The file is read at each connection."""
    path = tmp_path / "password"
    path.write_text("old\n", encoding="utf-8")
    settings = RedisSettings(host="127.0.0.1", port=start("--requirepass", "old"), password_file=str(path))
    with closing(connect(settings, timeout_s=2)) as client:
        client.ping()
        client.config_set("requirepass", "new")
        path.write_text("new\n", encoding="utf-8")
        client.connection_pool.disconnect()
        assert client.ping()


@pytest.mark.contract("2.REDIS_USERNAME")
def test_a_missing_right_is_named(start: Start) -> None:
    """An ACL user without a right that we need: the sentence says what the server refused."""
    port = start("--user", "otto", "on", ">pw", "~*", "+@connection", "+info")
    settings = RedisSettings(host="127.0.0.1", port=port, username="otto", password="pw")
    assert ping(settings)
    with (
        closing(connect(settings, timeout_s=2)) as client,
        pytest.raises(RedisUnavailable, match=r"does not permit a command .*xadd"),
        translate_errors(address(settings)),
    ):
        client.xadd("s", {"a": "b"})


@pytest.mark.contract("2.REDIS_HOST")
def test_a_missing_server_is_named_with_its_address() -> None:
    """The sentence names host and port, and the variables to look at."""
    port = free_port()
    text = refused(RedisSettings(host="127.0.0.1", port=port))
    assert f"127.0.0.1:{port} cannot be reached" in text
    assert "REDIS_HOST" in text


def test_one_dead_connection_closes_the_other_idle_ones(start: Start) -> None:
    """The first that is used again costs a time-out, and no other does: not one of another client either."""
    proxy = TcpProxy(start())
    server = RedisSettings(host="127.0.0.1", port=proxy.port)
    stream = RedisBackend(RedisCalls(server, KeySettings(consumer="c1"), lease_s=15, consumer="c1", incarnation="b"))
    stream.known_tasks(["e-1"])
    stream.expired(same_consumer=False)
    assert proxy.freeze() == 2
    with pytest.raises(RedisUnavailable, match="does not answer in time"):
        stream.expired(same_consumer=False)
    assert stream.known_tasks(["e-1"]) == {}
    stream.close()
    proxy.close()


@pytest.mark.contract("2.REDIS_DB")
def test_the_database_is_chosen(start: Start) -> None:
    """Keys of another database are not seen."""
    port = start()
    with closing(connect(RedisSettings(host="127.0.0.1", port=port, db=3), timeout_s=2)) as client:
        client.set("a", "b")
    with closing(redis.Redis("127.0.0.1", port, db=3)) as plain:
        assert plain.get("a") == b"b"


def certificate(folder: Path, host: str, *signed_by: str) -> tuple[str, str]:
    """A throw-away certificate for a host, and its key; self-signed unless options of openssl name an authority."""
    key, cert = folder / f"{host}.key", folder / f"{host}.crt"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={host}"]
    command += ["-addext", f"subjectAltName=DNS:{host}", "-keyout", str(key), "-out", str(cert), *signed_by]
    subprocess.run(command, check=True, capture_output=True)
    return str(cert), str(key)


@pytest.fixture
def tls_server(start: Start, tmp_path: Path) -> tuple[int, str]:
    """A server that speaks TLS only as `localhost`, and the file to trust."""
    cert, key = certificate(tmp_path, "localhost")
    options = ("--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert, "--tls-auth-clients", "no")
    return start(*options, tls=True), cert


@pytest.mark.contract("2.REDIS_TLS")
@pytest.mark.contract("2.REDIS_CA_FILE")
def test_tls_with_the_right_authority(tls_server: tuple[int, str]) -> None:
    """Encrypted, and the server's identity is proved."""
    port, cert = tls_server
    assert ping(RedisSettings(host="localhost", port=port, tls=True, ca_file=cert))


@pytest.mark.contract("2.REDIS_CA_FILE")
@pytest.mark.usefixtures("strict_tls")
def test_tls_with_a_plain_authority_of_ones_own(start: Start, tmp_path: Path) -> None:
    """The certificates lack extensions that Python 3.13 asks for by default; they are trusted all the same."""
    authority, key = certificate(tmp_path, "authority")
    cert, cert_key = certificate(tmp_path, "localhost", "-CA", authority, "-CAkey", key)
    options = ("--tls-cert-file", cert, "--tls-key-file", cert_key, "--tls-ca-cert-file", authority)
    port = start(*options, "--tls-auth-clients", "no", tls=True)
    assert ping(RedisSettings(host="localhost", port=port, tls=True, ca_file=authority))


@pytest.mark.contract("2.REDIS_TLS")
def test_tls_with_an_unknown_authority_is_refused(tls_server: tuple[int, str]) -> None:
    """Without the file, no authority that we know has signed the certificate."""
    port, _ = tls_server
    assert "certificate verify failed" in refused(RedisSettings(host="localhost", port=port, tls=True))


@pytest.mark.contract("2.REDIS_TLS")
def test_tls_with_another_host_name_is_refused(tls_server: tuple[int, str]) -> None:
    """The name in the certificate is checked."""
    port, cert = tls_server
    text = refused(RedisSettings(host="127.0.0.1", port=port, tls=True, ca_file=cert))
    assert "certificate verify failed" in text


@pytest.mark.contract("2.REDIS_SENTINELS")
@pytest.mark.contract("2.REDIS_SENTINEL_MASTER")
def test_sentinels_are_asked_for_the_master(start: Start, tmp_path: Path) -> None:
    """The master that they name is used."""
    master = start()
    config = tmp_path / "sentinel.conf"
    config.write_text(f"sentinel monitor mymaster 127.0.0.1 {master} 1\n", encoding="utf-8")
    sentinel = start("--sentinel", config=config)
    settings = RedisSettings(sentinels=(("127.0.0.1", sentinel),), sentinel_master="mymaster")
    assert eventually(lambda: ping(settings))
    with closing(connect(settings, timeout_s=2)) as client:
        assert cast("dict[str, Any]", client.info("server"))["tcp_port"] == master


@pytest.mark.contract("2.REDIS_SENTINEL_MASTER")
def test_an_unknown_master_is_named(start: Start, tmp_path: Path) -> None:
    """The sentence says which name the sentinels do not know."""
    config = tmp_path / "sentinel.conf"
    config.write_text(f"sentinel monitor mymaster 127.0.0.1 {start()} 1\n", encoding="utf-8")
    sentinel = start("--sentinel", config=config)
    assert "other" in refused(RedisSettings(sentinels=(("127.0.0.1", sentinel),), sentinel_master="other"))
