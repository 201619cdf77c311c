"""A ServiceAccount's token that rotates: a real API server rejects the old one, and work goes on with the new one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from ottoscaler.adapters.cluster import KubeCluster
from ottoscaler.errors import ClusterUnavailable
from ottoscaler.settings import KubeSettings
from tests.adapters.clusters import Pods
from tests.adapters.kube_admin import KubeAdmin
from tests.conftest import require
from tests.fakes.wait import eventually

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]

#: The API server remembers for a while that a token was good, seconds.
REMEMBERED_S = 90
RULE = {"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "get", "list", "watch", "delete"]}


class Tokens:
    """Tokens of the ServiceAccount `default`, each valid as long as a Secret of its own is there."""

    def __init__(self, admin: KubeAdmin) -> None:
        self._admin = admin
        rights: Any = client.RbacAuthorizationV1Api(admin.api.api_client)
        subject = {"kind": "ServiceAccount", "name": "default", "namespace": admin.namespace}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "otto"}
        rights.create_namespaced_role(admin.namespace, {"metadata": {"name": "otto"}, "rules": [RULE]})
        binding = {"metadata": {"name": "otto"}, "roleRef": role, "subjects": [subject]}
        rights.create_namespaced_role_binding(admin.namespace, binding)

    def issue(self, name: str) -> str:
        """A token of ten minutes."""
        secret = self._admin.api.create_namespaced_secret(self._admin.namespace, {"metadata": {"name": name}})
        bound = {"kind": "Secret", "apiVersion": "v1", "name": name, "uid": secret.metadata.uid}
        request = {"spec": {"expirationSeconds": 600, "boundObjectRef": bound}}
        made = self._admin.api.create_namespaced_service_account_token("default", self._admin.namespace, request)
        return str(made.status.token)

    def revoke(self, name: str) -> None:
        """The token of this name is not valid any more."""
        self._admin.api.delete_namespaced_secret(name, self._admin.namespace)


@pytest.fixture
def admin() -> Iterator[KubeAdmin]:
    """A namespace of the test's own."""
    made = KubeAdmin(Path(require("kubernetes")))
    made.open()
    yield made
    made.close()


def cluster_with(admin: KubeAdmin, folder: Path, user: dict[str, str]) -> KubeCluster:
    """A client with these credentials."""
    server = admin.api.api_client.configuration
    cluster = {"server": server.host, "certificate-authority": server.ssl_ca_cert}
    path = folder / f"kubeconfig-{next(iter(user))}"
    content = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}], "users": [{"name": "u", "user": user}],
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return KubeCluster(KubeSettings(kubeconfig=str(path), namespace=admin.namespace), instance="i")


def is_rejected(cluster: KubeCluster) -> bool:
    """Does the API server not know us?"""
    try:
        cluster.list()
    except ClusterUnavailable as error:
        return "401" in str(error)
    return False


def test_work_goes_on_with_the_token_that_the_file_has_now(admin: KubeAdmin, tmp_path: Path) -> None:
    """Three rotations: each time the API server rejects the token before it, which a process that reads its file once
    would still send.
    """
    tokens, file = Tokens(admin), tmp_path / "token"
    file.write_text(tokens.issue("t-0"))
    with closing(cluster_with(admin, tmp_path, {"tokenFile": str(file)})) as cluster:
        eventually(lambda: not cluster.missing_rights(), REMEMBERED_S, "the rights to hold")
        pods = Pods(cluster, admin, "i")
        for number in range(1, 4):
            with closing(cluster_with(admin, tmp_path, {"token": file.read_text()})) as stale:
                stale.list()  # it still holds
                file.write_text(tokens.issue(f"t-{number}"))
                tokens.revoke(f"t-{number - 1}")
                eventually(lambda one=stale: is_rejected(one), REMEMBERED_S, "the old token to be rejected")
            pods.create(number)
            # not all of them: the cluster's collector may have removed those before it
            assert number in [pod.key.index for pod in cluster.list().pods]
