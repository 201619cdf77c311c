"""A mutating admission webhook for the pods of one namespace: it changes, holds up or fails what a test says.

It listens on 127.0.0.1 with a certificate of its own, so the API server has to run on this machine.
"""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kubernetes import client

from tests.e2e.system import Namespace
from tests.e2e.waiting import wait_for

Pod = dict[str, Any]

_PROBE: Pod = {"metadata": {"name": "probe"}, "spec": {"containers": [{"name": "main", "image": "busybox:latest"}]}}


class Webhook:
    """Registered from `open` to `close`. `change` gets each pod that is created and changes it in place; it may wait,
    and what it raises becomes an answer 500. Requests come on the server's own threads.
    """

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        self.change: Callable[[Pod], object] = lambda _pod: None
        self.asked = 0
        self.namespace = namespace
        self.name = f"{namespace.namespace}.ottoscaler.test"
        self._certificate, key = directory / "webhook.crt", directory / "webhook.key"
        subject = ["-subj", "/CN=webhook", "-addext", "subjectAltName=IP:127.0.0.1"]
        made = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(self._certificate)]
        subprocess.run(["openssl", "req", "-x509", *made, *subject], check=True, capture_output=True)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, name="webhook", daemon=True)
        self._api: Any = client.AdmissionregistrationV1Api(namespace.api.api_client)

    def open(self, timeout_s: int = 30) -> None:
        """Register it, and wait until the API server asks it."""
        self._thread.start()
        bundle = base64.b64encode(self._certificate.read_bytes()).decode()
        hook = {
            "name": self.name,
            "clientConfig": {"url": f"https://127.0.0.1:{self._server.server_port}/", "caBundle": bundle},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.namespace.namespace}},
            "failurePolicy": "Fail",
            "sideEffects": "None",
            "timeoutSeconds": timeout_s,
            "admissionReviewVersions": ["v1"],
        }
        body = {"metadata": {"name": self.name}, "webhooks": [hook]}
        self._api.create_mutating_webhook_configuration(body, _preload_content=False)
        wait_for(self._is_asked, "the webhook to be asked", 20)
        self.asked = 0

    def close(self) -> None:
        """Take it away again."""
        self._api.delete_mutating_webhook_configuration(self.name, _preload_content=False)
        self._server.shutdown()
        self._server.server_close()

    def _is_asked(self) -> bool:
        self.namespace.api.create_namespaced_pod(
            self.namespace.namespace, _PROBE, dry_run="All", _preload_content=False
        )
        return self.asked > 0

    def _review(self, review: dict[str, Any]) -> dict[str, Any]:
        """The answer to one AdmissionReview: the changed spec, labels and annotations as a JSON patch."""
        request = review["request"]
        pod = request["object"]
        self.asked += 1
        if pod["metadata"]["name"] != "probe":
            self.change(pod)
        patch = [{"op": "replace", "path": f"/{part}", "value": pod[part]} for part in ("metadata", "spec")]
        answer = {"uid": request["uid"], "allowed": True, "patchType": "JSONPatch"}
        answer["patch"] = base64.b64encode(json.dumps(patch).encode()).decode()
        return {"apiVersion": review["apiVersion"], "kind": review["kind"], "response": answer}

    def _handler(hook: Webhook) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                try:
                    body = hook._review(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                    status, data = 200, json.dumps(body).encode()
                except Exception as error:
                    status, data = 500, str(error).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                """Not on the test's output."""

        return Handler
