"""The worker pod that the controller asks the API server to create: name, labels, environment, security, limits."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.core import events
from ottoscaler.core.events import ScaleEvent
from ottoscaler.core.manifest import AttemptKey, build_pod, worker_environment
from ottoscaler.core.overrides import Overrides
from ottoscaler.core.pods import pod_snapshot
from ottoscaler.core.raw_pod import event_annotation
from ottoscaler.settings import WorkerSettings
from tests.core.builders import HASH, decode, event

contract = pytest.mark.contract

KEY = AttemptKey(HASH, 2, 3)
PLAIN = WorkerSettings(image="img:1", command=("run", "$(OTTO_TASK_ID)"))

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def sent(settings: WorkerSettings, asked: ScaleEvent) -> bytes:
    """The body of the create request for attempt 3 at worker 2."""
    return build_pod(settings, asked, KEY, event_json=asked.encode(), instance="otto", namespace="ns")


def body(settings: WorkerSettings = PLAIN, **changes: Any) -> Any:
    """The pod that is created for attempt 3 at worker 2."""
    return json.loads(sent(settings, event(**changes)))


def spec(settings: WorkerSettings = PLAIN) -> Any:
    """Its spec."""
    return body(settings)["spec"]


def container(settings: WorkerSettings = PLAIN) -> Any:
    """Its one container."""
    (only,) = spec(settings)["containers"]
    return only


def values(**changes: Any) -> dict[str, str]:
    """The plain variables of a worker, as they are written into the pod."""
    found = [variable for variable in worker_environment(event(**changes), KEY) if "value" in variable]
    assert len(found) == len({variable["name"] for variable in found})
    return {variable["name"]: variable["value"] for variable in found}


def expand(text: str, env: dict[str, str]) -> str:
    """What the kubelet makes of a value: third_party/forked/golang/expansion of Kubernetes, rule by rule."""
    out, at = "", 0
    while at < len(text):
        here, ahead = text[at], text[at + 1 : at + 2]
        close = text.find(")", at)
        if here != "$" or not ahead:
            out, at = out + here, at + 1
        elif ahead == "$":
            out, at = out + "$", at + 2
        elif ahead == "(" and close > 0:
            out, at = out + env.get(text[at + 2 : close], text[at : close + 1]), close + 1
        else:
            out, at = out + here + ahead, at + 2
    return out


@contract("4.name")
def test_the_pod_has_the_attempts_name() -> None:
    """In the workers' namespace."""
    pod = body()
    assert (pod["apiVersion"], pod["kind"]) == ("v1", "Pod")
    assert (pod["metadata"]["name"], pod["metadata"]["namespace"]) == (f"otto-agent-{HASH}-2-r3", "ns")


@contract("4.labels")
def test_the_labels_identify_the_worker() -> None:
    """All of them text, and no other."""
    assert body()["metadata"]["labels"] == {
        "managed-by": "ottoscaler",
        "ottoscaler.io/instance": "otto",
        "ottoscaler.io/event": HASH,
        "ottoscaler.io/worker": "2",
        "ottoscaler.io/attempt": "3",
        "app.kubernetes.io/managed-by": "ottoscaler",
        "ottoscaler.io/task": "t",
    }


@contract("4.labels")
@pytest.mark.parametrize(
    ("task_id", "label"),
    [
        ("t", "t"),
        ("Build_1.2-b", "Build_1.2-b"),
        ("a" * 63, "a" * 63),
        ("a" * 64, None),
        ("repo/build", None),
        ("run:7", None),
        ("ends-", None),
        ("ends.", None),
    ],
)
def test_the_task_is_a_label_where_it_can_be_one(task_id: str, label: str | None) -> None:
    """The API server would refuse the pod otherwise. The annotation has it in each case."""
    metadata = body(task_id=task_id)["metadata"]
    assert metadata["labels"].get("ottoscaler.io/task") == label
    assert metadata["annotations"]["ottoscaler.io/task-id"] == task_id


