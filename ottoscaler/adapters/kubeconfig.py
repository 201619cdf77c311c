"""Where the access to Kubernetes comes from, for the log: a process that works in the wrong cluster has to show it."""

from __future__ import annotations

import os

from kubernetes import config
from kubernetes.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION

from ottoscaler.settings import KubeSettings


def origin(settings: KubeSettings) -> str:
    """The kubeconfig and its current context, or the pod's ServiceAccount. The context is left out where the file does
    not say it; whether the file is of use is for the client to find out.
    """
    if "KUBERNETES_SERVICE_HOST" in os.environ and not settings.kubeconfig:
        return "by the pod's ServiceAccount"
    path = settings.kubeconfig or KUBE_CONFIG_DEFAULT_LOCATION
    try:
        _, active = config.list_kube_config_contexts(config_file=path)
        context = f", context {active['name']}" if active else ""
    except (config.ConfigException, OSError, ValueError, TypeError, KeyError):
        context = ""
    return f"by {'KUBECONFIG=' if settings.kubeconfig else ''}{path}{context}"
