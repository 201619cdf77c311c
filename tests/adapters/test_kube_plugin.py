"""When a credential plugin is called, on a clock of our own, and what it is called with."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from msgspec.structs import replace

from ottoscaler.adapters import kube_plugin
from ottoscaler.adapters.kube_plugin import CredentialPlugin, authorization_header, one_line_error
from ottoscaler.api_server import PluginCommand
from ottoscaler.errors import ClusterUnavailable

API = "client.authentication.k8s.io/v1"
START = 1_000_000.0


class Plugin:
    """A plugin that answers at once, and the adapter for it. `now` is the monotonic clock and the wall clock."""

    def __init__(self) -> None:
        self.now = START
        self.status: dict[str, Any] | None = {"token": "abc"}
        self.called: list[float] = []
        self.certificates: list[tuple[str, str]] = []
        command = PluginCommand(["aws-iam"], {}, "/", API)
        self.adapter = CredentialPlugin(command, lambda one, other: self.certificates.append((one, other)))

    def ask(self, _provider: Any) -> dict[str, Any]:
        """What the plugin prints."""
        self.called.append(self.now - START)
        if self.status is None:
            raise ValueError("exit code 3: not now")
        return dict(self.status)

    def gives(self, token: str, lasts_s: float | None = None) -> None:
        """From now on, this credential."""
        self.status = {"token": token}
        if lasts_s is not None:
            self.status["expirationTimestamp"] = datetime.fromtimestamp(self.now + lasts_s, UTC).isoformat()

    def at(self, seconds: float) -> str:
        """The credential at this time after the start, or why there is none."""
        self.now = START + seconds
        try:
            return str(self.adapter.bearer())
        except ClusterUnavailable as error:
            return f"unclear: {error}" if error.unclear else str(error)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Plugin:
    """One with a credential that never expires."""
    made = Plugin()
    monkeypatch.setattr(kube_plugin, "time", SimpleNamespace(monotonic=lambda: made.now, time=lambda: made.now))
    monkeypatch.setattr(kube_plugin, "_run_plugin", made.ask)
    return made


def test_a_credential_without_an_end_is_asked_for_once(plugin: Plugin) -> None:
    """However long it is in use."""
    assert [plugin.at(moment) for moment in (0, 1, 10**7)] == ["Bearer abc"] * 3
    assert plugin.called == [0]


def test_a_credential_is_renewed_15_seconds_before_its_end(plugin: Plugin) -> None:
    """Not before that, and once."""
    plugin.gives("one", lasts_s=100)
    plugin.at(0)
    plugin.gives("two", lasts_s=1000)
    assert [plugin.at(moment) for moment in (84.9, 85.0, 85.1)] == ["Bearer one", "Bearer two", "Bearer two"]
    assert plugin.called == [0, 85]


def test_a_short_credential_is_renewed_after_a_second(plugin: Plugin) -> None:
    """One that ends at once, and one that has ended, count for two seconds."""
    for lasts_s in (5, 0, -4000):
        plugin.gives("one", lasts_s)
        plugin.at(0)
        del plugin.called[:]
        plugin.status = None
        assert plugin.at(0.9) == "Bearer one"
        assert plugin.called == []
        assert plugin.at(1.0) == "Bearer one"
        assert plugin.called == [1.0]
        assert plugin.at(1.9) == "Bearer one"
        assert ("gives no credential" in plugin.at(2.0)) is (lasts_s < 2)
        plugin.adapter = CredentialPlugin(plugin.adapter._command, lambda *_: None)


def test_the_pause_after_a_failure_doubles_up_to_30_seconds(plugin: Plugin) -> None:
    """And a success ends that. The sentence names what failed, how, and that it is called again."""
    plugin.status = None
    said = plugin.at(0)
    assert said == "the credential plugin aws-iam gives no credential (exit code 3: not now); it is called again"
    for tenth in range(1, 1300):
        plugin.at(tenth / 10)
    assert plugin.called == [0, 1, 3, 7, 15, 31, 61, 91, 121]
    plugin.now = START + 151
    plugin.gives("one", lasts_s=30)
    assert plugin.at(151) == "Bearer one"
    plugin.status = None
    del plugin.called[:]
    for tenth in range(1510, 1700):
        plugin.at(tenth / 10)
    assert plugin.called == [166, 167, 169]


def test_without_a_credential_each_call_says_so(plugin: Plugin) -> None:
    """Up to the moment at which it is called again."""
    plugin.status = None
    plugin.at(0)
    plugin.gives("abc")
    assert "not now" in plugin.at(0.9)
    assert plugin.at(1.0) == "Bearer abc"


def test_a_refused_credential_is_asked_for_again_after_a_second(plugin: Plugin) -> None:
    """Counted from its renewal; meanwhile the sentence names the server's answer."""
    plugin.at(0)
    plugin.gives("two")
    plugin.adapter.credential_rejected("Bearer abc")
    assert "(the API server refuses it (401))" in plugin.at(0.9)
    assert plugin.at(1.0) == "Bearer two"
    assert plugin.called == [0, 1.0]


def test_only_the_credential_in_use_can_be_refused(plugin: Plugin) -> None:
    """A thread that used the one before is late, and its refusal ends nothing."""
    plugin.at(0)
    for token in ("Bearer other", None):
        plugin.adapter.credential_rejected(token)
    assert plugin.at(10) == "Bearer abc"
    assert plugin.called == [0]


