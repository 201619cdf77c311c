"""What the scripts of a developer's environment ask about names and files: Unicode and quoting are no work for a shell.

environment.py user NAME [PORT]   the user name and the Redis port of a developer, in Korean or English
environment.py shell FILE         the variables of an env file that the scripts use, as lines for `eval`
environment.py config FILE        the variables of an env file that hold in the cluster too
environment.py results            the entries of `redis-cli --json XREVRANGE` on standard input, a line each
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ottoscaler.settings_reader import read_env_file  # noqa: E402 - of this checkout, installed or not

DEVELOPERS: Final = ROOT / "deploy" / "developers"
#: A part of container, cluster and namespace names.
USER: Final = re.compile(r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?")
ANYBODY: Final = "Anybody else takes a name of a-z, 0-9 and -, at most 30, and a port: USER=anna PORT=6390"
#: What the scripts use, and what holds where a file does not say it.
USED: Final[Mapping[str, str]] = {
    "REDIS_HOST": "localhost",
    "REDIS_PORT": "6379",
    "REDIS_STREAM": "otto:scale:events",
    "RESULT_STREAM": "otto:scale:results",
    "NAMESPACE": "",
    "OTTO_AGENT_IMAGE": "busybox:latest",
    "KIND_CLUSTER_NAME": "",
}
#: Of this machine only.
NOT_IN_CLUSTER: Final = frozenset({"REDIS_HOST", "REDIS_PORT", "KUBECONFIG", "KIND_CLUSTER_NAME", "NAMESPACE"})
LOCAL: Final = ("localhost", "127.0.0.1", "::1")


def find_user(name: str, port: str) -> tuple[str, int]:
    """The user name and Redis port of a developer in the table, or of anybody else who names a port. Raises SystemExit
    with a sentence.
    """
    wanted = unicodedata.normalize("NFC", name.strip())
    table = [line.split() for line in DEVELOPERS.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    for korean, user, known_port in table:
        if wanted == unicodedata.normalize("NFC", korean) or wanted.lower() == user:
            if port and port != known_port:
                raise SystemExit(
                    f"PORT is {port}, and {user}'s is {known_port}, as deploy/developers says: leave it out."
                )
            return user, int(known_port)
    listed = "\n".join(f"  {korean}  {user:<9} {known_port}" for korean, user, known_port in table)
    if not wanted:
        raise SystemExit(f"Whose environment? make setup-user USER=<name>, with one of\n{listed}\n{ANYBODY}")
    if not port or not USER.fullmatch(wanted):
        raise SystemExit(f"There is no developer {wanted!r}. There are\n{listed}\n{ANYBODY}")
    if not re.fullmatch("[0-9]{1,5}", port) or not 1024 <= int(port) <= 65535:
        raise SystemExit(f"PORT is {port!r}, expected a number from 1024 to 65535.")
    for _, user, known_port in table:
        if port == known_port:
            raise SystemExit(f"PORT is {port}, and that is {user}'s: take one that is in no line of deploy/developers.")
    return wanted, int(port)


def in_cluster(values: Mapping[str, str]) -> dict[str, str]:
    """The variables as the controller in the cluster needs them: this machine's Redis is the container there."""
    host, port = values.get("REDIS_HOST", "localhost"), values.get("REDIS_PORT", "6379")
    if host in LOCAL:
        host, port = f"redis-{values['KIND_CLUSTER_NAME'].removeprefix('ottoscaler-')}", "6379"
    passed = {name: value for name, value in values.items() if name not in NOT_IN_CLUSTER}
    return {"REDIS_HOST": host, "REDIS_PORT": port, **passed}


def told(entries: list[tuple[str, list[str]]]) -> list[str]:
    """Results as lines, the oldest first; of those that went wrong the message, too."""
    lines = []
    for _, flat in reversed(entries):
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        name = fields["pod"] if fields["kind"] == "worker" and fields["pod"] else fields["task_id"]
        line = f"{fields['finished_at']}  {fields['kind']:<10} {fields['outcome']:<9} {fields['reason']:<16} {name}"
        why = fields["message"] if fields["outcome"] in ("failed", "lost") else ""
        lines.append(f"{line}: {''.join(each if each.isprintable() else ' ' for each in why)}" if why else line)
    return lines or ["none yet"]


def main(arguments: list[str]) -> None:
    """Answer on standard output. Raises SystemExit with a sentence."""
    match arguments:
        case ["user", name, *port]:
            print(*find_user(name, "".join(port)))
        case ["shell", path]:
            for name, default in USED.items():
                print(f"{name}={shlex.quote(_values(path).get(name, '') or default)}")
        case ["config", path]:
            print(*(f"{name}={value}" for name, value in in_cluster(_values(path)).items()), sep="\n")
        case ["results"]:
            print(*told(json.load(sys.stdin)), sep="\n")
        case _:
            raise SystemExit(__doc__)


def _values(path: str) -> dict[str, str]:
    values, faults = read_env_file(path)
    if faults:
        raise SystemExit("\n".join(faults))
    return values


if __name__ == "__main__":
    main(sys.argv[1:])
