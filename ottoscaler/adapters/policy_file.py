"""POLICY_FILE: read at the start, and again when it has changed."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path as FilePath
from typing import Any, Final

import yaml

from ottoscaler import logs
from ottoscaler.core.policy import Policy
from ottoscaler.core.policy_reader import read_policy
from ottoscaler.core.policy_values import Path
from ottoscaler.errors import ConfigError

_MAX_BYTES: Final = 1024 * 1024  # as large as a ConfigMap
#: Aliases repeat what they name, so a few bytes can be any number of values. The thread that reads the file must go on.
_MAX_VALUES: Final = 100_000
#: YAML 1.1 knows more forms, `1:30` for 90 and `010` for 8: a slip, here.
_WHOLE: Final = re.compile(r"-?(0|[1-9][0-9]{0,17})")

_log = logs.get(__name__)

#: What differs between two versions of the file: a ConfigMap is replaced by a symbolic link, so by another inode.
_Version = tuple[int, ...]


class PolicyFile:
    """The policy in force. Any thread."""

    def __init__(self, path: str) -> None:
        """Read the file. Raises ConfigError with all that is wrong with it, one line each."""
        self._path = path
        self._lock = threading.Lock()
        self._version = _version(path)
        self._policy = load(path)  # guarded by _lock, like _version and _logged
        self._logged: tuple[_Version, str] | None = None

    def current(self) -> Policy:
        """The policy; read again if the file is another one than it was. Raises nothing.

        A file that is broken or gone changes nothing: one line is logged for each such version, and the last policy
        that could be read stays in force. What could not be read is tried again at the next use.
        """
        version = _version(self._path)
        with self._lock:
            if version == self._version:
                return self._policy
            # The version is noted first: a file that changes while it is read has yet another one and is read again.
            self._version = version
            try:
                self._policy = load(self._path)
            except ConfigError as error:
                if isinstance(error.__cause__, OSError):
                    self._version = ()  # a file that could not be opened for a moment is no other file afterwards
                if self._logged != (version, str(error)):
                    self._logged = (version, str(error))
                    faults = "; ".join(error.faults)
                    _log.error("policy.invalid", "The policy in force stays as it was", error=faults)
            else:
                _log.info("policy.loaded", "The policy was read again from %s", self._path)
            return self._policy


def load(path: str) -> Policy:
    """The policy of a file. Raises ConfigError with all that is wrong with it, one line each."""
    try:
        with FilePath(path).open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise ConfigError((f"POLICY_FILE={path!r}: expected at most {_MAX_BYTES} bytes",))
        return parse_policy(raw.decode(), path)
    except OSError as error:
        raise ConfigError((f"POLICY_FILE={path!r}: expected a file that can be read: {error.strerror}",)) from error
    except UnicodeDecodeError as error:
        raise ConfigError((f"POLICY_FILE={path!r}: expected UTF-8",)) from error


def parse_policy(text: str, path: str) -> Policy:
    """The policy of a file's text. Raises ConfigError with all that is wrong with it: `path:line: field: fault`."""
    document = _Document()
    try:
        data = document.data(yaml.compose(text, Loader=yaml.SafeLoader), ())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError((f"{path}:{line}: no YAML: {error.problem}",)) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError((f"{path}: no YAML: {str(error).splitlines()[0]}",)) from error
    found = read_policy(data)
    faults = [*document.faults, *(found if isinstance(found, list) else ())]
    if faults or not isinstance(found, Policy):
        lines = sorted((document.line(where), f"{_path_prefix(where)}{sentence}") for where, sentence in faults)
        raise ConfigError(tuple(f"{path}:{line}: {sentence}" for line, sentence in lines))
    return found


class _Document:
    """Plain data out of YAML's nodes, and where each of them was."""

    def __init__(self) -> None:
        self.faults: list[tuple[Path, str]] = []
        self._lines: dict[Path, int] = {}
        self._open: set[int] = set()
        self._values = 0

    def line(self, path: Path) -> int:
        """The line of this field, or of the nearest one around it that is in the file."""
        while path not in self._lines and path:
            path = path[:-1]
        return self._lines.get(path, 1)

    def data(self, node: yaml.Node | None, path: Path) -> Any:
        """What a node says. A name that is there twice, and a node that is inside itself, are faults. Raises YAMLError
        where there are more than _MAX_VALUES.
        """
        if node is None:
            return {}
        self._values += 1
        if self._values > _MAX_VALUES:
            raise yaml.YAMLError(f"more than {_MAX_VALUES} values, with those that aliases repeat")
        self._lines.setdefault(path, node.start_mark.line + 1)
        if id(node) in self._open:
            self.faults.append((path, "an alias of what it is in"))
            return {}
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._read_mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.data(one, (*path, number)) for number, one in enumerate(node.value)]
            return _read_scalar(node)
        finally:
            self._open.discard(id(node))

    def _read_mapping(self, node: yaml.MappingNode, path: Path) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key, value in node.value:
            name = _read_scalar(key) if isinstance(key, yaml.ScalarNode) else str(key.tag)
            where = (*path, name)
            if name in found:
                first = self._lines[where]
                self._lines[where] = key.start_mark.line + 1
                self.faults.append((where, f"is there twice, first in line {first}"))
                continue
            self._lines[where] = key.start_mark.line + 1
            found[name] = self.data(value, where)
        return found


def _read_scalar(node: yaml.Node) -> Any:
    """A text, number, flag or nothing. Anything else that YAML knows, and what is no value of its tag, is the text that
    is there: the reader of the policy says what is expected instead.
    """
    kind = node.tag.rpartition(":")[2]
    if kind not in ("int", "float", "bool", "null") or (kind == "int" and not _WHOLE.fullmatch(node.value)):
        return node.value
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (ValueError, LookupError):  # of a tag that was written out, as in `!!bool maybe`
        return node.value


def _path_prefix(path: Path) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    return f"{text}: " if text else ""


def _version(path: str) -> _Version:
    try:
        found = os.stat(path)
    except OSError:
        return (0,)
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev, found.st_size)