def test_refusals_within_a_minute_count_as_a_row(plugin: Plugin) -> None:
    """The pause doubles; a credential that held for a minute begins a new row."""
    plugin.at(0)
    steps = ((0, 1), (1, 3), (3, 7), (62, 62), (62, 78), (138, 138), (138, 140))
    for refused_at, again_at in steps:  # the last but one is 60 s after its renewal
        plugin.now = START + refused_at
        plugin.adapter.credential_rejected("Bearer abc")
        plugin.adapter.credential_rejected("Bearer abc")
        if again_at > refused_at:
            assert "401" in plugin.at(again_at - 0.1)
        assert plugin.at(again_at) == "Bearer abc"


def test_a_certificate_is_handed_over_with_its_key(plugin: Plugin) -> None:
    """There may be a token beside it; without either there is no credential."""
    plugin.status = {"clientCertificateData": "CERT", "clientKeyData": "KEY"}
    assert plugin.at(0) == "None"
    assert plugin.certificates == [("CERT", "KEY")]
    plugin.adapter = CredentialPlugin(plugin.adapter._command, lambda *_: None)
    plugin.status = {"clientCertificateData": "CERT", "clientKeyData": "KEY", "token": "abc"}
    assert plugin.at(0) == "Bearer abc"
    for status, sentence in (
        ({}, "it printed neither a token nor a certificate"),
        ({"token": ""}, "it printed neither a token nor a certificate"),
        ({"clientCertificateData": "CERT"}, "it has not the form of a kubeconfig"),
        ({"token": "abc", "expirationTimestamp": "soon"}, "Invalid isoformat string: 'soon'"),
        ({"token": "abc", "expirationTimestamp": 7}, "it has not the form of a kubeconfig"),
    ):
        plugin.adapter = CredentialPlugin(plugin.adapter._command, lambda *_: None)
        plugin.status = status
        assert f"({sentence})" in plugin.at(0)


def test_a_plugin_runs_with_its_arguments_and_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder and with the variables of its kubeconfig; a version that is not asked for is refused."""
    ran: list[tuple[Any, dict[str, Any]]] = []
    output = json.dumps({"apiVersion": API, "kind": "ExecCredential", "status": {"token": "abc"}})

    def run(arguments: Any, **options: Any) -> Any:
        ran.append((arguments, options))
        return subprocess.CompletedProcess(arguments, 0, output, "")

    monkeypatch.setattr(subprocess, "run", run)
    command = PluginCommand(["aws", "get"], {"A": "1"}, "/x", API)
    assert kube_plugin._run_plugin(command) == {"token": "abc"}
    [(arguments, options)] = ran
    environment = options.pop("env")
    assert json.loads(environment.pop("KUBERNETES_EXEC_INFO")) == {
        "apiVersion": API, "kind": "ExecCredential", "spec": {"interactive": False}
    }  # fmt: skip
    assert (arguments, environment) == (["aws", "get"], {"A": "1"})
    assert options == {
        "cwd": "/x", "stdin": subprocess.DEVNULL, "capture_output": True, "text": True,
        "timeout": kube_plugin.PLUGIN_TIMEOUT_S, "check": False,
    }  # fmt: skip
    command = replace(command, api_version="client.authentication.k8s.io/v1beta1")
    with pytest.raises(ValueError, match=f"it speaks '{API}', the kubeconfig wants .*v1beta1"):
        kube_plugin._run_plugin(command)


def test_of_what_a_failed_plugin_says_the_end_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last 300 characters: the first lines are often a trace."""
    said = subprocess.CompletedProcess([], 7, "", "x" * 1000 + " the end\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)
    command = PluginCommand(["aws"], {}, "/", API)
    with pytest.raises(ValueError, match="exit code 7: ") as caught:
        kube_plugin._run_plugin(command)
    assert str(caught.value) == "exit code 7: " + ("x" * 1000 + " the end")[-300:]


@pytest.mark.parametrize(
    "credential", ["", " ", "Bearer", "Bearer ", " Bearer\n", "Bearer a\nb", "Bearer \u20ac", "Bearer a\x7f"]
)
def test_what_no_header_can_carry_is_refused(credential: str) -> None:
    """A scheme without a credential, too."""
    with pytest.raises(ValueError, match="its token is empty"):
        authorization_header(credential)


def test_a_header_loses_the_white_space_around_it() -> None:
    """A file ends with a line break."""
    assert authorization_header(" Bearer abc\n") == "Bearer abc"


def _not_yaml(text: str) -> yaml.YAMLError:
    with pytest.raises(yaml.YAMLError) as caught:
        yaml.safe_load(text)
    return caught.value


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (_not_yaml("a: 1\nb: [\n"), "it is not YAML (line 3)"),
        (yaml.YAMLError("s3cr3t"), "it is not YAML"),
        (TypeError("s3cr3t"), "it has not the form of a kubeconfig"),
        (AttributeError("s3cr3t"), "it has not the form of a kubeconfig"),
        (KeyError("s3cr3t"), "it has not the form of a kubeconfig"),
        (ValueError("a\n b\t c"), "a b c"),
        (ValueError("in /{'token': \n 's3cr3t'} it is"), "in it is"),
        (ValueError(""), "ValueError"),
        (OSError("x" * 301), "x" * 300),
    ],
)
def test_an_error_is_one_line_without_the_file_in_it(error: BaseException, sentence: str) -> None:
    """At most 300 characters."""
    assert one_line_error(error) == sentence
