"""How the log handler is reached: by TLS, unless it is on this machine or plaintext is allowed."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from ottoscaler.errors import ConfigError
from ottoscaler.settings_log_handler import LogHandlerSettings, is_loopback


def load(**variables: str) -> LogHandlerSettings:
    """The settings of variables, named without LOG_HANDLER_."""
    return LogHandlerSettings.load({f"LOG_HANDLER_{name}": value for name, value in variables.items()})


def test_without_an_address_no_logs_are_streamed() -> None:
    """The defaults of the other variables."""
    settings = LogHandlerSettings.load({})
    assert settings == LogHandlerSettings()
    assert (settings.address, settings.target, settings.drain_s) == (None, "", 10)


@pytest.mark.parametrize(
    ("address", "target", "tls"),
    [
        ("otto-handler:50051", "otto-handler:50051", True),
        ("10.0.0.1:1", "10.0.0.1:1", True),
        ("localhost:50051", "localhost:50051", False),
        ("127.0.0.1:50051", "127.0.0.1:50051", False),
        ("[::1]:50051", "[::1]:50051", False),
    ],
)
def test_plaintext_is_for_this_machine(address: str, target: str, tls: bool) -> None:
    """Elsewhere it has to be allowed."""
    assert (load(ADDRESS=address).target, load(ADDRESS=address).is_tls) == (target, tls)
    assert not load(ADDRESS=address, PLAINTEXT="true").is_tls


def test_an_authority_asks_for_tls_on_this_machine_too(tmp_path: Path) -> None:
    """Otherwise a file that is set would have no effect."""
    assert load(ADDRESS="localhost:1", CA_FILE=_authorities()).is_tls


def _authorities() -> str:
    path = ssl.get_default_verify_paths().cafile
    if path is None or not Path(path).is_file():
        pytest.skip("needs the certificates of this machine")
    return path


@pytest.mark.parametrize(
    ("variables", "faults"),
    [
        ({"ADDRESS": "otto-handler"}, ["ADDRESS='otto-handler': expected host:port"]),
        ({"ADDRESS": "a:1,b:2"}, ["ADDRESS='a:1,b:2': expected one host:port"]),
        ({"ADDRESS": "http://me:s3cret@x:1"}, ["ADDRESS='http://***@x:1'"]),
        ({"CERT_FILE": __file__}, ["KEY_FILE=''"]),
        ({"KEY_FILE": __file__}, ["CERT_FILE=''"]),
        ({"ADDRESS": "x:1", "PLAINTEXT": "1", "CERT_FILE": __file__, "KEY_FILE": __file__}, ["PLAINTEXT='1'"]),
        ({"ADDRESS": "localhost:1", "CERT_FILE": __file__, "KEY_FILE": __file__}, ["CA_FILE=''"]),
        ({"CA_FILE": "/nowhere", "TOKEN_FILE": "/nowhere"}, ["CA_FILE='/nowhere'", "TOKEN_FILE='/nowhere'"]),
    ],
)
def test_faults_are_reported_together(variables: dict[str, str], faults: list[str]) -> None:
    """One line each, and no secret in any."""
    with pytest.raises(ConfigError) as caught:
        load(**variables)
    assert len(caught.value.faults) == len(faults)
    for fault, beginning in zip(caught.value.faults, faults, strict=True):
        assert fault.startswith(f"LOG_HANDLER_{beginning}")
        assert "s3cret" not in fault


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost.", True), ("127.8.8.8", True), ("::1", True), ("localhost.evil", False), ("x", False)],
)
def test_what_is_this_machine(host: str, local: bool) -> None:
    """By address, or by the one name that is reserved for it."""
    assert is_loopback(host) is local