@contract("3.profile")
def test_a_label_asks_for_the_disruption_budget() -> None:
    """Where the profile does; the other labels, by which the pod is known again, stay as they are."""
    plain = body()["metadata"]["labels"]
    asked = body(overrides=Overrides(disruption_budget=True))["metadata"]["labels"]
    assert asked == plain | {"ottoscaler.io/disruption-budget": "true"}


@contract("4.annotations")
@contract("4.security")
def test_the_annotations_carry_event_and_task() -> None:
    """And keep the cluster autoscaler and Karpenter from ending the worker."""
    annotations = body()["metadata"]["annotations"]
    assert annotations["ottoscaler.io/event-id"] == "e-1"
    assert annotations["ottoscaler.io/task-id"] == "t"
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert annotations["karpenter.sh/do-not-disrupt"] == "true"


@contract("3.keep_failed_s")
@contract("2.KEEP_FAILED_S")
@pytest.mark.parametrize(
    ("configured", "asked", "annotation"),
    [(0, None, None), (60, None, "60"), (60, 0, None), (60, 600, "600"), (0, 600, "600")],
)
def test_the_pod_says_for_how_long_it_stays(configured: int, asked: int | None, annotation: str | None) -> None:
    """The event's word, or the profile's, before the configuration's; nothing where it does not stay."""
    settings = replace(PLAIN, keep_failed_s=configured)
    annotations = body(settings, overrides=Overrides(keep_failed_s=asked))["metadata"]["annotations"]
    assert annotations.get("ottoscaler.io/keep-failed-s") == annotation


@contract("4.annotations")
@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), texts))
def test_the_event_can_be_taken_up_again_from_its_pod(passed_on: dict[str, str]) -> None:
    """All of it, when Redis has forgotten it."""
    plain = event(passed_on=passed_on, traceparent="00-aa")
    raw = sent(PLAIN, plain)
    assert events.decode(event_annotation(raw)) == plain


@contract("4.labels")
def test_a_pod_that_we_build_is_one_that_we_know_again() -> None:
    """The snapshot of it has the key that it was built for."""
    found = pod_snapshot(decode(body()))
    assert found is not None
    assert (found.key, found.instance, found.event_id) == (KEY, "otto", "e-1")


@contract("4.annotations")
def test_the_same_arguments_give_the_same_bytes() -> None:
    """So that a create can be repeated, and the digest compared."""
    args = PLAIN, event(passed_on={"b": "1", "a": "2"})
    assert sent(*args) == sent(*args)


@contract("4.annotations")
@pytest.mark.parametrize(
    "other", [replace(PLAIN, image="img:2"), replace(PLAIN, cpu_limit="2"), replace(PLAIN, command=("other",))]
)
def test_another_spec_has_another_digest(other: WorkerSettings) -> None:
    """SHA-256 in hexadecimal."""
    one, two = (body(each)["metadata"]["annotations"]["ottoscaler.io/spec-digest"] for each in (PLAIN, other))
    assert one != two
    assert len(bytes.fromhex(one)) == 32


def test_an_attempt_prefers_other_nodes_than_those_at_fault() -> None:
    """By their names, one requirement each; a cluster that has no other runs it there."""
    key, where = AttemptKey(HASH, 1, 3), {"instance": "otto", "namespace": "ci"}
    made = build_pod(PLAIN, event(), key, event_json=event().encode(), **where, avoided_nodes=("n-1", "n-2"))
    affinity = json.loads(made)["spec"]["affinity"]["nodeAffinity"]
    [term] = affinity.pop("preferredDuringSchedulingIgnoredDuringExecution")
    names = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in ("n-1", "n-2")]
    assert term == {"weight": 100, "preference": {"matchFields": names}}
    assert affinity == {}
    assert "affinity" not in spec()


@contract("4.OTTO_OUTPUT")
def test_the_output_file_is_the_one_that_the_kubelet_mounts() -> None:
    """A variable with another path would lead to a file that nothing reads."""
    (container,) = body()["spec"]["containers"]
    assert values()["OTTO_OUTPUT"] == container["terminationMessagePath"]
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


