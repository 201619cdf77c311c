"""The plain values of a policy file: texts, numbers, lists and maps, each as it has to be, and what is wrong with those
that are not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

from ottoscaler.core.amounts import CPU_FORM, MEMORY_FORM, cpu_m, cpu_text, memory_bytes, memory_text
from ottoscaler.core.images import parse_image
from ottoscaler.core.loaders import ENV_NAME, is_ours
from ottoscaler.core.refusal import shortened

#: Where something is in the file: names of fields and indices of lists, from the outermost.
Path = tuple[str | int, ...]
#: What is wrong, and where.
Faults = list[tuple[Path, str]]

#: What an image, and the name of an object of Kubernetes, look like.
IMAGE_FORM: Final = "an image like registry.example.com/team/name:tag"
OBJECT_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")

_T = TypeVar("_T")


class Values:
    """Reads the values of one file; what cannot be read is a fault and has its default."""

    def __init__(self) -> None:
        self.faults: Faults = []

    def _image(self, given: Mapping[str, Any], path: Path) -> str:
        text = self._text(given, path, "image")
        image = parse_image(text or "")
        if text is not None and image is None:
            self._fault((*path, "image"), f"{shortened(text)}; {IMAGE_FORM} is expected")
        return str(image) if image is not None else ""

    def _env(self, given: Mapping[str, Any], path: Path) -> dict[str, str]:
        found = self._map(given.get("env", {}), (*path, "env"), None)
        values = {name: self._text(found, (*path, "env"), name) or "" for name in found}
        for name in found:
            if not ENV_NAME.fullmatch(name):
                self._fault((*path, "env", name), f"the name {shortened(name)} is not of the form {ENV_NAME.pattern}")
            elif is_ours(name):
                self._fault((*path, "env", name), f"{name} is set by the controller")
        return values

    def _words(self, given: Mapping[str, Any], path: Path, name: str) -> tuple[str, ...] | None:
        if name not in given:
            return None
        return self._each(given, path, name, lambda one, where: self._plain(one, where))

    def _plain(self, data: object, path: Path) -> str | None:
        text = self._is(data, str, path)
        if text is not None and "\0" in text:
            self._fault(path, "a NUL character")
        return text

    def _amount(self, given: Mapping[str, Any], path: Path, name: str) -> str:
        """As Kubernetes writes it; empty where it is not set. A number is taken for its text: `cpu: 2`."""
        if name not in given:
            return ""
        text = str(given[name]) if type(given[name]) in (int, float, str) else ""
        value, form = (cpu_m(text), CPU_FORM) if name == "cpu" else (memory_bytes(text), MEMORY_FORM)
        if value is None:
            self._fault((*path, name), f"{shortened(str(given[name]))}; {form} is expected")
            return ""
        return cpu_text(value) if name == "cpu" else memory_text(value)

    def _number(self, given: Mapping[str, Any], path: Path, name: str, default: int, least: int, most: int) -> int:
        if name not in given:
            return default
        value = given[name]
        if type(value) is int and least <= value <= most:
            return value
        self._fault((*path, name), f"{shortened(str(value))}; a whole number from {least} to {most} is expected")
        return default

    def _factor(self, given: Mapping[str, Any], path: Path, name: str, least: float, most: float) -> float:
        """0 where it is not set."""
        value = given.get(name, 0.0)
        if name not in given or (type(value) in (int, float) and least <= value <= most):
            return float(value)
        self._fault((*path, name), f"{shortened(str(value))}; a number from {least:g} to {most:g} is expected")
        return 0.0

    def _flag(self, given: Mapping[str, Any], path: Path, name: str, *, default: bool = False) -> bool:
        found = self._is(given.get(name, default), bool, (*path, name))
        return default if found is None else found

    def _text(self, given: Mapping[str, Any], path: Path, name: str, form: re.Pattern[str] | None = None) -> str | None:
        if name not in given:
            return None
        text = self._plain(given[name], (*path, name))
        if text is not None and form is not None and not form.fullmatch(text):
            self._fault((*path, name), f"{shortened(text)}; the form {form.pattern} is expected")
            return None
        return text

    def _each(
        self, given: Mapping[str, Any], path: Path, name: str, read: Callable[[object, Path], _T | None]
    ) -> tuple[_T, ...]:
        data = given.get(name, [])
        if not isinstance(data, list):
            self._fault((*path, name), "a list is expected")
            return ()
        found: Iterator[_T | None] = (read(one, (*path, name, number)) for number, one in enumerate(data))
        return tuple(one for one in found if one is not None)

    def _map(self, data: object, path: Path, allowed: frozenset[str] | None) -> dict[str, Any]:
        """The map, with its known names only; None allows every name."""
        if not isinstance(data, dict):
            self._fault(path, "a map is expected")
            return {}
        for name in data:
            if not isinstance(name, str):
                self._fault(path, f"the name {shortened(str(name))} is no text: quote it")
            elif allowed is not None and name not in allowed:
                self._fault((*path, name), f"unknown; one of {', '.join(sorted(allowed))} is expected")
        return {name: one for name, one in data.items() if isinstance(name, str) and (not allowed or name in allowed)}

    def _is(self, data: object, kind: type[_T], path: Path | None = None) -> _T | None:
        if type(data) is kind:
            return data
        if path is not None:
            expected = {str: "a text is expected: quote it", bool: "true or false is expected"}[kind]
            self._fault(path, f"{shortened(str(data))}; {expected}")
        return None

    def _fault(self, path: Path, sentence: str) -> None:
        self.faults.append((path, sentence))
