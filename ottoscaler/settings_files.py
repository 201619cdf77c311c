"""The files that settings name: the env file, a password, certificates. And how a value is shown in a fault."""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path
from typing import Final

#: What may hold a password: all before the last @ of a URL or of `user:password@host`, and a parameter of that name.
_USERINFO: Final = re.compile(r"(?s)(?P<scheme>^[^@]*?://|^(?=[^@]*:)).*@")
_PASSWORD: Final = re.compile(r"(?i)((?:password|passwd|pwd|secret|token)=)[^\s&]*")
#: More than any file of settings has; a pipe or a device may have no end.
_LONGEST_FILE: Final = 1024 * 1024
_LINE: Final = re.compile(
    r"""\s*(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*=\s*
        (?: (?: "(?P<double>(?:[^"\\]|\\.)*)" | '(?P<single>[^']*)' )? \s*(?:(?<=\s)\#.*)? | (?P<bare>[^\s"'\#].*) )""",
    re.VERBOSE,
)
#: What a bare value is made of: text in quotes, in which a # is a # , and all other text up to a comment.
_BARE: Final = re.compile(r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|(?!\s\#)[^"'])*""")


class FileTooLarge(ValueError):
    """A file has more than 1 MiB."""

    def __str__(self) -> str:
        return "larger than 1 MiB"


def redact_value(value: str) -> str:
    """The value as a fault shows it: one line, not endless, without the password of a URL or an address."""
    masked = _PASSWORD.sub(r"\1***", _USERINFO.sub(r"\g<scheme>***@", value))
    return repr(masked if len(masked) <= 100 else masked[:97] + "...")


def read_text(path: str, encoding: str = "utf-8") -> str:
    """The text of a file of at most 1 MiB. Raises OSError, and ValueError where it is larger or not UTF-8."""
    with Path(path).open("rb") as file:
        content = file.read(_LONGEST_FILE + 1)
    if len(content) > _LONGEST_FILE:
        raise FileTooLarge
    return content.decode(encoding)


def read_env_file(path: str) -> tuple[dict[str, str], list[str]]:
    """The variables in a file of KEY=VALUE lines, and the faults found in it.

    A line may begin with `export`; a value may be quoted, in double quotes with a backslash before quote and backslash.
    `#` begins a comment at the start of a line and after a space, but not inside quotes, wherever in the value they
    begin; quotes in the middle of a value stay there. A fault never shows the line: it may hold a secret.
    """
    try:
        lines = read_text(path, encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        return {}, [f"ENV_FILE={redact_value(path)}: expected a readable text file ({file_error_reason(error)})"]
    values: dict[str, str] = {}
    faults: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        value = None if match is None else _value(match)
        if match is None or value is None:
            expected = "KEY=VALUE, the value bare or in quotes, and before a # every quote closed"
            faults.append(f"ENV_FILE={redact_value(path)}: line {number}: expected {expected}")
        else:
            values[match["name"]] = value
    return values, faults


def _value(match: re.Match[str]) -> str | None:
    """The value of a line; None where it is unclear whether a # in it begins a comment."""
    if match["double"] is not None:
        return re.sub(r'\\(["\\])', r"\1", match["double"])
    if match["bare"] is None:
        return match["single"] or ""
    bare = match["bare"]
    read = _BARE.match(bare)
    end = read.end() if read else 0
    rest = bare[end:]
    if not rest or rest.lstrip().startswith("#"):
        return bare[:end].rstrip()
    # a quote that is never closed, as in it's: a part of the value, if there is no # of which it could decide
    return None if re.search(r"\s#", rest) else bare.rstrip()


def check_readable(path: str) -> None:
    """Open a file and read from it. Raises OSError or ValueError if that is not possible now."""
    with Path(path).open("rb") as file:
        file.read(1)


def load_certificates(path: str) -> None:
    """Read the certificates of a file. Raises OSError (ssl.SSLError is one) or ValueError if it holds none."""
    check_readable(path)  # OpenSSL calls a folder, or what is not there, by other words
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)


def file_error_reason(error: OSError | ValueError) -> str:
    """Why a file cannot be used, in a few words without its content."""
    match error:
        case ssl.SSLError():
            return "it holds none"
        case OSError() if error.errno:
            return os.strerror(error.errno).lower()
        case UnicodeDecodeError():
            return "not UTF-8"
        case FileTooLarge():
            return str(error)
    return "no such path"
