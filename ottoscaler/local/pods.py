"""What the API server does to a pod that is written: unknown fields, validation, defaults, the immutable spec.

Only what Ottoscaler or a template of its users can run into; the real server checks far more. Sentences and codes are
those of 1.34.
"""

from __future__ import annotations

import re

from ottoscaler.local.objects import ApiError, Object, invalid

_POD_FIELDS = frozenset(
    re.findall(
        r"\w+",
        """
        activeDeadlineSeconds affinity automountServiceAccountToken containers dnsConfig dnsPolicy
        enableServiceLinks ephemeralContainers hostAliases hostIPC hostNetwork hostPID hostUsers hostname
        hostnameOverride imagePullSecrets initContainers nodeName nodeSelector os overhead preemptionPolicy
        priority priorityClassName readinessGates resourceClaims resources restartPolicy runtimeClassName
        schedulerName schedulingGates securityContext serviceAccount serviceAccountName setHostnameAsFQDN
        shareProcessNamespace subdomain terminationGracePeriodSeconds tolerations topologySpreadConstraints volumes
        """,
    )
)
_CONTAINER_FIELDS = frozenset(
    re.findall(
        r"\w+",
        """
        args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports readinessProbe
        resizePolicy resources restartPolicy restartPolicyRules securityContext startupProbe stdin stdinOnce
        terminationMessagePath terminationMessagePolicy tty volumeDevices volumeMounts workingDir
        """,
    )
)
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_QUANTITY = re.compile(r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?P<suffix>[numkMGTPE]|[KMGTPE]i)?")
_SCALE = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18} | {
    f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", start=1)
}
_POD_DEFAULTS: Object = {
    "restartPolicy": "Always",
    "terminationGracePeriodSeconds": 30,
    "dnsPolicy": "ClusterFirst",
    "serviceAccountName": "default",
    "securityContext": {},
    "schedulerName": "default-scheduler",
    "priority": 0,
    "enableServiceLinks": True,
    "preemptionPolicy": "PreemptLowerPriority",
}
_CONTAINER_DEFAULTS: Object = {"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}
# What an update may change of a spec; restartPolicy and the rest are fixed once the pod is made.
_MUTABLE = frozenset({"activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"})


def quantity(value: object) -> float:
    """A resource quantity as a number: cores, bytes. Raises ApiError 400."""
    found = _QUANTITY.fullmatch(str(value))
    if found is None:
        pattern = "^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$"
        raise _undecodable_pod_error(f"quantities must match the regular expression '{pattern}'")
    return float(found["number"]) * _SCALE.get(found["suffix"] or "", 1.0)


def resource_requests(pod: Object) -> tuple[float, float]:
    """What the scheduler counts for a pod: cores and bytes requested."""
    asked = [container["resources"].get("requests") or {} for container in pod["spec"]["containers"]]
    return sum(quantity(each.get("cpu", 0)) for each in asked), sum(quantity(each.get("memory", 0)) for each in asked)


def drop_unknown(pod: Object) -> list[str]:
    """Remove the fields that the API does not have from spec and containers; returns their paths."""
    spec = pod.get("spec") or {}
    places = [("spec", spec, _POD_FIELDS)]
    for kind in ("initContainers", "containers"):
        places += [(f"spec.{kind}[{i}]", each, _CONTAINER_FIELDS) for i, each in enumerate(spec.get(kind) or [])]
    unknown = []
    for path, obj, known in places:
        for name in sorted(set(obj) - known):
            del obj[name]
            unknown.append(f"{path}.{name}")
    return unknown


def validate_pod(pod: Object) -> None:
    """Raise ApiError 422 with all causes, or 400 where the JSON does not even have the right types."""
    metadata, spec = pod["metadata"], pod.get("spec") or {}
    causes = _metadata_causes(metadata)
    for field in ("activeDeadlineSeconds", "terminationGracePeriodSeconds"):
        if not isinstance(spec.get(field, 0), int):
            raise _undecodable_pod_error(
                f"json: cannot unmarshal into Go struct field PodSpec.spec.{field} of type int64"
            )
    containers = spec.get("containers") or []
    if not containers:
        causes.append(("spec.containers", "Required value"))
    names: set[str] = set()
    for index, container in enumerate(containers):
        causes += [(f"spec.containers[{index}]{where}", what) for where, what in _container_causes(container, names)]
        names.add(container.get("name", ""))
    if spec.get("restartPolicy", "Always") not in ("Always", "OnFailure", "Never"):
        causes.append(
            (
                "spec.restartPolicy",
                f'Unsupported value: "{spec["restartPolicy"]}": supported values: "Always", "OnFailure", "Never"',
            )
        )
    if causes:
        raise invalid(metadata.get("name") or metadata.get("generateName", ""), causes)


def with_defaults(pod: Object) -> Object:
    """The pod with the defaults of API server and admission, Pending, whatever status it came with."""
    spec = {**_POD_DEFAULTS, **pod["spec"]}
    spec["serviceAccount"] = spec["serviceAccountName"]
    for kind in ("initContainers", "containers"):
        if spec.get(kind):
            spec[kind] = [_container_defaults(container) for container in spec[kind]]
    return {**pod, "spec": spec, "status": {"phase": "Pending", "qosClass": _qos_class(spec["containers"])}}


def validate_pod_update(old: Object, new: Object) -> None:
    """Raise ApiError 422 when an update changes what cannot be changed."""
    if _immutable_part(old["spec"]) != _immutable_part(new["spec"]):
        allowed = "`spec.containers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions)"
        raise invalid(
            old["metadata"]["name"], [("spec", f"Forbidden: pod updates may not change fields other than {allowed}")]
        )


def _undecodable_pod_error(reason: str) -> ApiError:
    return ApiError(400, f'Pod in version "v1" cannot be handled as a Pod: {reason}')


def _metadata_causes(metadata: Object) -> list[tuple[str, str]]:
    causes = []
    name = metadata.get("name") or (metadata["generateName"] + "x" if metadata.get("generateName") else "")
    if not name:
        causes.append(("metadata.name", "Required value: name or generateName is required"))
    elif not _SUBDOMAIN.fullmatch(name) or len(name) > 253:
        rule = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'"
        causes.append(("metadata.name", f'Invalid value: "{name}": {rule}'))
    for value in (metadata.get("labels") or {}).values():
        if not isinstance(value, str):
            raise _undecodable_pod_error(
                f"json: cannot unmarshal {value!r} into Go struct field ObjectMeta.metadata.labels of type string"
            )
        if not _LABEL_VALUE.fullmatch(value) or len(value) > 63:
            causes.append(
                (
                    "metadata.labels",
                    f'Invalid value: "{value}": a valid label must be an empty string or consist of alphanumerics',
                )
            )
    return causes


def _container_causes(container: Object, names: set[str]) -> list[tuple[str, str]]:
    """Causes with paths relative to the container."""
    words = [*(container.get("command") or []), *(container.get("args") or [])]
    values = [entry.get("value") or "" for entry in container.get("env") or []]
    lists = [container.get(key) or [] for key in ("command", "args", "env", "volumeMounts")]
    if not all(isinstance(each, list) for each in lists) or not all(isinstance(word, str) for word in words + values):
        raise _undecodable_pod_error(
            "json: cannot unmarshal number into Go struct field Container.spec.containers of type string"
        )
    causes = []
    name = container.get("name") or ""
    if not _SUBDOMAIN.fullmatch(name) or "." in name:
        causes.append(
            (
                ".name",
                "Required value" if not name else f'Invalid value: "{name}": a lowercase RFC 1123 label is needed',
            )
        )
    elif name in names:
        causes.append((".name", f'Duplicate value: "{name}"'))
    for field, key in (("env", "name"), ("volumeMounts", "mountPath"), ("volumeMounts", "name")):
        missing = [index for index, each in enumerate(container.get(field) or []) if not each.get(key)]
        causes += [(f".{field}[{index}].{key}", "Required value") for index in missing]
    if not container.get("image"):
        causes.append((".image", "Required value"))
    resources = container.get("resources") or {}
    for resource, limit in (resources.get("limits") or {}).items():
        asked = (resources.get("requests") or {}).get(resource, 0)
        if quantity(asked) > quantity(limit):
            causes.append(
                (
                    ".resources.requests",
                    f'Invalid value: "{asked}": must be less than or equal to {resource} limit of {limit}',
                )
            )
    for asked in (resources.get("requests") or {}).values():
        quantity(asked)
    return causes


def _container_defaults(container: Object) -> Object:
    resources = dict(container.get("resources") or {})
    if resources.get("limits"):
        resources["requests"] = {**resources["limits"], **(resources.get("requests") or {})}
    tag = container["image"].rpartition("/")[2].partition(":")[2]
    policy = "Always" if tag in ("", "latest") and "@" not in container["image"] else "IfNotPresent"
    return {"imagePullPolicy": policy, **_CONTAINER_DEFAULTS, **container, "resources": resources}


def _qos_class(containers: list[Object]) -> str:
    resources = [container["resources"] for container in containers]
    if not any(each.get("requests") or each.get("limits") for each in resources):
        return "BestEffort"
    sure = all(
        {"cpu", "memory"} <= set(each.get("limits") or {}) and each["requests"] == each["limits"] for each in resources
    )
    return "Guaranteed" if sure else "Burstable"


def _immutable_part(spec: Object) -> Object:
    containers = [{key: value for key, value in each.items() if key != "image"} for each in spec["containers"]]
    return {key: value for key, value in spec.items() if key not in _MUTABLE} | {"containers": containers}
