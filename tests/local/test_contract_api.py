"""What Ottoscaler relies on in the Kubernetes API: writing. Checked against the emulator and, with TEST_KUBECONFIG, a
real server.

A check holds for both, or it is not here; what a real server may do but need not is not asked of either.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.local.kube import MERGE, STRATEGIC, Kube, Space, pod


def test_a_created_pod_has_identity_version_and_defaults(space: Space) -> None:
    """uid, a numeric version, the namespace and Pending come from the server."""
    made = space.make("one")
    metadata, spec = made["metadata"], made["spec"]
    assert metadata["uid"]
    assert int(metadata["resourceVersion"]) > 0
    assert metadata["namespace"] == space.name
    assert (made["status"]["phase"], made["status"]["qosClass"]) == ("Pending", "BestEffort")
    assert spec["containers"][0]["imagePullPolicy"] == "Always"


def test_status_in_a_new_pod_is_ignored(space: Space) -> None:
    """A client cannot create a pod that has run already."""
    answer = space.kube.call("POST", space.path(), {**pod("one"), "status": {"phase": "Running"}})
    assert answer.body["status"]["phase"] == "Pending"


def test_a_taken_name_is_already_exists(space: Space) -> None:
    """The same name again is 409 AlreadyExists."""
    space.make("one")
    answer = space.kube.call("POST", space.path(), pod("one"))
    assert (answer.status, answer.body["reason"]) == (409, "AlreadyExists")
    assert answer.body["message"] == 'pods "one" already exists'


def test_the_name_of_a_terminating_pod_is_still_taken(space: Space) -> None:
    """The message differs between a pod that is being deleted and one that is not."""
    space.make("one", nodeName="elsewhere")
    space.delete("one")
    answer = space.kube.call("POST", space.path(), pod("one"))
    assert (answer.status, answer.body["reason"]) == (409, "AlreadyExists")
    assert answer.body["message"] == 'object is being deleted: pods "one" already exists'
    space.delete("one", gracePeriodSeconds=0)


def test_generate_name_adds_five_characters(space: Space) -> None:
    """Two pods of one prefix get two names."""
    body = pod("", metadata={"generateName": "gen-"})
    names = {space.kube.call("POST", space.path(), body).body["metadata"]["name"] for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith("gen-") and len(name) == 9 for name in names)


def test_a_missing_pod_and_a_missing_namespace_are_not_found(space: Space) -> None:
    """Both are 404 with reason NotFound, for every verb."""
    answers = [space.read("none"), space.delete("none"), space.patch("none", {}), space.log("none")]
    answers.append(space.kube.call("POST", "/api/v1/namespaces/no-such/pods", pod("one")))
    assert {(answer.status, answer.body["reason"]) for answer in answers} == {(404, "NotFound")}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"metadata": {"name": "Bad_Name"}}, "metadata.name"),
        ({"containers": []}, "spec.containers"),
        ({"container": {"name": ""}}, "spec.containers[0].name"),
        ({"container": {"env": [{"value": "x"}]}}, "spec.containers[0].env[0].name"),
        ({"restartPolicy": "Sometimes"}, "spec.restartPolicy"),
        (
            {"container": {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": 1}}}},
            "spec.containers[0].resources.requests",
        ),
    ],
)
def test_an_invalid_pod_is_refused_with_its_causes(space: Space, change: dict[str, Any], field: str) -> None:
    """422 Invalid names the field."""
    answer = space.kube.call("POST", space.path(), pod("one", **change))
    assert (answer.status, answer.body["reason"]) == (422, "Invalid")
    assert field in [cause["field"] for cause in answer.body["details"]["causes"]]


@pytest.mark.parametrize(
    "body",
    [
        b"{not json",
        {**pod("one"), "kind": "Service"},
        pod("one", metadata={"namespace": "other"}),
        pod("one", container={"command": [1]}),
        pod("one", container={"command": "true"}),
        pod("one", activeDeadlineSeconds="soon"),
        pod("one", container={"resources": {"requests": {"cpu": "lots"}}}),
    ],
    ids=["json", "kind", "namespace", "word", "list", "number", "quantity"],
)
def test_a_body_that_cannot_be_read_is_a_bad_request(space: Space, body: Any) -> None:
    """What is not a pod of this namespace is 400 BadRequest."""
    answer = space.kube.call("POST", space.path(), body)
    assert (answer.status, answer.body["reason"]) == (400, "BadRequest")


def test_a_version_in_a_new_pod_is_refused(space: Space) -> None:
    """The real server answers 500 here; all that counts is that nothing is created."""
    answer = space.kube.call("POST", space.path(), pod("one", metadata={"resourceVersion": "5"}))
    assert answer.status >= 400
    assert space.names() == []


def test_an_unknown_field_is_dropped_with_a_warning(space: Space) -> None:
    """fieldValidation=Warn is the default."""
    answer = space.kube.call("POST", space.path(), pod("one", bogus=1))
    assert answer.status == 201
    assert 'unknown field \\"spec.bogus\\"' in answer.headers["Warning"]
    assert "bogus" not in answer.body["spec"]


def test_an_unknown_field_is_refused_when_asked_to(space: Space) -> None:
    """fieldValidation=Strict is 400."""
    answer = space.kube.call("POST", space.path(), pod("one", container={"bogus": 1}), fieldValidation="Strict")
    assert answer.status == 400
    assert 'unknown field "spec.containers[0].bogus"' in answer.body["message"]


def test_a_stale_patch_is_a_conflict(space: Space) -> None:
    """A version in a patch is a precondition."""
    space.make("one")
    answer = space.patch("one", {"metadata": {"resourceVersion": "1", "labels": {"x": "1"}}})
    assert (answer.status, answer.body["reason"]) == (409, "Conflict")


def test_a_patch_for_another_uid_is_refused(space: Space) -> None:
    """Not the pod that was meant, though it has its name."""
    made = space.make("one")
    del made["metadata"]["resourceVersion"]
    made["metadata"]["uid"] = "other"
    assert space.patch("one/status", made, MERGE).status == 422


def test_a_write_that_changes_nothing_keeps_the_version(space: Space) -> None:
    """No watcher is woken for nothing."""
    made = space.make("one", metadata={"labels": {"x": "1"}})
    again = space.patch("one", {"metadata": {"labels": {"x": "1"}}}).body
    assert again["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


def test_null_in_a_patch_removes(space: Space) -> None:
    """Labels are merged key by key."""
    space.make("one", metadata={"labels": {"x": "1", "y": "2"}})
    body = space.patch("one", {"metadata": {"labels": {"x": None, "z": "3"}}}, MERGE).body
    assert body["metadata"]["labels"] == {"y": "2", "z": "3"}


def test_a_strategic_patch_merges_conditions_by_type(space: Space) -> None:
    """A second condition is added; a merge patch would replace the first."""
    space.make("one")
    for kind in ("Ready", "Initialized"):
        space.patch("one/status", {"status": {"conditions": [{"type": kind, "status": "True"}]}}, STRATEGIC)
    conditions = space.read("one").body["status"]["conditions"]
    assert {each["type"] for each in conditions} == {"Ready", "Initialized"}


def test_a_patch_of_plain_json_is_an_unsupported_media_type(space: Space) -> None:
    """A patch must say which kind it is."""
    space.make("one")
    assert space.patch("one", {}, "application/json").status == 415


def test_a_spec_cannot_be_changed(space: Space) -> None:
    """A container's command is fixed: 422."""
    space.make("one")
    answer = space.patch("one", {"spec": {"containers": [{"name": "main", "command": ["other"]}]}})
    assert (answer.status, answer.body["reason"]) == (422, "Invalid")


