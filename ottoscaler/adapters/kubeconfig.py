"""Where the access to Kubernetes comes from, for the log: a process that works in the wrong cluster has to show it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import yaml
from kubernetes import config
from kubernetes.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION, KubeConfigLoader, KubeConfigMerger

from ottoscaler.settings import KubeSettings


class _Merger(KubeConfigMerger):
    """Several files are merged as kubectl does it
    (https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/#merging-kubeconfig-files):
    the first one that sets the current context wins, and an empty file is skipped. The library takes the last one, so
    we would work in another cluster than kubectl.
    """

    config_merged: Any
    empty = False

    def load_config(self, path: str) -> None:
        """Add one file. Raises what the library raises for one that is of no use."""
        if not Path(path).read_bytes().strip():
            self.empty = True
            self.config_files[path] = None
            return
        chosen = self.config_merged.value.get("current-context") if self.config_merged is not None else None
        cast(Any, super()).load_config(path)
        if chosen:
            self.config_merged.value["current-context"] = chosen


def merged_kubeconfig(path: str) -> Any:
    """What the kubeconfig files in this list say together: `config`, None where none of them says anything, and `empty`
    if one of them is there and empty. Raises what the library raises for files that are of no use.
    """
    return cast(Any, _Merger)(path)


def describe_access(settings: KubeSettings) -> str:
    """The kubeconfig and its current context, or the pod's ServiceAccount. The context is left out where the file does
    not say it; whether the file is of use is for the client to find out.
    """
    if "KUBERNETES_SERVICE_HOST" in os.environ and not settings.kubeconfig:
        return "by the pod's ServiceAccount"
    path = settings.kubeconfig or KUBE_CONFIG_DEFAULT_LOCATION
    try:
        active = cast(Any, KubeConfigLoader)(merged_kubeconfig(path).config, config_base_path=None).current_context
        context = f", context {active['name']}" if active else ""
    except (config.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, KeyError):
        context = ""
    return f"by {'KUBECONFIG=' if settings.kubeconfig else ''}{path}{context}"
