"""What is asked of the API server beside pods: the rights, the cluster, the version, and what `doctor` looks at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from ottoscaler.adapters.kube_answers import Verb
from ottoscaler.adapters.kube_facts import ClusterFacts
from ottoscaler.adapters.kube_http import KubeHttp
from ottoscaler.adapters.kube_inspector import KubeInspector
from ottoscaler.errors import ClusterRejected, ClusterUnavailable
from ottoscaler.settings import KubeSettings


class Api:
    """Answers by the path; a number is a refusal with that status. Notes what was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, object] = {}
        self.asked: list[tuple[Verb, str, Any]] = []

    def call(self, verb: Verb, path: str, *, name: str = "", query: object = None, body: bytes | None = None) -> bytes:
        self.asked.append((verb, path, json.loads(body) if body is not None else None))
        answer = self.answers[path]
        if isinstance(answer, int):
            raise ClusterRejected("refused", status=answer, reason="x")
        return json.dumps(answer).encode()


REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
SELF = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


def facts_of(api: Api) -> ClusterFacts:
    """Of the namespace `ours`."""
    return ClusterFacts(api, "ours")  # type: ignore[arg-type]


@pytest.fixture
def inspected(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[KubeInspector, Api]]:
    """An inspector of the namespace `ours`."""
    kubeconfig = {
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "abc"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(kubeconfig), encoding="utf-8")
    api = Api()
    monkeypatch.setattr(KubeHttp, "call", lambda _self, *args, **options: api.call(*args, **options))
    inspector = KubeInspector(KubeSettings(kubeconfig=str(path), namespace="ours"))
    yield inspector, api
    inspector.close()


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        ({"major": "1", "minor": "29"}, (1, 29)), ({"major": "1", "minor": "29+"}, (1, 29)),
        ({"major": "1", "minor": ""}, (0, 0)), ({"major": "v1", "minor": "29"}, (0, 0)), ({}, (0, 0)),
        ({"major": "1", "minor": "x29"}, (0, 0)), (403, (0, 0)),
    ],
)  # fmt: skip
def test_a_version_is_two_numbers(answer: object, version: tuple[int, int]) -> None:
    """Zeros where it is not known."""
    api = Api()
    api.answers["/version"] = answer
    assert facts_of(api).server_version() == version


@pytest.mark.parametrize(
    ("answer", "permitted"),
    [({"allowed": True}, True), ({"allowed": False}, False), ({}, False), (403, True), (404, True)],
)
def test_a_right_is_asked_for_in_our_namespace(answer: object, permitted: bool) -> None:
    """Where the API server does not say, the request itself will show it."""
    api = Api()
    kind = {"kind": "SelfSubjectAccessReview", "status": answer}
    api.answers[REVIEWS] = kind if isinstance(answer, dict) else answer
    assert facts_of(api).is_permitted("get", "pods", "p", "log") is permitted
    assert facts_of(api).is_permitted("list") is permitted
    resources = [asked["spec"]["resourceAttributes"] for _, _, asked in api.asked]
    assert resources == [
        {"namespace": "ours", "verb": "get", "resource": "pods", "name": "p", "subresource": "log"},
        {"namespace": "ours", "verb": "list", "resource": "pods", "name": ""},
    ]


@pytest.mark.parametrize("logs", [True, False])
@pytest.mark.parametrize("allowed", [True, False])
def test_each_missing_right_is_named(allowed: bool, logs: bool) -> None:
    """With what to do; that to logs only where they are read."""
    api = Api()
    api.answers[REVIEWS] = {"kind": "SelfSubjectAccessReview", "status": {"allowed": allowed}}
    found = facts_of(api).missing_rights(["create", "watch"], logs=logs)
    named = [sentence.partition(" in namespace ours: ")[0] for sentence in found]
    assert named == ([] if allowed else ["may not create pods", "may not watch pods"] + ["may not get pods/log"] * logs)


def test_a_cluster_is_known_by_the_uid_of_our_namespace() -> None:
    """Empty without the right to read it; a namespace that is not there is named."""
    api, path = Api(), "/api/v1/namespaces/ours"
    api.answers[REVIEWS] = {"kind": "SelfSubjectAccessReview", "status": {"allowed": False}}
    assert facts_of(api).cluster_id() == ""
    api.answers[REVIEWS] = {"kind": "SelfSubjectAccessReview", "status": {"allowed": True}}
    api.answers[path] = {"kind": "Namespace", "metadata": {"uid": "u-7"}}
    assert facts_of(api).cluster_id() == "ours/u-7"
    assert [asked["spec"]["resourceAttributes"] for verb, _, asked in api.asked if verb is Verb.REVIEW] == [
        {"namespace": "ours", "verb": "get", "resource": "namespaces", "name": "ours"}
    ] * 2
    api.answers[path] = 404
    with pytest.raises(ClusterUnavailable, match="make the namespace, or set NAMESPACE") as caught:
        facts_of(api).cluster_id()
    assert not caught.value.unclear