@pytest.mark.parametrize("kind", [MERGE, STRATEGIC])
def test_status_is_changed_through_its_own_path_only(space: Space, kind: str) -> None:
    """pods/status writes the status, pods does not."""
    space.make("one")
    assert space.patch("one/status", {"status": {"phase": "Running"}}, kind).body["status"]["phase"] == "Running"
    assert space.patch("one", {"status": {"phase": "Failed"}}, kind).body["status"]["phase"] == "Running"


def test_a_binding_gives_a_pod_its_node_once(space: Space) -> None:
    """The second binding is 409."""
    space.make("one")
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": "one"},
        "target": {"kind": "Node", "name": "elsewhere"},
    }
    assert space.kube.call("POST", space.path("one", "binding"), binding).status == 201
    assert space.read("one").body["spec"]["nodeName"] == "elsewhere"
    assert space.kube.call("POST", space.path("one", "binding"), binding).status == 409


@pytest.mark.parametrize("phase", ["Pending", "Succeeded", "Failed"])
def test_a_pod_that_runs_nowhere_is_deleted_at_once(space: Space, phase: str) -> None:
    """Unscheduled or finished: no grace."""
    space.make("one", nodeName="" if phase == "Pending" else "elsewhere")
    space.patch("one/status", {"status": {"phase": phase}})
    assert space.delete("one").status == 200
    assert space.read("one").status == 404


