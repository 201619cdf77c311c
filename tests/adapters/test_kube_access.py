"""The way to the API server: what no kubeconfig may do to us, and credentials that come and go."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes.config import incluster_config

from ottoscaler.adapters import kube_access, kube_plugin, kubeconfig
from ottoscaler.adapters.api_access import TOKEN_CACHE_S, ApiAccess
from ottoscaler.adapters.kube_access import KubeAccess
from ottoscaler.adapters.kubeconfig import describe_access
from ottoscaler.cli.main import main
from ottoscaler.errors import ClusterUnavailable, ConfigError
from ottoscaler.settings import KubeSettings
from tests.fakes.wait import eventually

Json = dict[str, Any]
SECRET = "s3cr3t-t0k3n"
API = "client.authentication.k8s.io/v1"


def config(*, server: str = "https://127.0.0.1:6443", cluster: Json | None = None, **user: Any) -> Json:
    """A kubeconfig as an object."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server} | (cluster or {})}],
        "users": [{"name": "u", "user": user or {"token": SECRET}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }


def written(folder: Path, content: Json | str | bytes) -> Path:
    """A kubeconfig with that content."""
    path = folder / "kubeconfig"
    text = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def access(folder: Path, content: Json | str | bytes) -> KubeAccess:
    """What comes of a kubeconfig with that content."""
    return KubeAccess(KubeSettings(kubeconfig=str(written(folder, content))))


def b64(text: str) -> str:
    """As kubeconfigs have their data."""
    return base64.b64encode(text.encode()).decode()


def without(content: Json, *path: str | int) -> Json:
    """The same without the value at that place."""
    copy: Json = json.loads(json.dumps(content))
    place: Any = copy
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return copy


_PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
UNUSABLE: dict[str, Json | str | bytes] = {
    "text": f"this is a note, my token is {SECRET}",
    "bad YAML": f"clusters: [\n  token: {SECRET}: {{",
    "a tab": f"users:\n\t- token: {SECRET}",
    "a list": "- a\n- b",
    "a number": "7",
    "empty": "",
    "an empty object": "{}",
    "binary": b"\x00\xff\xfe" + SECRET.encode(),
    "not UTF-8": b"clusters: \xff\xff",
    "clusters is text": config() | {"clusters": "none"},
    "users is an object": config() | {"users": {"u": {"token": SECRET}}},
    "a user without user": config() | {"users": [{"name": "u", "token": SECRET}]},
    "a cluster without name": config() | {"clusters": [{"cluster": {"server": "https://127.0.0.1:1"}}]},
    "unknown context": config() | {"current-context": "elsewhere"},
    "no current context": without(config(), "current-context"),
    "unknown cluster": config() | {"clusters": []},
    "no server": without(config(), "clusters", 0, "cluster", "server"),
    "server without scheme": config(server="10.0.0.1:6443"),
    "server of another scheme": config(server="ftp://10.0.0.1"),
    "server is a number": config() | {"clusters": [{"name": "c", "cluster": {"server": 6443}}]},
    "server with an empty label": config(server=f"https://u:{SECRET}@a..b:1"),
    "server of another scheme with a password": config(server=f"ftp://u:{SECRET}@10.0.0.1"),
    "port too large": config(server="https://10.0.0.1:99999"),
    "port 0": config(server="https://10.0.0.1:0"),
    "port is a word": config(server="https://10.0.0.1:https"),
    "no host": config(server="https://:6443"),
    "CA file missing": config(cluster={"certificate-authority": "/not/there.crt"}),
    "CA file is a folder": config(cluster={"certificate-authority": "/"}),
    "CA data is not base64": config(cluster={"certificate-authority-data": "%%%"}),
    "CA data is text": config(cluster={"certificate-authority-data": b64("hello")}),
    "CA data is no certificate": config(cluster={"certificate-authority-data": b64(_PEM)}),
    "client certificate missing": config(**{"client-certificate": "/no.crt", "client-key": "/no.key"}),
    "client certificate is text": config(**{"client-certificate-data": b64("hi"), "client-key-data": b64("hi")}),
    "client certificate without key": config(**{"client-certificate-data": b64(_PEM)}),
    "client certificate is not base64": config(**{"client-certificate-data": "%", "client-key-data": "%"}),
    "token of two lines": config(token=f"{SECRET}\nx"),
    "token of other letters": config(token=f"{SECRET}\u20ac"),
    "user missing": config() | {"users": [{"name": "v", "user": {"token": SECRET}}]},
    "impersonation": config(token=SECRET, **{"as": "admin"}),
    "token file missing": config(tokenFile="/not/there"),
    "plugin missing": config(exec={"apiVersion": API, "command": "otto-no-such-plugin"}),
    "plugin missing, with a path": config(exec={"apiVersion": API, "command": "/no/such/plugin"}),
    "plugin without command": config(exec={"apiVersion": API}),
    "plugin without version": config(exec={"command": "true"}),
    "plugin is text": config(exec="aws eks get-token"),
    "proxy of another scheme": config(cluster={"proxy-url": "ftp://127.0.0.1:1"}),
    "proxy port": config(cluster={"proxy-url": "http://127.0.0.1:99999"}),
}


@pytest.mark.contract("1.exit-codes")
@pytest.mark.parametrize("content", UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_kubeconfig_is_one_sentence(tmp_path: Path, content: Json | str | bytes) -> None:
    """It names the variable and the file, says what is wrong and what to do, and never shows a secret."""
    with pytest.raises(ConfigError) as caught:
        access(tmp_path, content)
    [fault] = caught.value.faults
    assert fault.startswith(f"KUBECONFIG={tmp_path / 'kubeconfig'} ")
    assert "set KUBECONFIG" in fault
    assert "\n" not in fault
    assert SECRET not in fault


def test_a_kubeconfig_that_is_not_there(tmp_path: Path) -> None:
    """Nor one that may not be read."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match="KUBECONFIG="):
            KubeAccess(KubeSettings(kubeconfig=str(path)))


def test_the_command_ends_with_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And one line, without a traceback."""
    path = written(tmp_path, config(cluster={"certificate-authority-data": b64("hello")}))
    for name, value in {"KUBECONFIG": str(path), "HTTP_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main([]) == 2
    told = capsys.readouterr().err
    assert "certificate authority" in told
    assert "Traceback" not in told


def test_a_key_of_another_certificate_and_an_encrypted_one(tmp_path: Path) -> None:
    """OpenSSL would ask for the password on the terminal, and wait."""

    def run(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)

    run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "a.key", "-out", "a.crt", "-subj", "/CN=a")
    run("genrsa", "-out", "b.key", "2048")
    run("rsa", "-aes256", "-passout", "pass:x", "-in", "a.key", "-out", "locked.key")
    for key in ("b.key", "locked.key"):
        with pytest.raises(ConfigError, match="client certificate and key"):
            access(tmp_path, config(**{"client-certificate": "a.crt", "client-key": key}))
    access(tmp_path, config(**{"client-certificate": "a.crt", "client-key": "a.key"}))


def test_a_context_needs_no_user(tmp_path: Path) -> None:
    """A server may ask for none, such as that of `kubectl proxy`."""
    made = access(tmp_path, without(config(), "contexts", 0, "context", "user"))
    assert made.authorization_header() is None


HANDED_OVER: dict[str, Json] = {
    "token": {"token": SECRET},
    "name and password": {"username": "otto", "password": SECRET},
}


@pytest.mark.parametrize("user", HANDED_OVER.values(), ids=HANDED_OVER)
def test_another_process_reaches_the_server_as_this_one_does(tmp_path: Path, user: Json) -> None:
    """By values alone: without the kubeconfig, and without the official client."""
    cluster = {"tls-server-name": "api.example", "insecure-skip-tls-verify": True, "proxy-url": "http://127.0.0.1:3128"}
    made = access(tmp_path, config(cluster=cluster, **user))
    assert made.handed_over is not None
    other = ApiAccess(made.handed_over)
    assert other.authorization_header() == made.authorization_header()
    assert other.context is not None
    assert (other.context.verify_mode, other.context.check_hostname) == (ssl.CERT_NONE, False)
    found = other.server
    assert (found.url, found.proxy, found.tls_server_name, found.verify) == (
        "https://127.0.0.1:6443", "http://127.0.0.1:3128", "api.example", False
    )  # fmt: skip


def test_a_token_file_and_a_plugin_are_handed_over_as_such(tmp_path: Path) -> None:
    """Both give another credential later."""
    (tmp_path / "token").write_text("one")
    by_file = access(tmp_path, config(tokenFile="token")).handed_over
    assert by_file is not None
    assert (by_file.token_file, by_file.authorization) == (str(tmp_path / "token"), "")
    command = {"apiVersion": API, "command": "true", "args": ["--now"], "provideClusterInfo": True}
    by_plugin = access(tmp_path, config(exec=command)).handed_over
    assert by_plugin is not None
    assert by_plugin.plugin is not None
    assert by_plugin.plugin.args == ["true", "--now"]
    assert by_plugin.plugin.cluster == {"server": "https://127.0.0.1:6443"}


def test_the_token_of_an_identity_provider_is_the_official_clients_to_renew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows how, so another process has to read the kubeconfig itself."""
    claims = base64.urlsafe_b64encode(json.dumps({"exp": 4_000_000_000}).encode()).decode().rstrip("=")
    issuer = {"id-token": f"e30.{claims}.c2ln", "idp-issuer-url": "https://127.0.0.1:1", "client-id": "x"}
    made = access(tmp_path, config(**{"auth-provider": {"name": "oidc", "config": issuer}}))
    assert made.authorization_header() == f"Bearer e30.{claims}.c2ln"
    assert made.handed_over is None
    monkeypatch.setattr(made.configuration, "get_api_key_with_prefix", lambda _name: "Bearer renewed")
    eventually(lambda: made.authorization_header() == "Bearer renewed", TOKEN_CACHE_S + 1)


def test_all_connections_share_one_tls_context(tmp_path: Path) -> None:
    """With certificates in the pool's options as well, each connection would load them again."""
    made = access(tmp_path, config())
    options = made.manager.connection_pool_kw
    assert options["ssl_context"] is made.context
    assert not options.keys() & {"ca_certs", "ca_cert_data", "cert_file", "key_file", "cert_reqs"}


def test_a_token_file_is_read_again(tmp_path: Path) -> None:
    """Tokens of ServiceAccounts rotate."""
    (tmp_path / "token").write_text("one\n")
    made = access(tmp_path, config(tokenFile="token"))
    assert made.authorization_header() == "Bearer one"
    (tmp_path / "token").write_text("two\n")
    eventually(lambda: made.authorization_header() == "Bearer two", TOKEN_CACHE_S + 1)
    (tmp_path / "token").unlink()

    def refused() -> bool:
        try:
            made.authorization_header()
        except ClusterUnavailable:
            return True
        return False

    eventually(refused, TOKEN_CACHE_S + 1)


def test_white_space_around_a_token_is_none_of_it(tmp_path: Path) -> None:
    """A block of YAML ends with a line break."""
    assert access(tmp_path, config(token="one\n")).authorization_header() == "Bearer one"
    assert access(tmp_path, config(username="a", password="b")).authorization_header() == "Basic YTpi"


@pytest.mark.parametrize("text", ["", " \n", "one\ntwo", "one\x00", "\u20ac"])
def test_a_token_file_with_what_no_header_can_carry_gives_no_token(tmp_path: Path, text: str) -> None:
    """The HTTP library would raise, and quote it: here it is an outage, which ends when the file is whole again."""
    (tmp_path / "token").write_text(text, encoding="utf-8")
    with pytest.raises(ClusterUnavailable, match="no HTTP header can carry") as caught:
        access(tmp_path, config(tokenFile="token")).authorization_header()
    assert not text.strip() or text not in str(caught.value)
    assert not caught.value.unclear


def test_of_several_files_the_first_one_that_names_a_context_decides(tmp_path: Path) -> None:
    """As in kubectl: otherwise we would use another cluster than it does. Files that are empty or missing are none."""
    for name, port in (("a", 1), ("b", 2)):
        content = config(server=f"https://127.0.0.1:{port}") | {"current-context": name}
        content["clusters"][0]["name"] = name
        content["contexts"][0] |= {"name": name, "context": content["contexts"][0]["context"] | {"cluster": name}}
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "unset").write_text('{"current-context": ""}')
    for first, port in (("a", 1), ("b", 2)):
        other = "ab".replace(first, "")
        for files in (
            [first, other],
            ["empty", first, "none", other],
            ["unset", first, other],
            [first, "empty", other, "unset"],
        ):
            settings = KubeSettings(kubeconfig=":".join(str(tmp_path / name) for name in files))
            assert KubeAccess(settings).configuration.host == f"https://127.0.0.1:{port}"
            assert describe_access(settings).endswith(f", context {first}")


@pytest.mark.parametrize(
    ("in_cluster", "given", "default", "said"),
    [
        (False, "given", "default", "by KUBECONFIG={folder}/given, context x"),
        (False, "", "default", "by {folder}/default, context x"),
        (False, "", "none", "by {folder}/none"),
        (False, "broken", "default", "by KUBECONFIG={folder}/broken"),
        (True, "", "default", "by the pod's ServiceAccount"),
        (True, "given", "default", "by KUBECONFIG={folder}/given, context x"),
    ],
)
def test_the_log_names_where_the_access_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_cluster: bool, given: str, default: str, said: str
) -> None:
    """KUBECONFIG before the pod's ServiceAccount, and without either the user's own file."""
    for name in ("given", "default"):
        (tmp_path / name).write_text(json.dumps(config()))
    (tmp_path / "broken").write_text("{")
    monkeypatch.setattr(kubeconfig, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / default))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if in_cluster:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    settings = KubeSettings(kubeconfig=str(tmp_path / given) if given else "")
    assert describe_access(settings) == said.format(folder=tmp_path)


