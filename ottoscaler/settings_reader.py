"""How a value is read out of the environment, and what is said when it cannot be.

`settings.py` knows which variables there are; this module knows the forms that values take. A wrong value never ends
the reading: it becomes one line in `EnvironmentReader.faults`, so that a person mends a configuration in one go and not
in ten.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, TypeVar

from ottoscaler.core.nesting import MAX_JSON_DEPTH, json_depth
from ottoscaler.core.quantities import quantity
from ottoscaler.settings_files import check_readable, file_error_reason, load_certificates, read_text, redact_value

#: The longest time that may be set, seconds.
TEN_YEARS_S: Final = 10 * 365 * 86_400

_Option = TypeVar("_Option", bound=str)

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,18}")
#: Labels of 1 to 63 characters: Python's own resolver raises UnicodeError for an empty one, or a longer one.
_HOST_NAME: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_][A-Za-z0-9_-]{0,62}(\.[A-Za-z0-9_-]{1,63})*\.?")


_TOLERATION: Final[Mapping[str, tuple[str, ...]]] = {
    "operator": ("Exists", "Equal"),
    "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"),
}


@dataclass(frozen=True, slots=True)
class TextFormat:
    """The syntax of a text, and how a fault describes it."""

    pattern: str
    expected: str
    longest: int = 1024

    def fits(self, value: str) -> bool:
        """Whether the whole value has this form."""
        return len(value) <= self.longest and re.fullmatch(self.pattern, value) is not None


_DNS: Final = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
#: Names of objects: https://kubernetes.io/docs/concepts/overview/working-with-objects/names/
DNS_LABEL: Final = TextFormat(
    _DNS, "a DNS label: at most 63 of a-z, 0-9 and -, beginning and ending with a letter or digit", 63
)
DNS_NAME: Final = TextFormat(rf"{_DNS}(\.{_DNS})*", "a DNS name: at most 253 of a-z, 0-9, - and .", 253)
_LABEL: Final = r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
#: Label values: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set
LABEL_VALUE: Final = TextFormat(
    _LABEL, "a label value: at most 63 of A-Z, a-z, 0-9, -, _ and ., beginning and ending with a letter or digit", 63
)
LABEL_KEY: Final = TextFormat(rf"({_DNS}(\.{_DNS})*/)?{_LABEL}", "a label key", 317)
WORD: Final = TextFormat(r"[^\s\x00-\x1f]+", "a name without spaces")


def is_host(value: str) -> bool:
    """Whether the value is a host name or an IP address, and not a URL or host with port."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return _HOST_NAME.fullmatch(value) is not None
    return True


def unbracketed(host: str) -> str:
    """An IPv6 address without the brackets that a URL needs; any other text as it is."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") and ":" in host else host


class EnvironmentReader:
    """Reads typed values from an environment and collects the faults. Used by one thread, once.

    A variable that is set to nothing counts as not set: that is what a template with an empty value makes of it.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.faults: list[str] = []
        self.asked: set[str] = set()

    def fault(self, name: str, expected: str) -> None:
        """Note that the value of a variable, which is shown, is not what is expected."""
        self.faults.append(f"{name}={redact_value(self.raw(name))}: expected {expected}")

    def secret_fault(self, name: str, expected: str) -> None:
        """The same for a value that is never shown."""
        self.faults.append(f"{name}=***: expected {expected}")

    def raw(self, name: str) -> str:
        """The value without the space around it; empty if it is not set, or not UTF-8, which is a fault."""
        return self._given(name, secret=False).strip()

    def secret(self, name: str) -> str | None:
        """A value that is never shown, exactly as it is set."""
        return self._given(name, secret=True) or None

    def _given(self, name: str, *, secret: bool) -> str:
        """The value as it is set. Python keeps bytes that are not UTF-8 as lone surrogates, which neither Redis nor
        Kubernetes takes.
        """
        value = self._environ.get(name, "")
        if _is_utf8(value):
            self.asked.add(name)
            return value
        if name not in self.asked:  # otherwise the fault is known
            self.faults.append(f"{name}={'***' if secret else redact_value(value)}: expected UTF-8")
        self.asked.add(name)
        return ""

    def text(self, name: str, default: str, form: TextFormat = WORD) -> str:
        """A text of a form. The default is checked as well, for it may come from the machine or another variable."""
        value = self.raw(name) or default
        if form.fits(value):
            return value
        origin = "" if self.raw(name) else " (by default)"
        self.faults.append(f"{name}={redact_value(value)}{origin}: expected {form.expected}")
        return default

    def optional(self, name: str, form: TextFormat = WORD) -> str | None:
        """A text of a form, or None."""
        return self.text(name, "", form) if self.raw(name) else None

    def host(self, name: str, default: str) -> str:
        """A host name or an IP address; an IPv6 address may stand in brackets, as in a URL."""
        value = unbracketed(self.raw(name) or default)
        if not is_host(value):
            self.fault(name, "a host name or an IP address, without scheme and port")
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        value = self.raw(name)
        if not value:
            return default
        if _INTEGER.fullmatch(value) and low <= int(value) <= high:
            return int(value)
        self.fault(name, f"a whole number from {low} to {high}")
        return default

    def boolean(self, name: str, default: bool) -> bool:
        """One of the usual words for yes and no."""
        value = self.raw(name).lower()
        if value not in ("", "true", "1", "yes", "false", "0", "no"):
            self.fault(name, "true or false (also 1, 0, yes, no)")
        return value in ("true", "1", "yes") if value else default

    def choice(self, name: str, options: Mapping[str, _Option]) -> _Option | None:
        """What the given word stands for, whatever its case; None if the variable is not set or wrong."""
        value = self.raw(name).lower()
        for word, option in options.items():
            if word.lower() == value:
                return option
        if value:
            self.fault(name, "one of " + ", ".join(options))
        return None

    def file(self, name: str) -> str | None:
        """The path of a file that can be read now."""
        return self._checked(name, "a readable file", check_readable)

    def text_file(self, name: str) -> str | None:
        """The path of a file that can be read now and holds text."""
        return self._checked(name, "a readable text file", read_text)

    def certificates(self, name: str) -> str | None:
        """The path of a file that can be read now and holds certificates."""
        return self._checked(name, "a readable file of certificates in PEM form", load_certificates)

    def _checked(self, name: str, expected: str, check: Callable[[str], object]) -> str | None:
        path = self.raw(name)
        if not path:
            return None
        try:
            check(path)
        except (OSError, ValueError) as error:
            self.fault(name, f"{expected} ({file_error_reason(error)})")
        return path

    def amount(self, name: str, default: str, *, unit: Fraction, example: str) -> str:
        """A Kubernetes quantity above zero in whole multiples of a unit, as it was written."""
        value = self.raw(name) or default
        size = quantity(value)
        if size is None or size <= 0 or size % unit:
            self.fault(name, f"a Kubernetes quantity such as {example}")
            return default
        return value

    def json(self, name: str, expected: str) -> Any:
        """A JSON value of any kind; None if the variable is not set or is not JSON."""
        value = self.raw(name)
        if not value:
            return None
        try:
            if json_depth(value) > MAX_JSON_DEPTH:
                raise ValueError(f"more than {MAX_JSON_DEPTH} levels")
            return json.loads(value)
        except ValueError:
            self.fault(name, expected)
            return None


