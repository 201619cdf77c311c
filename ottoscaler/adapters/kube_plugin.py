"""Credential plugins of a kubeconfig, such as those of EKS, GKE and AKS.

A plugin that fails is called again, and a credential that expires is renewed once, however many threads need it. (The
official client logs a failed plugin and never calls it again, calls it once for each thread that sees a credential
expire, and waits for it without end.)
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import yaml

from ottoscaler.api_server import PluginCommand
from ottoscaler.errors import ClusterUnavailable

#: How long a plugin may take, seconds: the calls that need a credential wait for it meanwhile.
PLUGIN_TIMEOUT_S: Final = 20.0
#: A credential is renewed so long before it expires, seconds.
RENEW_BEFORE_EXPIRY_S: Final = 15.0
#: After a call the plugin is not called again for this long, seconds, whatever the credential says of its end.
MIN_CALL_INTERVAL_S: Final = 1.0
#: Pause after the n-th failure, and before the n-th renewal of a credential that the server refuses: 1, 2, 4 … seconds,
#: at most this.
MAX_PAUSE_S: Final = 30.0


class CredentialPlugin:
    """A credential plugin
    (https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins). Any thread;
    one of them at a time runs it.
    """

    def __init__(self, command: PluginCommand, use_certificate: Callable[[str, str], None]) -> None:
        """`use_certificate` takes a certificate and its key (PEM)."""
        self._command = command
        self._use_certificate = use_certificate
        self._lock = threading.Lock()
        # written under _lock
        self._token: str | None = None
        self._renew_at = 0.0  # monotonic
        self._expires_at = 0.0  # monotonic
        self._again_at = 0.0  # monotonic: not called before
        self._renewed_at = 0.0  # monotonic
        self._failures = 0
        self._refusals = -1  # in a row
        self._fault = "it was not called yet"

    def bearer(self) -> str | None:
        """The credential's token, None where it is a certificate. Raises ClusterUnavailable where there is none."""
        if time.monotonic() < self._renew_at:
            return self._token
        # a thread that comes while it is renewed goes on with the old one as long as that holds, and waits for the new
        # one after that: otherwise each thread would call the plugin
        if self._lock.acquire(blocking=time.monotonic() >= self._expires_at):
            try:
                now = time.monotonic()
                if now >= self._renew_at and now >= self._again_at:
                    self._renew(now)
            finally:
                self._lock.release()
        if time.monotonic() >= self._expires_at:
            name, fault = self._command.args[0], self._fault
            reason = f"the credential plugin {name} gives no credential ({fault}); it is called again"
            raise ClusterUnavailable(reason, unclear=False)
        return self._token

    def credential_rejected(self, token: str | None) -> None:
        """The server refused this credential. If it is still the one in use, another is asked for: at once, but ever
        less often while the server refuses those, too.
        """
        with self._lock:
            if token != self._token or not self._expires_at:
                return  # many threads had it in use, and the first of them has said so
            now = time.monotonic()
            self._refusals = self._refusals + 1 if now - self._renewed_at < 2 * MAX_PAUSE_S else 0
            self._renew_at = self._expires_at = 0.0
            self._again_at = self._renewed_at + min(2.0**self._refusals, MAX_PAUSE_S)
            self._fault = "the API server refuses it (401)"

    def _renew(self, now: float) -> None:
        """Under the lock."""
        try:
            status = _run_plugin(self._command)
            if "clientCertificateData" in status:
                self._use_certificate(status["clientCertificateData"], status["clientKeyData"])
            elif not status.get("token"):
                raise ValueError("it printed neither a token nor a certificate")
            token = authorization_header(f"Bearer {status['token']}") if status.get("token") else None
            expires = status.get("expirationTimestamp")
            lasts_s = datetime.fromisoformat(expires).timestamp() - time.time() if expires else float("inf")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, subprocess.SubprocessError) as error:
            self._fault = one_line_error(error)
            self._again_at = now + min(2.0**self._failures, MAX_PAUSE_S)
            self._failures += 1
            return
        self._token = token
        self._failures, self._renewed_at = 0, now
        # one that is given out as expired is used for a moment all the same: a wrong clock must not call it each time
        self._expires_at = now + max(lasts_s, 2 * MIN_CALL_INTERVAL_S)
        self._renew_at = max(self._expires_at - RENEW_BEFORE_EXPIRY_S, now + MIN_CALL_INTERVAL_S)
        self._again_at = now + MIN_CALL_INTERVAL_S


def _run_plugin(command: PluginCommand) -> dict[str, Any]:
    """Run the plugin; the `status` of the ExecCredential that it prints. The client's own call has no time-out."""
    spec: dict[str, Any] = {"interactive": False}
    if command.cluster:
        spec["cluster"] = command.cluster
    asked = {"apiVersion": command.api_version, "kind": "ExecCredential", "spec": spec}
    environment = {**command.env, "KUBERNETES_EXEC_INFO": json.dumps(asked)}
    run = subprocess.run(
        command.args, env=environment, cwd=command.cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=PLUGIN_TIMEOUT_S, check=False,
    )  # fmt: skip
    if run.returncode:
        raise ValueError(f"exit code {run.returncode}: {run.stderr.strip()[-300:]}")
    try:
        reply = json.loads(run.stdout)
        status: dict[str, Any] = reply["status"]
        version = reply["apiVersion"]
    except (ValueError, LookupError, TypeError):
        raise ValueError("it printed no ExecCredential") from None  # not the text: it may be a secret
    if version != command.api_version:
        raise ValueError(f"it speaks {version!r}, the kubeconfig wants {command.api_version}")
    return status


def authorization_header(credential: str) -> str:
    """The value of the Authorization header, without white space around it. Raises ValueError, which does not quote
    it, where no header can carry it: the HTTP library quotes it in its own error, and that error reaches the log.
    """
    text = credential.strip()
    if " " not in text or not text.isascii() or not text.isprintable():
        raise ValueError("its token is empty, or has characters that no HTTP header can carry")
    return text


def one_line_error(error: BaseException) -> str:
    """What is wrong, on one line. Texts that quote the file are left out: they may hold a token."""
    if isinstance(error, yaml.YAMLError):
        mark = getattr(error, "problem_mark", None)
        return f"it is not YAML (line {mark.line + 1})" if mark is not None else "it is not YAML"
    if isinstance(error, (TypeError, AttributeError, LookupError)):
        return "it has not the form of a kubeconfig"
    text = re.sub(r"/\{.*\}", "", str(error), flags=re.DOTALL)
    return " ".join(text.split())[:300] or type(error).__name__
