"""What the scripts of a developer's environment ask about names and files: Unicode and quoting are no work for a shell.

environment.py user NAME [PORT]      the user name and the Redis port of a developer, in Korean or English
environment.py name NAME             the user name alone
environment.py shell FILE            the variables of an env file that the scripts use, as lines for `eval`
environment.py check FILE            the same, after all of the file was checked as the controller will check it
environment.py template NAME PORT    the env file of a new environment
environment.py cluster FILE          the name of the Kind cluster's developer, nothing where FILE names a kubeconfig
environment.py login FILE            user and password of the Redis on this machine, a line each
environment.py manifests FILE FOLDER IMAGE ID    the kustomization of an environment, in a folder of ours alone
environment.py command               CMD as the command of an event: a line for /bin/sh -c
environment.py words                 the words of ARGS, quoted for `eval`
environment.py results               the entries of `redis-cli --json XREVRANGE` on standard input, a line each

Every value that is printed for a shell was checked and quoted here, for a script puts it into commands and paths.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if sys.version_info < (3, 11):  # noqa: UP036 - the Python that a shell finds may be an older one
    raise SystemExit(f"Python 3.11 or later is needed, and {sys.executable} is older: make PYTHON=python3.11 ...")

from deploy import manifests  # noqa: E402 - of this checkout, installed or not
from ottoscaler.errors import ConfigError  # noqa: E402
from ottoscaler.misspellings import closest_known_name  # noqa: E402
from ottoscaler.settings import UNSUPPORTED_VARIABLES, Settings  # noqa: E402
from ottoscaler.settings_files import read_env_file, redact_value  # noqa: E402
from ottoscaler.settings_reader import DNS_LABEL, WORD, TextFormat  # noqa: E402

DEVELOPERS: Final = ROOT / "deploy" / "developers"
#: A part of container, cluster and namespace names.
USER: Final = TextFormat(r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?", "a name of a-z, 0-9 and -, at most 30")
CLUSTER: Final = TextFormat(rf"ottoscaler-{USER.pattern}", f"ottoscaler-<name>, with {USER.expected}", 64)
HOST: Final = TextFormat(r"[A-Za-z0-9_:][A-Za-z0-9_.:-]*", "a host name or an IP address", 253)
PORT: Final = TextFormat(r"[1-9][0-9]{0,4}", "a port", 5)
#: https://github.com/distribution/reference: a domain with its port, a path, a tag, a digest.
IMAGE: Final = TextFormat(
    r"[A-Za-z0-9][A-Za-z0-9._-]*(:[0-9]+)?(/[A-Za-z0-9][A-Za-z0-9._-]*)*(:[A-Za-z0-9_][A-Za-z0-9._-]*)?(@sha256:[0-9a-f]{64})?",
    "the name of an image",
)
ANYBODY: Final = "Anybody else takes a name of a-z, 0-9 and -, at most 30, and a port: USER=anna PORT=6390"
#: What the scripts use, what holds where a file does not say it, and the form that it must have.
USED: Final[Mapping[str, tuple[str, TextFormat]]] = {
    "REDIS_HOST": ("localhost", HOST),
    "REDIS_PORT": ("6379", PORT),
    "RESULT_STREAM": ("otto:scale:results", WORD),
    "NAMESPACE": ("", DNS_LABEL),
    "OTTO_AGENT_IMAGE": ("busybox:latest", IMAGE),
    "KIND_CLUSTER_NAME": ("", CLUSTER),
}
# -- who


def find_user(name: str, port: str) -> tuple[str, int]:
    """The user name and Redis port of a developer in the table, or of anybody else who names a port. Raises SystemExit
    with a sentence.
    """
    wanted = unicodedata.normalize("NFC", name.strip())
    table = _table()
    for korean, user, known_port in table:
        if wanted == unicodedata.normalize("NFC", korean) or wanted.lower() == user:
            if port and port != known_port:
                raise SystemExit(
                    f"PORT is {redact_value(port)}, and {user}'s is {known_port}, as deploy/developers says: "
                    "leave it out."
                )
            return user, int(known_port)
    listed = "\n".join(f"  {korean}  {user:<9} {known_port}" for korean, user, known_port in table)
    if not wanted:
        raise SystemExit(f"Which environment? make setup-user USER=<name>, with one of\n{listed}\n{ANYBODY}")
    if not port or not USER.fits(wanted):
        raise SystemExit(f"There is no developer {redact_value(wanted)}. There are\n{listed}\n{ANYBODY}")
    if not PORT.fits(port) or not 1024 <= int(port) <= 65535:
        raise SystemExit(f"PORT is {redact_value(port)}, expected a number from 1024 to 65535.")
    for _, user, known_port in table:
        if port == known_port:
            raise SystemExit(f"PORT is {port}, and that is {user}'s: take one that is in no line of deploy/developers.")
    for path in sorted(Path().glob(".env.*.local")):
        values, _ = read_env_file(str(path))
        if values.get("REDIS_PORT") == port and path.name != f".env.{wanted}.local":
            raise SystemExit(f"PORT is {port}, and that is the one in {path}: take another.")
    return wanted, int(port)


def find_name(name: str) -> str:
    """The user name of a developer in the table, or of anybody else. Raises SystemExit with a sentence."""
    wanted = unicodedata.normalize("NFC", name.strip())
    for korean, user, _ in _table():
        if wanted == unicodedata.normalize("NFC", korean) or wanted.lower() == user:
            return user
    if not USER.fits(wanted):
        raise SystemExit(f"USER is {redact_value(name)}, expected {USER.expected}, or one of deploy/developers.")
    return wanted


def _table() -> list[tuple[str, str, str]]:
    """The lines of deploy/developers. Raises SystemExit with a sentence for each wrong one."""
    table: list[tuple[str, str, str]] = []
    faults = []
    for number, line in enumerate(DEVELOPERS.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = line.split()
        if len(words) != 3 or not USER.fits(words[1]) or not PORT.fits(words[2]):
            faults.append(f"deploy/developers: line {number}: expected a name, a user name and a port")
        elif clash := [one for one in table for mine, other in zip(words, one, strict=True) if mine == other]:
            faults.append(f"deploy/developers: line {number}: {clash[0][1]} has the same name or port")
        else:
            table.append((words[0], words[1], words[2]))
    if faults:
        raise SystemExit("\n".join(faults))
    return table


def template(user: str, port: str) -> str:
    """The env file of a new environment."""
    return f"""\
