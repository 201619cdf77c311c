"""The documents by which clients find out what the emulator serves: its version, its groups, their resources."""

from __future__ import annotations

import sys

from ottoscaler.local.objects import KINDS, Object

_SUBRESOURCES = {"status": ["get", "patch"], "log": ["get"], "binding": ["create"]}
_AUTHORIZATION = {"groupVersion": "authorization.k8s.io/v1", "version": "v1"}


def _resource_list(group_version: str, resources: list[Object]) -> Object:
    return {"kind": "APIResourceList", "groupVersion": group_version, "resources": resources}


def _core_resources() -> Object:
    resources: list[Object] = [
        {
            "name": name,
            "singularName": name.removesuffix("s"),
            "namespaced": each.namespaced,
            "kind": each.kind,
            "verbs": sorted(each.verbs),
            "shortNames": [each.short],
        }
        for name, each in KINDS.items()
    ]
    for name, verbs in _SUBRESOURCES.items():
        resources.append(
            {"name": f"pods/{name}", "singularName": "", "namespaced": True, "kind": "Pod", "verbs": verbs}
        )
    return _resource_list("v1", resources)


def _authorization_resources() -> Object:
    review = {"name": "selfsubjectaccessreviews", "singularName": "selfsubjectaccessreview", "namespaced": False}
    return _resource_list(
        "authorization.k8s.io/v1", [{**review, "kind": "SelfSubjectAccessReview", "verbs": ["create"]}]
    )


def _authorization_api_group() -> Object:
    return {"name": "authorization.k8s.io", "versions": [_AUTHORIZATION], "preferredVersion": _AUTHORIZATION}


DOCUMENTS: dict[str, Object] = {
    "/version": {
        "major": "1",
        "minor": "34",
        "gitVersion": "v1.34.4+ottoscaler-local",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "none",
        "platform": sys.platform,
    },
    "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_authorization_api_group()]},
    "/apis/authorization.k8s.io": {"kind": "APIGroup", "apiVersion": "v1", **_authorization_api_group()},
    "/api/v1": _core_resources(),
    "/apis/authorization.k8s.io/v1": _authorization_resources(),
}