@contract("4.env")
def test_a_worker_knows_its_identity() -> None:
    """The variables of the contract, and a HOME that it may write to."""
    assert values(traceparent="00-aa", passed_on={"job_id": "7"}) == {
        "OTTO_TASK_ID": "t",
        "OTTO_EVENT_ID": "e-1",
        "OTTO_WORKER_INDEX": "2",
        "OTTO_WORKER_COUNT": "3",
        "OTTO_ATTEMPT": "3",
        "OTTO_TASK_KEY": "e-1/2",
        "OTTO_POD_NAME": f"otto-agent-{HASH}-2-r3",
        "OTTO_OUTPUT": "/dev/termination-log",
        "OTTO_JOB_ID": "7",
        "TRACEPARENT": "00-aa",
        "HOME": "/workspace",
    }


@contract("4.env")
def test_a_worker_learns_its_namespace_from_the_cluster() -> None:
    """Where it really runs."""
    assert {"name": "OTTO_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}} in container()[
        "env"
    ]


@contract("4.env")
def test_without_a_trace_there_is_no_trace_variable() -> None:
    """An empty one would be a broken one."""
    assert "TRACEPARENT" not in values()


@contract("4.env")
@contract("3.passed-on")
def test_a_workers_own_variables_win() -> None:
    """Over a field of an event that was accepted before its name was refused; each name once."""
    found = values(passed_on={"attempt": "99", "task_key": "x", "pod_name": "y"})
    assert (found["OTTO_ATTEMPT"], found["OTTO_TASK_KEY"]) == ("3", "e-1/2")


@contract("4.env")
@pytest.mark.parametrize(
    "value", ["$(OTTO_TASK_ID)", "$$(OTTO_TASK_ID)", "$$$(OTTO_TASK_ID)", "a$(HOME)b$(", "$", "$$", "a$b"]
)
def test_a_field_reaches_the_worker_as_it_was_sent(value: str) -> None:
    """The kubelet expands $(NAME) and reads $$ as $: an event must not read other variables, nor lose a dollar."""
    assert expand(values(passed_on={"x": value})["OTTO_X"], values()) == value


@contract("4.env")
@given(st.text("$()OTA_KSID", max_size=30))
def test_no_mixture_of_signs_is_expanded(value: str) -> None:
    """Whatever the event says, the worker reads just that."""
    assert expand(values(passed_on={"x": value})["OTTO_X"], {"A": "secret", "": "secret", "OTTO": "secret"}) == value


@contract("2.OTTO_AGENT_COMMAND")
@contract("2.OTTO_AGENT_IMAGE")
@pytest.mark.contract("2.IMAGE_PULL_POLICY")
def test_image_and_command_are_the_operators() -> None:
    """The program gets each word as it was written: no event can change it."""
    assert (container()["image"], container()["imagePullPolicy"]) == ("img:1", "IfNotPresent")
    assert [expand(word, values()) for word in container()["command"]] == ["run", "$(OTTO_TASK_ID)"]


@contract("2.OTTO_AGENT_COMMAND")
@pytest.mark.parametrize(
    "line",
    [
        'echo "$OTTO_TASK_ID"', 'echo "${OTTO_TASK_ID}"', "echo $(date)", "echo $$", "kill $$", "echo $(OTTO_TASK_ID)",
        "echo $$(OTTO_TASK_ID)", "echo $((1 + 2))", "awk '{print $1}'", "echo $", "a=$(b)$$$(c)", "$", "$$$$",
    ],
)  # fmt: skip
def test_a_command_means_what_the_shell_means(line: str) -> None:
    """Variables, substitutions and process ids are the shell's; the kubelet changes none of them."""
    words = container(replace(PLAIN, command=("/bin/sh", "-c", line)))["command"]
    assert [expand(word, {**values(), "date": "x", "b": "x"}) for word in words] == ["/bin/sh", "-c", line]


@contract("2.OTTO_AGENT_COMMAND")
@given(st.lists(st.text("$()OTA_KSID{} ", max_size=20), min_size=1, max_size=3))
def test_no_mixture_of_signs_in_a_command_is_expanded(words: list[str]) -> None:
    """The program is started with just these words."""
    written = container(replace(PLAIN, command=tuple(words)))["command"]
    assert [expand(word, {"A": "secret", "": "secret", "OTTO": "secret"}) for word in written] == words


