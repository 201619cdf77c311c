"""The namespace of the pod that this process runs in."""

from __future__ import annotations

from pathlib import Path
from typing import Final

#: Where a pod finds it (https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/).
_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def own_namespace() -> str | None:
    """The namespace of the pod that this process runs in; None outside a cluster."""
    return _NAMESPACE_FILE.read_text(encoding="utf-8").strip() if _NAMESPACE_FILE.is_file() else None