def test_a_pod_uses_its_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is given a kubeconfig; outside a pod there is no such account to ask for."""
    monkeypatch.setattr(kube_access, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match=f"KUBECONFIG={tmp_path}/none gives no access"):
        KubeAccess(KubeSettings())
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    with pytest.raises(ConfigError, match="the pod's ServiceAccount gives no access"):
        KubeAccess(KubeSettings())
    assert access(tmp_path, config()).configuration.host == "https://127.0.0.1:6443"


# -- credential plugins


class Script:
    """A plugin that says what the test wants, and counts its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "plugin.sh"
        self.path.write_text(
            f"#!/bin/sh\necho x >> {folder}/calls\nsleep $(cat {folder}/slow)\n"
            f"test -e {folder}/out || {{ echo not now >&2; exit 3; }}\ncat {folder}/out\n"
        )
        self.path.chmod(0o755)
        self.slow(0)

    def slow(self, seconds: float) -> None:
        (self.folder / "slow").write_text(str(seconds))

    def says(self, token: str, lasts_s: float | None = None, **status: object) -> None:
        told: Json = {"token": token, **status}
        if lasts_s is not None:
            told["expirationTimestamp"] = (datetime.now(UTC) + timedelta(seconds=lasts_s)).isoformat()
        self.prints(json.dumps({"apiVersion": API, "kind": "ExecCredential", "status": told}))

    def prints(self, text: str) -> None:
        (self.folder / "out").write_text(text)

    def fails(self) -> None:
        (self.folder / "out").unlink(missing_ok=True)

    @property
    def calls(self) -> int:
        path = self.folder / "calls"
        return path.read_text().count("x") if path.exists() else 0

    def access(self, **cluster: str) -> KubeAccess:
        return access(self.folder, config(exec={"apiVersion": API, "command": str(self.path)}, **cluster))


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """A plugin that fails."""
    return Script(tmp_path)


