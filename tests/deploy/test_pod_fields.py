"""Every field that the API server knows of a pod's spec: which the controller writes, and which an event changes.

The lists here are the whole of it. A field of a later Kubernetes is in neither, and no event and no profile reaches it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import pytest

from ottoscaler.core.events import BadEvent, ScaleEvent
from ottoscaler.core.manifest import AttemptKey, build_pod
from ottoscaler.core.policy_reader import read_policy
from ottoscaler.core.profile_reader import PROFILE
from ottoscaler.settings import WorkerSettings
from tests.core.builders import HASH
from tests.core.policies import parsed
from tests.core.test_policy_reader import changed
from tests.deploy.cluster import Cluster
from tests.deploy.manifests import Json

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

#: What the controller writes into a container; `*` stands for any name.
CONTAINER: Final = {
    *("name", "image", "imagePullPolicy", "workingDir", "command[]", "args[]"),
    *("env[].name", "env[].value", "env[].valueFrom.fieldRef.fieldPath"),
    *("env[].valueFrom.secretKeyRef.name", "env[].valueFrom.secretKeyRef.key"),
    *("resources.requests.*", "resources.limits.*"),
    *("securityContext.allowPrivilegeEscalation", "securityContext.capabilities.drop[]"),
    *("securityContext.runAsNonRoot", "securityContext.seccompProfile.type"),
    *("volumeMounts[].name", "volumeMounts[].mountPath", "volumeMounts[].readOnly"),
    *("terminationMessagePath", "terminationMessagePolicy"),
}
#: What it writes into the container of a service.
SERVICE: Final = {
    *("name", "image", "imagePullPolicy", "restartPolicy", "command[]", "args[]", "env", "env[].name", "env[].value"),
    *("resources.requests.*", "resources.limits.*"),
    *(field for field in CONTAINER if field.startswith("securityContext.")),
    *("startupProbe.exec.command[]", "startupProbe.tcpSocket.port", "startupProbe.periodSeconds"),
    *("startupProbe.timeoutSeconds", "startupProbe.failureThreshold"),
}
#: What it writes into a spec.
WRITTEN: Final = {
    *(f"containers[].{field}" for field in CONTAINER),
    *(f"initContainers[].{field}" for field in SERVICE),
    *("restartPolicy", "automountServiceAccountToken", "enableServiceLinks", "terminationGracePeriodSeconds"),
    *("activeDeadlineSeconds", "serviceAccountName", "imagePullSecrets[].name", "nodeSelector.*"),
    *("securityContext.runAsNonRoot", "securityContext.runAsUser", "securityContext.runAsGroup"),
    *("securityContext.fsGroup", "securityContext.seccompProfile.type"),
    *("tolerations[].key", "tolerations[].operator", "tolerations[].value", "tolerations[].effect"),
    *("volumes[].name", "volumes[].emptyDir.sizeLimit", "volumes[].emptyDir", "volumes[].configMap.name"),
    *("volumes[].persistentVolumeClaim.claimName", "volumes[].persistentVolumeClaim.readOnly"),
    *("volumes[].secret.secretName", "runtimeClassName", "hostUsers", "priorityClassName"),
}
#: What an event changes of these, with a policy that lets it set everything.
OF_AN_EVENT: Final = {
    *("containers[].image", "containers[].command[]", "containers[].args[]"),
    *("containers[].env[].name", "containers[].env[].value"),
    *("containers[].resources.requests.*", "containers[].resources.limits.*", "activeDeadlineSeconds"),
}
ALL_SETTINGS: Final = WorkerSettings(
    service_account="ottoscaler-worker", image_pull_secret="registry", node_selector={"pool": "ci"},
    tolerations=[{"key": "ci", "operator": "Equal", "value": "x", "effect": "NoSchedule"}],
)  # fmt: skip
PROFILES: Final = ("plain", "node20", "publish", "full")
#: All that an event may set under the profile `plain`.
ALL_FIELDS: Final = {
    "image": "node:20", "command": '["a"]', "args": '["b"]', "env": '{"CI": "a value of its own"}', "cpu": "2",
    "memory": "2Gi", "deadline_s": "60", "retries": "2", "priority": "7",
}  # fmt: skip


@pytest.fixture(scope="module")
def known(cluster: Cluster) -> set[str]:
    """The path of each field of a pod's spec, by the API server's own description."""
    answer = cluster.ask("GET", "/openapi/v3/api/v1", namespace=None)
    assert answer.status == 200, answer.text
    schemas = json.loads(answer.text)["components"]["schemas"]
    found = set(_described(schemas, schemas["io.k8s.api.core.v1.PodSpec"], ""))
    assert len(found) > 500
    return found


def _described(schemas: Json, schema: Json, path: str) -> Iterator[str]:
    """The paths below one part of a schema, and its own."""
    for part in schema.get("allOf", ()):
        yield from _described(schemas, part, path)
    if "$ref" in schema:
        yield from _described(schemas, schemas[schema["$ref"].rpartition("/")[2]], path)
    if path:
        yield path
    for name, inner in schema.get("properties", {}).items():
        yield from _described(schemas, inner, f"{path}.{name}".lstrip("."))
    if "items" in schema:
        yield from _described(schemas, schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from _described(schemas, schema["additionalProperties"], f"{path}.*")


def _values(known: set[str], value: Any, path: str = "") -> Iterator[tuple[str, object]]:
    """The path and the value of each leaf of a spec."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            any_name = f"{path}.*" in known
            yield from _values(known, inner, f"{path}.{'*' if any_name else name}".lstrip("."))
    elif isinstance(value, list) and value:
        for inner in value:
            yield from _values(known, inner, f"{path}[]")
    else:
        yield path, json.dumps(value)