# The environment of {user}, for programs on this machine. In the cluster the same holds, with the container redis-{user} as REDIS_HOST.
REDIS_HOST=localhost
REDIS_PORT={port}
REDIS_STREAM=otto:scale:events
REDIS_CONSUMER_GROUP=ottoscaler-{user}
NAMESPACE={user}-dev
OTTO_AGENT_IMAGE=busybox:latest
POLICY_FILE=deploy/policy.yaml
KIND_CLUSTER_NAME=ottoscaler-{user}
"""  # noqa: E501


# -- an env file


def read(path: str) -> dict[str, str]:
    """The variables of a file. Raises SystemExit with all faults in it."""
    values, faults = read_env_file(path)
    if faults:
        raise SystemExit("\n".join(faults))
    return values


def for_shell(path: str, *, whole: bool = False) -> str:
    """Lines for `eval`. Arguments: the file; whether all of it is checked. Raises SystemExit with all faults at once.

    The product's own variables are unset first: a script works where the file says, whatever the shell has exported,
    and so do the commands that it starts.
    """
    values = read(path)
    found = {name: values.get(name, "").strip() or default for name, (default, _) in USED.items()}
    faults = {
        name: f"{name}={redact_value(value)}: expected {USED[name][1].expected}"
        for name, value in found.items()
        if not USED[name][1].fits(value)
    }
    if whole:
        faults = {fault.partition("=")[0]: fault for fault in controller_faults(values)} | faults
    if faults:
        raise SystemExit("\n".join(f"{path}: {fault}" for fault in faults.values()))
    if any(values.get(name) for name in manifests.SECRET_VALUES):
        keep_private(path)
    if whole:
        warn(path, values)
    found["user"] = found["KIND_CLUSTER_NAME"].removeprefix("ottoscaler-")
    names = sorted({*manifests.known(), *UNSUPPORTED_VARIABLES, *USED} - {"ENV_FILE", "KUBECONFIG"})
    return "\n".join([f"unset {' '.join(names)}", *(f"{name}={shlex.quote(value)}" for name, value in found.items())])


def controller_faults(values: Mapping[str, str]) -> tuple[str, ...]:
    """What the controller would say of these variables at its start; never with a secret.

    KUBECONFIG is left out: it counts on this machine only.
    """
    given = {name: value for name, value in values.items() if name not in ("ENV_FILE", "KUBECONFIG")}
    try:
        Settings.load(given, "pod", None)
    except ConfigError as error:
        return error.faults
    return ()


def warn(path: str, values: Mapping[str, str]) -> None:
    """Name the variables that the controller does not read: they stay on this machine, and one may be misspelt."""
    mine = {*manifests.known(), *UNSUPPORTED_VARIABLES, *USED}
    for name in values.keys() - mine:
        near = closest_known_name(name, mine)
        hint = f"; did you mean {near}?" if near else ""
        print(f"{path}: {name} is no setting of the controller and does not reach it{hint}", file=sys.stderr)


def keep_private(path: str) -> None:
    """Take the rights of all others to a file that holds a secret. Raises SystemExit with a sentence."""
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        if mode & 0o077:
            os.chmod(path, mode & 0o700)
            print(f"{path} holds a secret and others could read it: now only you can", file=sys.stderr)
    except OSError as error:
        raise SystemExit(f"{path} holds a secret and others can read it: chmod 600 it ({error})") from None


def cluster_of(path: str) -> str:
    """For `make run`: NAME of the Kind cluster ottoscaler-NAME; empty where the file names a kubeconfig, or cannot be
    read, which the controller reports. Raises SystemExit with a sentence where the file names neither.
    """
    values, faults = read_env_file(path)
    name = values.get("KIND_CLUSTER_NAME", "").strip()
    if faults or values.get("KUBECONFIG", "").strip():
        return ""
    if not name:
        raise SystemExit(
            f"{path} names no cluster: set KIND_CLUSTER_NAME or KUBECONFIG in it, or KUBECONFIG in the environment. "
            "kubectl's current context is not used: it may be another developer's."
        )
    if any(values.get(name) for name in manifests.SECRET_VALUES):
        keep_private(path)
    if not CLUSTER.fits(name):
        raise SystemExit(f"{path}: KIND_CLUSTER_NAME={redact_value(name)}: expected {CLUSTER.expected}")
    return name.removeprefix("ottoscaler-")


def login(path: str) -> tuple[str, str]:
    """User and password of the Redis on this machine; empty where the file names none. Raises SystemExit."""
    values = read(path)
    if not manifests.is_local(values):
        return "", ""
    return values.get("REDIS_USERNAME", "").strip(), manifests.secrets(values).get("password", "").rstrip("\r\n")


# -- the rest


def words(text: str) -> str:
    """The words of ARGS, for `eval "set -- ..."`: quotes count as in a shell, and nothing in them is carried out.
    Raises SystemExit for a quote that does not end.
    """
    try:
        return shlex.join(shlex.split(text))
    except ValueError as error:
        raise SystemExit(f"ARGS is {redact_value(text)}, expected words as in a shell ({error})") from None


def result_lines(entries: list[tuple[str, list[str]]]) -> list[str]:
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
        case ["name", name]:
            print(find_name(name))
        case ["shell" | "check", path]:
            print(for_shell(path, whole=arguments[0] == "check"))
        case ["template", name, port]:
            print(template(name, port), end="")
        case ["cluster", path]:
            print(cluster_of(path))
        case ["login", path]:
            print(*login(path), sep="\n")
        case ["manifests", path, folder, image, image_id]:
            manifests.write(path, Path(folder), image, image_id)
        case ["command"]:
            print(json.dumps(["/bin/sh", "-c", os.environ.get("CMD", "")]))
        case ["words"]:
            print(words(os.environ.get("ARGS", "")))
        case ["results"]:
            print(*result_lines(json.load(sys.stdin)), sep="\n")
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