def addresses(
    reader: EnvironmentReader, name: str, expected: str = "host:port,host:port,..."
) -> tuple[tuple[str, int], ...]:
    """Hosts and ports, from `host:port,host:port`; an IPv6 address stands in brackets."""
    found: list[tuple[str, int]] = []
    for part in filter(None, (part.strip() for part in reader.raw(name).split(","))):
        host, _, port = part.rpartition(":")
        host = unbracketed(host)
        if not is_host(host) or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
            reader.fault(name, expected)
            break
        found.append((host, int(port)))
    return tuple(found)


def address(reader: EnvironmentReader, name: str) -> tuple[str, int] | None:
    """Host and port, from `host:port`; None where it is not set."""
    found = addresses(reader, name, expected="host:port")
    if len(found) > 1:
        reader.fault(name, "one host:port")
    return found[0] if found else None


def command(reader: EnvironmentReader, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
    """A program and its arguments, from a JSON list or from a line for `/bin/sh -c`."""
    line = reader.raw(name)
    if not line:
        return default
    if not re.match(r'\[\s*["\]]', line):  # a shell line may begin with a bracket, too: [ -f x ] && y
        return ("/bin/sh", "-c", line)
    expected = "a JSON list of texts, the program first, or a line for /bin/sh"
    words = reader.json(name, expected)
    if isinstance(words, list) and words and words[0] and all(isinstance(word, str) for word in words):
        return tuple(words)
    if words is not None:
        reader.fault(name, expected)
    return default


def node_selector(reader: EnvironmentReader, name: str) -> Mapping[str, str]:
    """Label keys and values, from a JSON object."""
    expected = 'a JSON object of label keys and values, such as {"disk": "ssd"}'
    labels = reader.json(name, expected)
    if isinstance(labels, dict) and all(_is_label(key, value) for key, value in labels.items()):
        return labels
    if labels is not None:
        reader.fault(name, expected)
    return {}


def tolerations(reader: EnvironmentReader, name: str) -> tuple[Mapping[str, Any], ...]:
    """Tolerations as in a pod, from a JSON list."""
    expected = 'a JSON list of Kubernetes tolerations, such as [{"key": "ci", "operator": "Exists"}]'
    values = reader.json(name, expected)
    if isinstance(values, list) and all(_is_toleration(value) for value in values):
        return tuple(values)
    if values is not None:
        reader.fault(name, expected)
    return ()


def _is_label(key: str, value: object) -> bool:
    return LABEL_KEY.fits(key) and isinstance(value, str) and (value == "" or LABEL_VALUE.fits(value))


def _is_toleration(value: object) -> bool:
    # Reported now, not when a pod is refused:
    # https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/
    if not isinstance(value, dict) or not value.keys() <= {"key", "operator", "value", "effect", "tolerationSeconds"}:
        return False
    if any(value[name] not in allowed for name, allowed in _TOLERATION.items() if name in value):
        return False
    if not all(isinstance(value.get(name, ""), str) for name in ("key", "value")):
        return False
    exists = value.get("operator") == "Exists"
    if (exists and value.get("value")) or (not exists and not value.get("key")):
        return False
    seconds = value.get("tolerationSeconds")
    return seconds is None or (type(seconds) is int and value.get("effect") == "NoExecute")


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