def outcome(bearer: Callable[[], str | None]) -> str:
    """The credential, or why there is none."""
    try:
        return bearer() or ""
    except ClusterUnavailable as error:
        return f"unclear: {error}" if error.unclear else str(error)


class TestPlugin:
    def test_that_fails_once_is_called_again(self, script: Script) -> None:
        """At the start, too: that is no fault of the configuration. Not for each request, but with a growing pause."""
        made = script.access()
        assert "exit code 3: not now" in outcome(made.authorization_header)
        assert [outcome(made.authorization_header)[:4] for _ in range(50)] == ["the "] * 50
        assert script.calls == 1
        script.says("abc")
        eventually(lambda: outcome(made.authorization_header) == "Bearer abc", 3)
        assert script.calls <= 3

    def test_is_called_once_at_an_expiry_however_many_threads_need_it(
        self, script: Script, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All of them get the new credential."""
        monkeypatch.setattr(kube_plugin, "RENEW_BEFORE_EXPIRY_S", 0.0)
        script.says("one", lasts_s=2.5)
        made = script.access()
        assert made.authorization_header() == "Bearer one"
        script.says("two", lasts_s=600)
        script.slow(0.3)
        threading.Event().wait(2.6)
        with ThreadPoolExecutor(32) as threads:
            assert set(threads.map(lambda _: outcome(made.authorization_header), range(64))) == {"Bearer two"}
        assert script.calls == 2

    def test_no_request_waits_for_it_while_the_old_credential_holds(self, script: Script) -> None:
        """It is renewed early, by one thread."""
        script.says("one", lasts_s=10)  # less than RENEW_BEFORE_EXPIRY_S: due at once
        made = script.access()
        made.authorization_header()
        threading.Event().wait(1.1)
        script.slow(2)
        renewing = threading.Thread(target=made.authorization_header)
        renewing.start()
        eventually(lambda: script.calls == 2)
        began = time.monotonic()
        assert made.authorization_header() == "Bearer one"
        assert time.monotonic() - began < 0.5
        renewing.join(10)

    def test_that_fails_at_a_renewal_leaves_the_old_credential_in_use(self, script: Script) -> None:
        """As long as it holds."""
        script.says("one", lasts_s=10)
        made = script.access()
        made.authorization_header()
        script.fails()
        threading.Event().wait(1.1)
        assert made.authorization_header() == "Bearer one"
        assert script.calls == 2

    def test_is_asked_for_another_when_the_server_refuses_one(self, script: Script) -> None:
        """Once for many threads; and a server that refuses each is no reason to call it all the time."""
        script.says("one")
        made = script.access()
        assert made.authorization_header() == "Bearer one"
        script.says("two")
        threading.Event().wait(1.1)
        for _ in range(32):
            made.token_rejected("Bearer one")
        assert made.authorization_header() == "Bearer two"
        for _ in range(20):
            made.token_rejected("Bearer two")
            assert "401" in outcome(made.authorization_header)
        assert script.calls == 2

    @pytest.mark.parametrize(
        "text",
        [
            "", "oops", "[]", "{}", '{"apiVersion": "v9", "status": {"token": "s3cr3t"}}', '{"status": {"token": 1}}',
            json.dumps({"apiVersion": API, "kind": "ExecCredential", "status": {"token": "s3cr3t\ns3cr3t"}}),
            json.dumps({"apiVersion": API, "kind": "ExecCredential", "status": {"token": "s3cr3t\u20ac"}}),
        ],
    )  # fmt: skip
    def test_that_prints_other_text_has_failed(self, script: Script, text: str) -> None:
        """What it printed is not shown: it may be a secret."""
        script.prints(text)
        made = script.access()
        assert "gives no credential" in outcome(made.authorization_header)
        assert "s3cr3t" not in outcome(made.authorization_header)

    def test_that_hangs_is_given_up(self, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
        """The client's own call has no time-out."""
        monkeypatch.setattr(kube_plugin, "PLUGIN_TIMEOUT_S", 0.3)
        script.slow(5)
        assert "timed out" in outcome(script.access().authorization_header)

    def test_with_a_wrong_clock_is_not_called_for_each_request(self, script: Script) -> None:
        """A credential that is given out as expired is used for a moment all the same."""
        script.says("one", lasts_s=-4000)
        made = script.access()
        assert {made.authorization_header() for _ in range(100)} == {"Bearer one"}
        assert script.calls == 1

    def test_gives_a_certificate_that_connections_show(self, script: Script) -> None:
        """One that is of no use is a fault; a server without TLS asks for none."""

        def run(*arguments: str) -> str:
            return subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True).stdout

        key, other = run("genrsa", "2048"), run("genrsa", "2048")
        (script.folder / "key").write_text(key)
        certificate = run("req", "-x509", "-new", "-key", str(script.folder / "key"), "-subj", "/CN=a")
        script.says("", clientCertificateData=certificate, clientKeyData=other)
        assert "gives no credential" in outcome(script.access().authorization_header)
        assert script.access(server="http://127.0.0.1:6443").authorization_header() is None
        script.says("", clientCertificateData=certificate, clientKeyData=key)
        assert script.access().authorization_header() is None

    def test_whose_credentials_are_refused_is_called_ever_less_often(
        self, script: Script, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Until the server has accepted one for a while."""
        clock = SimpleNamespace(monotonic=lambda: now, time=lambda: now)
        monkeypatch.setattr(kube_plugin, "time", clock)
        monkeypatch.setattr(kube_plugin, "_run_plugin", lambda provider: calls.append(now) or {"token": "abc"})
        now, calls = 1000.0, list[float]()
        made = script.access()
        for _ in range(8):
            while "401" in outcome(made.authorization_header):
                now += 0.5
            made.token_rejected("Bearer abc")
        pauses = [later - earlier for earlier, later in pairwise(calls)]
        assert pauses == [1, 2, 4, 8, 16, kube_plugin.MAX_PAUSE_S, kube_plugin.MAX_PAUSE_S]
        now += 2 * kube_plugin.MAX_PAUSE_S
        assert made.authorization_header() == "Bearer abc"
        now += 2 * kube_plugin.MAX_PAUSE_S
        made.token_rejected("Bearer abc")
        assert made.authorization_header() == "Bearer abc"

    @pytest.mark.parametrize("cluster_info", [False, True])
    def test_is_asked_as_kubectl_asks_it(self, script: Script, cluster_info: bool) -> None:
        """In the version that the kubeconfig names, and with the cluster only where the kubeconfig says so."""
        script.path.write_text(
            f'#!/bin/sh\necho "$KUBERNETES_EXEC_INFO" > {script.folder}/asked\ncat {script.folder}/out\n'
        )
        script.says("abc")
        plugin = {"apiVersion": API, "command": str(script.path), "provideClusterInfo": cluster_info}
        assert access(script.folder, config(exec=plugin)).authorization_header() == "Bearer abc"
        asked = json.loads((script.folder / "asked").read_text())
        assert (asked["apiVersion"], asked["kind"]) == (API, "ExecCredential")
        assert asked["spec"]["interactive"] is False
        assert asked["spec"].get("cluster") == ({"server": "https://127.0.0.1:6443"} if cluster_info else None)
