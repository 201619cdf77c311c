"""`plan FIELD=VALUE...`: the pods that an event would make, and what decides on each of their fields. It creates
nothing, and asks no server unless `--server` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Final

from ottoscaler.adapters.cluster import KubeCluster
from ottoscaler.adapters.yaml_text import to_yaml
from ottoscaler.cli.namespace import own_namespace
from ottoscaler.cli.rules import rules_of
from ottoscaler.cli.send import fields_of, warn_of_fields
from ottoscaler.cli.table import printable
from ottoscaler.core.events import BadEvent, EventType, ScaleEvent, parse
from ottoscaler.core.manifest import AttemptKey, build_pod, event_hash
from ottoscaler.core.origins import origins
from ottoscaler.core.tenants import tenant_of
from ottoscaler.core.wording import count_text
from ottoscaler.errors import ClusterRejected
from ottoscaler.settings import Settings

#: Instead of the id that the stream gives an entry.
_SOME_ID: Final = "1714557600000-0"


def main(arguments: Sequence[str]) -> int:
    """Print the pods as YAML. Returns 0; 1 if the controller, or with `--server` the API server, would refuse them.

    Raises ConfigError, ClusterUnavailable; SystemExit (2) for an argument that is not FIELD=VALUE.
    """
    parser = _argument_parser()
    options = parser.parse_intermixed_args(arguments)
    sent = fields_of(parser, options.fields)
    fields = {"type": "scale_up", **sent}
    environ = os.environ if options.server else {**os.environ, "KUBECONFIG": ""}
    settings = Settings.load(environ, socket.gethostname(), own_namespace())
    rules = rules_of(settings)()
    raw = {name.encode(): value.encode() for name, value in fields.items()}
    warn_of_fields(raw, {"type"} - sent.keys())
    event = parse(_SOME_ID, raw, settings.flow.max_pods_per_event, rules)
    if isinstance(event, BadEvent):
        print(f"Refused: {event.reason}: {event.detail}", file=sys.stderr)
        return 1
    if event.type is EventType.SCALE_DOWN:
        print("A scale_down makes no pods.")
        return 0
    pods = f"{count_text(event.pod_count, 'pod')} in namespace {settings.kube.namespace}"
    print(f"# {pods}; an attempt after a failure has another name")
    for one in origins(event, rules.policy):
        print(printable(f"# {one.field}: {one.source}" + (f" ({one.rule})" if one.rule else "")))
    shown = event.pod_count if options.all else 1
    bodies = list(_pod_bodies(event, settings, shown))
    for body in bodies:
        print("---", to_yaml(json.loads(body)), sep="\n", end="")
    if shown < event.pod_count:
        print(f"# {event.pod_count - shown} more differ from it in name, index and task key only (--all prints them)")
    return _ask_server(bodies[0], settings) if options.server else 0


def _argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ottoscaler.py plan",
        description="Print the pods that an event would make, and what decides on each field. Nothing is created.",
        epilog='Example: ottoscaler.py plan pod_count=2 profile=node20 \'command=["npm", "test"]\'',
    )
    parser.add_argument("fields", nargs="+", metavar="FIELD=VALUE", help="as for send; type=scale_up is the default")
    parser.add_argument("--server", action="store_true", help="ask the API server for its verdict (a dry run)")
    parser.add_argument("--all", action="store_true", help="print every pod, not only the first")
    return parser


def _pod_bodies(event: ScaleEvent, settings: Settings, count: int) -> Iterator[bytes]:
    """The requests that would create the first pods."""
    known = event_hash(settings.instance, event.event_id)
    text, tenant = event.encode(), tenant_of(event.passed_on, settings.flow.tenant_field)
    for index in range(1, count + 1):
        yield build_pod(
            settings.worker, event, AttemptKey(known, index, 1), event_json=text, tenant=tenant,
            instance=settings.instance, namespace=settings.kube.namespace,
        )  # fmt: skip


def _ask_server(body: bytes, settings: Settings) -> int:
    with closing(KubeCluster(settings.kube, instance=settings.instance)) as cluster:
        try:
            cluster.dry_run(body)
        except ClusterRejected as error:
            print(f"The API server refuses it: {printable(str(error))}", file=sys.stderr)
            return 1
    print("# The API server accepts it.")
    return 0