@pytest.mark.parametrize(
    ("look", "path", "answer", "expected"),
    [
        (lambda one: one.has_account("a"), "serviceaccounts/a", {}, True),
        (lambda one: one.has_account("a"), "serviceaccounts/a", 404, False),
        (lambda one: one.has_account("a"), "serviceaccounts/a", 403, True),
        (lambda one: one.secret_type("s"), "secrets/s", {"kind": "Secret", "type": "Opaque"}, "Opaque"),
        (lambda one: one.secret_type("s"), "secrets/s", 404, None),
    ],
)
def test_what_is_there_is_distinguished_from_what_may_not_be_read(
    inspected: tuple[KubeInspector, Api], look: Callable[[KubeInspector], object], path: str, answer: object,
    expected: object,
) -> None:  # fmt: skip
    """Only a 404 says that it is not there."""
    inspector, api = inspected
    api.answers[f"/api/v1/namespaces/ours/{path}"] = answer
    assert look(inspector) == expected


@pytest.mark.parametrize(
    ("look", "path"),
    [
        (KubeInspector.quotas, "/api/v1/namespaces/ours/resourcequotas"),
        (KubeInspector.limit_ranges, "/api/v1/namespaces/ours/limitranges"),
        (KubeInspector.network_policies, "/apis/networking.k8s.io/v1/namespaces/ours/networkpolicies"),
        (KubeInspector.disruption_budgets, "/apis/policy/v1/namespaces/ours/poddisruptionbudgets"),
        (KubeInspector.nodes, "/api/v1/nodes"),
    ],
)
def test_what_is_listed_is_there_by_its_name(
    inspected: tuple[KubeInspector, Api], look: Callable[[KubeInspector], Sequence[Any]], path: str
) -> None:
    """A list of none, as Go writes it, has none."""
    inspector, api = inspected
    api.answers[path] = {"items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]}
    assert [one.metadata.name for one in look(inspector)] == ["a", "b"]
    api.answers[path] = {"items": None}
    assert list(look(inspector)) == []


def test_a_secret_that_may_not_be_read_is_no_missing_one(inspected: tuple[KubeInspector, Api]) -> None:
    """The caller says which right is missing."""
    inspector, api = inspected
    api.answers["/api/v1/namespaces/ours/secrets/s"] = 403
    with pytest.raises(ClusterRejected):
        inspector.secret_type("s")


@pytest.mark.parametrize(
    ("answer", "name"),
    [({"kind": "SelfSubjectReview", "status": {"userInfo": {"username": "me"}}}, "me"), (404, ""), (403, "")],
)
def test_our_user_has_a_name(inspected: tuple[KubeInspector, Api], answer: object, name: str) -> None:
    """Where the API server says it."""
    inspector, api = inspected
    api.answers[SELF] = answer
    assert inspector.user() == name
    assert api.asked == [(Verb.REVIEW, SELF, {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})]
    assert inspector.address == "http://127.0.0.1:1"


@pytest.mark.parametrize("date", ["Wed, 01 May 2024 10:00:00 GMT", "yesterday", ""])
def test_the_servers_time_is_in_seconds(
    inspected: tuple[KubeInspector, Api], monkeypatch: pytest.MonkeyPatch, date: str
) -> None:
    """None where it does not say."""
    monkeypatch.setattr(KubeHttp, "date_header", lambda _: date)
    assert inspected[0].time() == (1714557600.0 if date.startswith("Wed") else None)


def test_a_trial_creates_nothing(inspected: tuple[KubeInspector, Api], monkeypatch: pytest.MonkeyPatch) -> None:
    """The API server is asked what it would say."""
    queries: list[object] = []
    monkeypatch.setattr(KubeHttp, "call", lambda _self, *args, **options: queries.append((args, options)))
    inspected[0].dry_run(b"{}")
    path = "/api/v1/namespaces/ours/pods"
    assert queries == [((Verb.CREATE, path), {"query": {"dryRun": "All"}, "body": b"{}"})]
