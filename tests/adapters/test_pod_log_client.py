"""The logs of pods over aiohttp: what each answer of the API server means, and what none means."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ottoscaler.adapters.pod_log_client import PodLogClient
from ottoscaler.api_server import ApiServer
from ottoscaler.errors import PodLogUnavailable
from ottoscaler.settings import KubeSettings
from tests.adapters.test_kube_http import served, settings
from tests.readme import ROOT

pytestmark = pytest.mark.contract("1.logs")


def read(folder: Path, port: int) -> bytes:
    """The whole log of a pod, by a server on this port. Raises PodLogUnavailable."""
    return read_by(lambda: PodLogClient(settings(folder, port)))


def read_by(make_client: Callable[[], PodLogClient]) -> bytes:
    """The whole log of a pod. Raises PodLogUnavailable."""

    async def all_of_it() -> bytes:
        client, found = make_client(), b""
        try:
            async with client.open("p", since="2024-05-01T10:00:00Z", follow=True) as log:
                while part := await log.read():
                    found += part
        finally:
            await client.close()
        return found

    return asyncio.run(asyncio.wait_for(all_of_it(), 20))


def answers(head: str, body: bytes = b"") -> Callable[[socket.socket], None]:
    """A server that sends this, and ends the connection."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(f"HTTP/1.1 {head}\r\n\r\n".encode() + body)
        connection.shutdown(socket.SHUT_RDWR)

    return answer


@pytest.mark.parametrize("size", [0, 1, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 1_000_000])
def test_a_log_is_read_whole(size: int, tmp_path: Path) -> None:
    """However large it is against what waits in memory. The request names container, time and credential."""
    asked: list[bytes] = []
    with served(answers(f"200 OK\r\nContent-Length: {size}", b"x" * size), asked) as port:
        assert read(tmp_path, port) == b"x" * size
    [request] = asked
    line, *headers = request.decode().split("\r\n")
    assert line.startswith("GET /api/v1/namespaces/default/pods/p/log?")
    assert all(
        part in line for part in ("container=agent", "sinceTime=2024-05-01T10", "follow=true", "timestamps=true")
    )
    assert "Authorization: Bearer abc" in headers


def test_a_server_that_is_handed_over_needs_no_kubeconfig(tmp_path: Path) -> None:
    """The controller has read it."""
    asked: list[bytes] = []
    with served(answers("200 OK", b"a line"), asked) as port:
        server = ApiServer(f"http://127.0.0.1:{port}", authorization="Bearer of-the-controller")
        nowhere = KubeSettings(kubeconfig=str(tmp_path / "not-there"))
        assert read_by(lambda: PodLogClient(nowhere, server)) == b"a line"
    assert b"Authorization: Bearer of-the-controller" in asked[0]


def test_the_kubeconfig_is_read_where_its_temporary_files_are_gone(tmp_path: Path) -> None:
    """A forwarder may be started again a week after its controller."""
    gone = ApiServer("https://127.0.0.1:1", ca_file=str(tmp_path / "gone.crt"))
    with served(answers("200 OK", b"a line")) as port:
        assert read_by(lambda: PodLogClient(settings(tmp_path, port), gone)) == b"a line"


def test_the_log_forwarder_does_not_load_the_official_client() -> None:
    """It has 20 MiB."""
    program = "import sys, ottoscaler.forwarder.process; print({'kubernetes', 'pydantic'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("head", "body", "status", "words"),
    [
        ("404 Not Found", b'pods "p" not found', 404, 'answers 404: pods "p" not found'),
        ("401 Unauthorized", b"Unauthorized", 401, "answers 401: Unauthorized"),
        ("500 Internal Server Error", b"a\nb", 500, "answers 500: a b"),
        ("302 Found\r\nLocation: /elsewhere", b"", 302, "answers 302"),
    ],
)
def test_a_refusal_is_known_by_its_status(head: str, body: bytes, status: int, words: str, tmp_path: Path) -> None:
    """With the words of the server; a redirection is not followed."""
    with (
        served(answers(f"{head}\r\nContent-Length: {len(body)}", body)) as port,
        pytest.raises(PodLogUnavailable) as caught,
    ):
        read(tmp_path, port)
    assert (caught.value.status, words in str(caught.value)) == (status, True)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda connection: connection.shutdown(socket.SHUT_RDWR), "does not answer (Server disconnected)"),
        (answers("no HTTP"), "does not answer"),
        (answers("200 OK\r\nContent-Length: 9", b"half"), "the log broke off"),
    ],
)
def test_no_answer_and_half_an_answer_are_unavailable(
    answer: Callable[[socket.socket], None], words: str, tmp_path: Path
) -> None:
    """Without a status: it says nothing about the pod."""
    with served(answer) as port, pytest.raises(PodLogUnavailable) as caught:
        read(tmp_path, port)
    assert words in str(caught.value)
    assert not caught.value.status


def test_a_server_that_is_away_is_unavailable(tmp_path: Path) -> None:
    """The port is free: nothing listens there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(PodLogUnavailable, match="does not answer"):
        read(tmp_path, port)