def test_a_scheduled_pod_is_deleted_with_grace(space: Space) -> None:
    """It stays, marked, until its node deletes it with grace 0."""
    version = space.make("one", nodeName="elsewhere")["metadata"]["resourceVersion"]
    marked = space.delete("one").body["metadata"]
    assert (marked["deletionGracePeriodSeconds"], bool(marked["deletionTimestamp"])) == (5, True)
    assert space.read("one").status == 200
    space.delete("one", gracePeriodSeconds=0)
    assert space.read("one").status == 404
    assert [kind for kind, _ in space.watch(resourceVersion=version)] == ["MODIFIED", "MODIFIED", "DELETED"]


def test_a_second_delete_can_only_shorten_the_grace(space: Space) -> None:
    """A longer grace is not taken, a shorter one is."""
    space.make("one", nodeName="elsewhere")
    graces = [
        space.delete("one", gracePeriodSeconds=wanted).body["metadata"]["deletionGracePeriodSeconds"]
        for wanted in (20, 40, 10)
    ]
    assert graces == [20, 20, 10]
    space.delete("one", gracePeriodSeconds=0)


@pytest.mark.parametrize("precondition", [{"uid": "00000000-0000-0000-0000-000000000000"}, {"resourceVersion": "1"}])
def test_a_delete_holds_to_its_preconditions(space: Space, precondition: dict[str, str]) -> None:
    """Another uid or version than meant: 409 Conflict, nothing is deleted."""
    space.make("one")
    answer = space.delete("one", preconditions=precondition)
    assert (answer.status, answer.body["reason"]) == (409, "Conflict")
    assert space.read("one").status == 200


def test_preconditions_that_hold_let_the_delete_through(space: Space) -> None:
    """uid and version of the very state that was seen."""
    metadata = space.make("one")["metadata"]
    seen = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
    assert space.delete("one", preconditions=seen).status == 200


def test_a_finalizer_holds_a_deleted_pod(space: Space) -> None:
    """It goes when the last finalizer does."""
    space.make("one", metadata={"finalizers": ["example.com/hold"]})
    space.delete("one", gracePeriodSeconds=0)
    assert space.read("one").body["metadata"]["deletionTimestamp"]
    space.patch("one", {"metadata": {"finalizers": None}}, MERGE)
    assert space.read("one").status == 404


def test_a_pod_without_a_node_has_an_empty_log(space: Space) -> None:
    """204 in the real server: nothing runs anywhere."""
    space.make("one")
    answer = space.log("one")
    assert (answer.status, answer.text) in [(200, ""), (204, "")]


def test_the_log_of_an_unknown_container_is_a_bad_request(space: Space) -> None:
    """The container must be one of the pod's."""
    space.make("one")
    assert space.log("one", container="other").status == 400


def test_events_are_found_by_the_object_they_are_about(space: Space) -> None:
    """kubectl describe asks like this."""
    about = {"kind": "Pod", "name": "one", "namespace": space.name, "uid": "u-1"}
    event = {
        "metadata": {"generateName": "e-"},
        "involvedObject": about,
        "reason": "Test",
        "message": "m",
        "type": "Normal",
    }
    assert space.kube.call("POST", space.path(resource="events"), event).status == 201
    selector = "involvedObject.name=one,involvedObject.uid=u-1,reason=Test"
    found = space.kube.call("GET", space.path(resource="events"), fieldSelector=selector).body["items"]
    assert [each["message"] for each in found] == ["m"]


def test_access_reviews_are_answered(kube: Kube) -> None:
    """The controller asks at its start what it may do."""
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
    review["spec"] = {"resourceAttributes": {"verb": "create", "resource": "pods", "namespace": "default"}}  # type: ignore[assignment]
    answer = kube.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    assert (answer.status, answer.body["status"]["allowed"]) == (201, True)


def test_discovery_names_what_is_served(kube: Kube) -> None:
    """kubectl finds its resources here."""
    names = {each["name"] for each in kube.call("GET", "/api/v1").body["resources"]}
    assert {"pods", "pods/status", "pods/log", "pods/binding", "events", "namespaces", "nodes"} <= names
    assert kube.call("GET", "/version").body["major"] == "1"
    assert kube.call("GET", "/readyz").text == "ok"


def test_unknown_paths_and_methods_are_refused(space: Space) -> None:
    """404 for what is not there, 405 for what cannot be done to it."""
    assert space.kube.call("GET", "/apis/nope/v1/x").status == 404
    assert space.kube.call("PUT", space.path(), {}).status == 405
