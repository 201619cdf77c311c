"""What the Kubernetes API is asked for by all that read logs."""

from __future__ import annotations


def log_query(container: str, *, since: str, follow: bool) -> dict[str, str]:
    """The query of `pods/log`, lines with their time in front: see `PodLogs.read`."""
    query = {"container": container, "timestamps": "true"}
    query |= {"follow": "true"} if follow else {}
    query |= {"sinceTime": since} if since else {}
    return query