def _spec(event: ScaleEvent, template: WorkerSettings = ALL_SETTINGS) -> Json:
    key = AttemptKey(HASH, 1, 1)
    body = build_pod(template, event, key, event_json=event.encode(), instance="otto", namespace="ci")
    spec: Json = json.loads(body)["spec"]
    return spec


def _accepted(fields: dict[str, str]) -> ScaleEvent:
    found = parsed(fields)
    assert isinstance(found, ScaleEvent), found
    return found


def test_the_controller_writes_what_is_listed_and_nothing_more(known: set[str]) -> None:
    """With all settings and all profiles; each entry of the list is a field of Kubernetes, and is used."""
    events = [_accepted({"profile": name}) for name in PROFILES] + [_accepted(ALL_FIELDS)]
    specs = [_spec(event, template) for event in events for template in (ALL_SETTINGS, WorkerSettings())]
    assert {path for spec in specs for path, _ in _values(known, spec)} == WRITTEN
    assert known >= WRITTEN


def test_an_event_changes_what_is_listed_and_nothing_more(known: set[str]) -> None:
    """Each field that Kubernetes has is sent by its own name and as an override's: in text, as JSON, and alone."""
    plain = set(_values(known, _spec(_accepted({}))))
    everything = set(_values(known, _spec(_accepted(ALL_FIELDS))))
    assert {path for path, _ in plain ^ everything} == OF_AN_EVENT
    names = sorted({re.sub(r"[\[\].*]", "", path.rpartition(".")[2]) for path in known} - {""})
    taken = 0
    for name in names:
        snake = re.sub(r"([A-Z]+)", lambda found: f"_{found[1].lower()}", name)
        for field in {name, name.lower(), snake}:
            for value in ("x", "true", '{"hostPath": {"path": "/"}}', '["x"]', "0"):
                event = parsed({field: value})
                if isinstance(event, BadEvent):
                    continue
                taken += 1
                altered = {path for path, _ in plain ^ set(_values(known, _spec(event)))}
                assert altered <= OF_AN_EVENT, (field, value, altered)
    assert taken > len(names)


def test_a_profile_takes_no_field_of_kubernetes_as_it_is(known: set[str]) -> None:
    """What is not on its own list is unknown: there is no way to patch a pod."""
    names = {path.partition(".")[0].removesuffix("[]") for path in known} | {"spec", "pod_spec", "patch", "containers"}
    for name in names - PROFILE:
        found = read_policy(changed(("profiles", "full", name), {}))
        assert isinstance(found, list)
        assert [path for path, text in found if text.startswith("unknown")] == [("profiles", "full", name)]
