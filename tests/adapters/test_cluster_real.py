"""The cluster suite on KubeCluster with a real Kubernetes API server: TEST_KUBECONFIG, or KUBECONFIG, names it.

No node is needed: pods are bound to none, and their status is patched as a kubelet would.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from ottoscaler.adapters.cluster import KubeCluster
from ottoscaler.errors import ClusterUnavailable
from ottoscaler.flow.pod_keeper import COUNTS_PODS
from ottoscaler.ports import Cluster
from ottoscaler.settings import KubeSettings
from tests.adapters import contract_cluster
from tests.adapters.clusters import ClusterFactory, Pods
from tests.adapters.contract_cluster import *  # noqa: F403
from tests.adapters.kube_admin import KubeAdmin
from tests.conftest import require
from tests.fakes.wait import eventually

__all__ = [*contract_cluster.__all__, "TestQuota", "TestRights"]

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def admin() -> Iterator[KubeAdmin]:
    """A namespace for the tests here; each of them has an instance of its own in it."""
    named = os.environ.get("KUBECONFIG", "")
    ours = "TEST_KUBECONFIG" not in os.environ and Path(named).is_file()
    made = KubeAdmin(Path(named if ours else require("kubernetes")))
    made.open()
    yield made
    made.close()


@pytest.fixture
def cluster_factory(admin: KubeAdmin) -> Iterator[ClusterFactory]:
    """Clients for that namespace, closed when the test is over."""
    made: list[KubeCluster] = []

    def make(instance: str) -> Cluster:
        settings = KubeSettings(kubeconfig=str(admin.kubeconfig), namespace=admin.namespace)
        made.append(KubeCluster(settings, instance=instance))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture
def narrow(admin: KubeAdmin) -> Iterator[KubeAdmin]:
    """Another namespace, where a test may set limits."""
    made = KubeAdmin(admin.kubeconfig)
    made.open()
    yield made
    made.close()


class TestQuota:
    """A ResourceQuota is waiting, not failing."""

    @pytest.mark.parametrize("resource", ["pods", COUNTS_PODS])
    def test_a_full_quota_is_unavailable(self, narrow: KubeAdmin, resource: str) -> None:
        """With `unclear` False: nothing was created. And in words that say whether kept pods use this quota."""
        quota = {"metadata": {"name": "none"}, "spec": {"hard": {resource: "0"}}}
        narrow.api.create_namespaced_resource_quota(narrow.namespace, quota, _preload_content=False)
        settings = KubeSettings(kubeconfig=str(narrow.kubeconfig), namespace=narrow.namespace)
        cluster = KubeCluster(settings, instance="i")
        body = Pods(cluster, narrow, "i").body()

        def refusal() -> ClusterUnavailable | None:
            try:
                cluster.create(body)
            except ClusterUnavailable as error:
                return error
            return None

        refused = eventually(refusal, 20, "the quota to hold: a new one takes a while")
        assert refused is not None
        assert not refused.unclear
        assert (f"{COUNTS_PODS}=" in str(refused)) is (resource == COUNTS_PODS)
        cluster.close()


class TestRights:
    """A ServiceAccount that may do next to nothing."""

    @staticmethod
    def kubeconfig(admin: KubeAdmin, directory: Path) -> Path:
        """The kubeconfig of the namespace's default ServiceAccount, which has no rights."""
        request = {"spec": {"expirationSeconds": 600}}
        token = admin.api.create_namespaced_service_account_token("default", admin.namespace, request).status.token
        cluster = admin.api.api_client.configuration
        path = directory / "kubeconfig"
        path.write_text(
            f"""
apiVersion: v1
kind: Config
current-context: c
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: "{cluster.host}", certificate-authority: "{cluster.ssl_ca_cert}"}}}}]
users: [{{name: u, user: {{token: "{token}"}}}}]
"""
        )
        return path

    def test_each_missing_verb_is_named(self, narrow: KubeAdmin, tmp_path: Path) -> None:
        """In a sentence that an operator can act on."""
        kubeconfig = self.kubeconfig(narrow, tmp_path)
        cluster = KubeCluster(KubeSettings(kubeconfig=str(kubeconfig), namespace=narrow.namespace), instance="i")
        sentences = list(cluster.missing_rights())
        for verb in ("create", "get", "list", "watch", "delete"):
            assert any(verb in sentence and "pods" in sentence for sentence in sentences), verb
        cluster.close()

    def test_without_them_everything_waits(self, narrow: KubeAdmin, tmp_path: Path) -> None:
        """Rights can be given while we run."""
        kubeconfig = self.kubeconfig(narrow, tmp_path)
        cluster = KubeCluster(KubeSettings(kubeconfig=str(kubeconfig), namespace=narrow.namespace), instance="i")
        with pytest.raises(ClusterUnavailable):
            cluster.list()
        with pytest.raises(ClusterUnavailable) as caught:
            cluster.create(Pods(cluster, narrow, "i").body())
        assert not caught.value.unclear
        assert cluster.cluster_id() == ""
        self._grant(narrow)
        eventually(lambda: not cluster.missing_rights(), 20, "the rights to hold")
        assert list(cluster.list().pods) == []
        cluster.close()

    @staticmethod
    def _grant(admin: KubeAdmin) -> None:
        rights: Any = client.RbacAuthorizationV1Api(admin.api.api_client)
        rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "get", "list", "watch", "delete"]}
        rights.create_namespaced_role(admin.namespace, {"metadata": {"name": "otto"}, "rules": [rule]})
        subject = {"kind": "ServiceAccount", "name": "default", "namespace": admin.namespace}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "otto"}
        binding = {"metadata": {"name": "otto"}, "roleRef": role, "subjects": [subject]}
        rights.create_namespaced_role_binding(admin.namespace, binding)
