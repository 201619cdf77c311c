"""`doctor`: checks Redis, Kubernetes, log handler, trace collector, policy and clocks, and changes nothing.

`--json` prints one object; these keys are stable, new ones may be added:

- `findings`: the worst first: `code` (stable), `severity` (`broken`, `warning`, `unknown`, `ok`), `text`
- `broken`, `warning`, `unknown`, `ok`: how many there are
"""

from __future__ import annotations

import argparse
import json
import os
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from ottoscaler.cli.doctor_checks import KubeCheck, RedisCheck, handler_findings, owner_findings
from ottoscaler.cli.doctor_traces import trace_findings
from ottoscaler.cli.namespace import own_namespace
from ottoscaler.cli.rules import rules_of
from ottoscaler.cli.table import printable
from ottoscaler.core.findings import Finding, Severity, broken, clock_finding, fine, tally, warning, worst_first
from ottoscaler.core.policy import Rules
from ottoscaler.errors import ConfigError
from ottoscaler.settings import Settings


def main(arguments: Sequence[str]) -> int:
    """Print the findings. Returns 1 if something is broken, otherwise 0."""
    parser = argparse.ArgumentParser(
        prog="ottoscaler.py doctor",
        description="Check Redis, Kubernetes, log handler, trace collector, policy and clocks: one line for each"
        " finding, the worst first. Nothing is changed. Exit code 1 if something is broken.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--service-account", metavar="NAME", default="",
        help="check the rights of this ServiceAccount of NAMESPACE, such as the controller's, and not our own",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    found = worst_first(findings(os.environ, options.service_account))
    counts = tally(found)
    if options.json:
        lines = [{"code": each.code, "severity": each.severity, "text": each.text} for each in found]
        print(json.dumps({"findings": lines, **counts}))
    else:
        for each in found:
            print(printable(f"{each.severity:<8} {each.code:<18} {each.text}"))
        print(", ".join(f"{count} {severity}" for severity, count in counts.items()))
    return 1 if counts[Severity.BROKEN] else 0


def findings(environ: Mapping[str, str], account: str = "") -> Sequence[Finding]:
    """All that is found with this environment, in the order of the checks. What waits is waited for side by side.
    `account`: see KubeCheck.
    """
    try:
        settings = Settings.load(environ, socket.gethostname(), own_namespace())
    except ConfigError as error:
        return [broken("config.invalid", fault) for fault in error.faults]
    found = [*_configuration(settings)]
    rules = Rules(settings.worker.deadline_s)
    try:
        rules = rules_of(settings)()
        if settings.flow.policy_file is not None:
            found.append(fine("policy.file", f"The policy in {settings.flow.policy_file} can be read"))
    except ConfigError as error:
        found += [broken("policy.file", fault) for fault in error.faults]
    redis, kube = RedisCheck(settings), KubeCheck(settings, rules, account)
    with ThreadPoolExecutor(4, "check") as pool:
        running = [
            pool.submit(redis.run),
            pool.submit(kube.run),
            pool.submit(handler_findings, settings.log_handler),
            pool.submit(trace_findings, settings.traces),
        ]
        for each in running:
            found += each.result()
    ahead = {"Redis": redis.ahead_s, "the API server": kube.ahead_s}
    clocks = clock_finding({name: seconds for name, seconds in ahead.items() if seconds is not None})
    return [*found, *owner_findings(settings, redis, kube), clocks]


def _configuration(settings: Settings) -> Sequence[Finding]:
    unknown = [warning("config.unknown", sentence) for sentence in settings.misspelled_variables]
    early = [f"{name} is set and has no effect yet" for name in settings.unsupported_variables]
    return [*unknown, *(warning("config.not_yet", sentence) for sentence in early)]