@contract("4.security")
def test_the_pod_meets_the_restricted_profile() -> None:
    """Each field that the profile asks for, on the pod or on the container."""
    pod, only = spec()["securityContext"], container()["securityContext"]
    assert pod["runAsNonRoot"] is only["runAsNonRoot"] is True
    assert pod["seccompProfile"] == only["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["allowPrivilegeEscalation"] is False
    assert only["capabilities"] == {"drop": ["ALL"]}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec().keys()
    assert not {"privileged", "procMount"} & only.keys()


@contract("2.WORKER_RUN_AS_USER")
def test_the_worker_runs_as_the_user_of_the_configuration() -> None:
    """And its files belong to that user's group."""
    context = spec(replace(PLAIN, run_as_user=4711))["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (4711, 4711, 4711)


@contract("2.WORKER_RUN_AS_USER")
def test_the_workspace_is_the_workers_place() -> None:
    """An emptyDir, the only volume: HOME and working directory."""
    assert spec()["volumes"] == [{"name": "workspace", "emptyDir": {}}]
    assert container()["volumeMounts"] == [{"name": "workspace", "mountPath": "/workspace"}]
    assert container()["workingDir"] == values()["HOME"] == "/workspace"


@contract("4.security")
def test_the_worker_has_no_token_and_no_second_life() -> None:
    """Nor the addresses of all services in its environment."""
    found = spec()
    assert found["automountServiceAccountToken"] is False
    assert found["enableServiceLinks"] is False
    assert found["restartPolicy"] == "Never"
    assert "serviceAccountName" not in found


@contract("2.WORKER_SERVICE_ACCOUNT")
def test_a_service_account_is_mounted_only_on_demand() -> None:
    """The operator named it, so the worker is to use it."""
    found = spec(replace(PLAIN, service_account="agent"))
    assert (found["serviceAccountName"], found["automountServiceAccountToken"]) == ("agent", True)


@contract("4.security")
@contract("2.WORKER_CPU_REQUEST")
@pytest.mark.contract("2.WORKER_CPU_LIMIT")
@pytest.mark.contract("2.WORKER_MEMORY_REQUEST")
@pytest.mark.contract("2.WORKER_MEMORY_LIMIT")
def test_the_worker_has_requests_and_limits() -> None:
    """Of both CPU and memory."""
    assert container()["resources"] == {
        "requests": {"cpu": "100m", "memory": "128Mi"},
        "limits": {"cpu": "1", "memory": "512Mi"},
    }


@contract("2.WORKER_DEADLINE_S")
@pytest.mark.parametrize(("deadline_s", "field"), [(60, {"activeDeadlineSeconds": 60}), (0, {})])
def test_a_deadline_of_zero_is_none(deadline_s: int, field: dict[str, int]) -> None:
    """The API server refuses activeDeadlineSeconds 0."""
    found = spec(replace(PLAIN, deadline_s=deadline_s))
    assert {name: value for name, value in found.items() if name == "activeDeadlineSeconds"} == field


@contract("2.TERMINATION_GRACE_S")
def test_a_worker_that_is_ended_has_its_grace() -> None:
    """Zero is a grace too."""
    assert spec()["terminationGracePeriodSeconds"] == 30
    assert spec(replace(PLAIN, termination_grace_s=0))["terminationGracePeriodSeconds"] == 0


@contract("2.WORKER_NODE_SELECTOR")
@contract("2.WORKER_IMAGE_PULL_SECRET")
@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"node_selector": {"disk": "ssd"}}, "nodeSelector", {"disk": "ssd"}),
        ({"tolerations": ({"operator": "Exists"},)}, "tolerations", [{"operator": "Exists"}]),
        ({"image_pull_secret": "key"}, "imagePullSecrets", [{"name": "key"}]),
    ],
)
@pytest.mark.contract("2.WORKER_TOLERATIONS")
def test_what_the_configuration_adds_is_there_only_then(change: dict[str, Any], field: str, value: object) -> None:
    """Empty fields would only make every pod's spec longer."""
    assert spec(replace(PLAIN, **change))[field] == value
    assert field not in spec()
