"""Certificates and the token of the log handler, read again when their files change: no restart, and no log is lost."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ottoscaler.adapters.handler_probe import connect_once
from ottoscaler.adapters.log_client import LogHandlerClient
from ottoscaler.adapters.log_server import ServerSettings, start
from ottoscaler.errors import LogHandlerUnavailable
from ottoscaler.proto.log_streaming_pb2 import RegistrationResponse, WorkerRegistration
from ottoscaler.settings_log_handler import LogHandlerSettings
from tests.forwarder.processes import certificates

pytestmark = [
    pytest.mark.contract("2.LOG_HANDLER_CA_FILE", "2.LOG_HANDLER_CERT_FILE", "2.LOG_HANDLER_KEY_FILE"),
    pytest.mark.timeout(120),
]
LONG_S = 60.0
FILES = ("ca.crt", "worker.crt", "worker.key")


class Accepting:
    """A receiver that accepts all workers."""

    def register(self, registration: Any) -> Any:
        """Yes."""
        return RegistrationResponse(session_id=registration.worker_id)

    def receive(self, worker_id: str, entries: Iterable[Any]) -> Iterable[Any]:
        """Nothing is sent in these tests."""
        raise NotImplementedError


def replace_files(source: Path, target: Path) -> None:
    """As a mounted secret changes: each file is another one then, in one step."""
    for name in FILES:
        shutil.copy(source / name, target / "next")
        os.replace(target / "next", target / name)


async def serve(folder: Path, port: int = 0) -> tuple[Any, int]:
    """A handler with the certificates of a folder, which wants one of clients; returns it with its port."""
    files = {name: str(folder / file) for name, file in (
        ("cert_file", "server.crt"), ("key_file", "server.key"), ("client_ca_file", "ca.crt"),
    )}  # fmt: skip
    return await start(Accepting(), ServerSettings(address=f"127.0.0.1:{port}", **files))


async def registered(client: LogHandlerClient) -> bool:
    """Whether a registration is answered, and not refused for its certificates."""
    try:
        answer = await client.register(WorkerRegistration(worker_id="w-1", task_id="t-1"))
    except LogHandlerUnavailable:
        return False
    return bool(answer.session_id == "w-1")


async def until_registered(client: LogHandlerClient) -> None:
    """The channel may be pausing after the last failure."""
    async with asyncio.timeout(LONG_S):
        while not await registered(client):
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `old` and `new`, each with an authority and what it has issued to a server and to a worker."""
    folder = tmp_path_factory.mktemp("issued")
    for name in ("old", "new"):
        (folder / name).mkdir()
        certificates(folder / name, "server", "worker")
    return folder


def test_certificates_that_were_replaced_are_used_without_a_restart(issued: Path, tmp_path: Path) -> None:
    """Those of the authority, of the client, and its key: a handler of another authority is refused until then."""
    replace_files(issued / "old", tmp_path)
    used = [str(tmp_path / name) for name in FILES]

    async def rotate() -> None:
        server, port = await serve(issued / "old")
        settings = LogHandlerSettings(address=("127.0.0.1", port), ca_file=used[0], cert_file=used[1], key_file=used[2])
        client = LogHandlerClient(settings)
        await until_registered(client)
        await server.stop(0)
        server, _ = await serve(issued / "new", port)
        assert not await registered(client)
        replace_files(issued / "new", tmp_path)
        await until_registered(client)
        await client.close()
        await server.stop(0)

    asyncio.run(rotate())


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        (("old/ca.crt", "old/worker.crt", "old/worker.key"), ""),
        (("old/ca.crt", None, None), ""),  # since TLS 1.3 the client is refused later, when it registers
        (("new/ca.crt", "old/worker.crt", "old/worker.key"), "certificate verify failed"),
        (("old/ca.crt", "old/worker.crt", "old/server.key"), "key values mismatch"),
        (("old/ca.crt", "old/worker.key", "old/worker.crt"), "no start line|PEM lib"),
    ],
)
def test_a_look_at_the_handler_uses_the_same_files(issued: Path, files: tuple[str | None, ...], fault: str) -> None:
    """As `doctor` does, without gRPC; what does not fit together is the fault of the TLS."""
    ca, cert, key = (name and str(issued / name) for name in files)

    async def look() -> None:
        server, port = await serve(issued / "old")
        settings = LogHandlerSettings(address=("127.0.0.1", port), ca_file=ca, cert_file=cert, key_file=key)
        try:
            await asyncio.to_thread(connect_once, settings)
        finally:
            await server.stop(0)

    if not fault:
        asyncio.run(look())
        return
    with pytest.raises(LogHandlerUnavailable, match=f"(?i){fault}") as caught:
        asyncio.run(look())
    assert caught.value.denied


def test_a_token_that_was_replaced_is_used_without_a_restart(tmp_path: Path) -> None:
    """The handler reads its own again, too."""
    ours, its = tmp_path / "ours", tmp_path / "its"
    ours.write_text("first\n", encoding="utf-8")
    its.write_text("first\n", encoding="utf-8")

    async def rotate() -> None:
        settings = ServerSettings(address="127.0.0.1:0", token_file=str(its))
        server, port = await start(Accepting(), settings)
        client = LogHandlerClient(LogHandlerSettings(address=("127.0.0.1", port), token_file=str(ours)))
        await until_registered(client)
        its.write_text("second\n", encoding="utf-8")
        assert not await registered(client)
        ours.write_text("second\n", encoding="utf-8")
        await until_registered(client)
        await client.close()
        await server.stop(0)

    asyncio.run(rotate())
