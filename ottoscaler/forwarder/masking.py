"""Secrets in what a worker writes: values that are known, and texts that have the form of a secret.

Pure. Known values are looked for in the bytes as they come, over the borders of reads and lines; forms are looked for
in whole lines, so a line has to be put together first. A form is only looked for where its sign is in the line, and a
sign only where its rare letters are in the rest of the text: most text is frequent letters, and leaving these out once
costs no more than looking for one sign.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple
from urllib.parse import quote

from ottoscaler.core.log_masks import mask_sign
from ottoscaler.forwarder.lines import Line

MASK: Final = b"***"
#: A shorter value would only garble the log, and a single line of a longer value has to have more.
SHORTEST_VALUE: Final = 4
SHORTEST_LINE: Final = 8
#: The most lines that a private key is followed over: RSA with 16384 bits has about 200.
LONGEST_KEY: Final = 400


#: Left out of the text, and of each form, before one is looked for in the other. More letters here make the rest
#: shorter; a letter that is not here keeps more other text apart from a form.
_FREQUENT: Final = b"abcdefiklmnoprstuvwy0123456789 \n"


class Form(NamedTuple):
    """A form of secret: bytes that each of them has, its pattern, and what takes its place."""

    sign: bytes
    pattern: re.Pattern[bytes]
    mask: bytes = MASK
    rare: bytes = b""
    """What is left of each of them without frequent letters, or of a part of it; empty: nothing is."""

    def mask_all(self, texts: Sequence[bytes]) -> list[bytes]:
        """The texts with a mask in the place of each of these secrets."""
        sign, pattern, mask, _ = self
        return [pattern.sub(mask, text) if sign in text else text for text in texts]


def _form(sign: str, pattern: str, mask: str = "***", *, rare: str | None = None) -> Form:
    """`rare`: where more of a secret than its sign is always there."""
    known = sign if rare is None else rare
    return Form(sign.encode(), re.compile(pattern.encode()), mask.encode(), without_frequent(known.encode()))


def without_frequent(text: bytes) -> bytes:
    """The rest of a text: if one text contains another, so do their rests."""
    return text.translate(None, _FREQUENT)


_JWT: Final = "[A-Za-z0-9_-]"
#: Keys of clouds, tokens of code hosts and chats, JSON Web Tokens, passwords in URLs, authorization headers.
DEFAULT_FORMS: Final[tuple[Form, ...]] = (
    _form("IA", r"(?<![A-Z0-9])A[KS]IA[A-Z0-9]{16}(?![A-Z0-9])"),  # AWS key ids
    _form("ecret", r"(?i)(aws_?secret_?access_?key[\"']?\s*[=:]\s*[\"']?)[A-Za-z0-9/+]{40}", r"\1***"),
    _form("ECRET", r"(?i)(aws_?secret_?access_?key[\"']?\s*[=:]\s*[\"']?)[A-Za-z0-9/+]{40}", r"\1***"),
    _form("AIza", r"AIza[A-Za-z0-9_-]{35}"),  # Google API keys
    _form("ya29.", r"ya29\.[A-Za-z0-9_-]{20,}"),  # Google OAuth
    _form("AccountKey=", r"(AccountKey=)[A-Za-z0-9+/=]{40,}", r"\1***"),  # Azure storage
    _form("gh", r"(?<![A-Za-z0-9])gh[pousr]_[A-Za-z0-9]{36,}", rare="gh_"),  # GitHub; p, o, u, s, r are frequent
    _form("github_pat_", r"github_pat_[A-Za-z0-9_]{22,}"),
    _form("glpat-", r"glpat-[A-Za-z0-9_-]{20,}"),  # GitLab
    _form("xox", r"xox[abeprs]-[A-Za-z0-9-]{10,}", rare="xox-"),  # Slack; a, b, e, p, r, s are frequent
    _form("npm_", r"(?<![A-Za-z0-9])npm_[A-Za-z0-9]{36}"),
    # JSON Web Tokens; each run of their characters is looked at once, or a line of many beginnings would take minutes
    _form(".eyJ", rf"(?<!{_JWT})(?={_JWT}*eyJ){_JWT}{{11,}}+\.eyJ{_JWT}{{8,}}+\.{_JWT}{{8,}}"),
    _form("://", r"(://[^\s/?#@:]*:)[^\s/?#@]+@", r"\1***@", rare="@"),  # password in a URL
    _form("earer ", r"(?i)\b(bearer) +[A-Za-z0-9._~+/=-]{8,}", r"\1 ***"),
)


def policy_forms(patterns: Iterable[str]) -> list[Form]:
    """The forms that a policy adds: patterns that `core.log_masks` has accepted."""
    compiled = [(mask_sign(pattern), re.compile(pattern.encode())) for pattern in patterns]
    return [Form(sign, pattern, MASK, without_frequent(sign)) for sign, pattern in compiled]


_KEY_SIGN: Final = b"PRIVATE KEY-----"
_KEY_RARE: Final = without_frequent(_KEY_SIGN)
_KEY_BEGINS: Final = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----")
_KEY_ENDS: Final = re.compile(rb"-----END [A-Z0-9 ]*PRIVATE KEY-----")


class FormMasker:
    """Masks the lines of one source by their form. Not thread-safe: it remembers whether a private key has begun."""

    def __init__(self, more: Sequence[Form] = ()) -> None:
        """`more`: what is masked beside DEFAULT_FORMS; a list that changes later counts as it is then."""
        self._more = more
        self._key_lines = 0

    @property
    def inside_key(self) -> bool:
        """Whether a private key has begun and not ended."""
        return self._key_lines > 0

    def mask(self, text: bytes) -> bytes:
        """The line without secrets. Inside a private key of several lines all of the line is one."""
        return next(self.mask_each([text]))

    def mask_each(self, texts: Sequence[bytes]) -> Iterator[bytes]:
        """The same for lines that follow one another; `inside_key` speaks of the line that was given last. Signs are
        looked for in all of them at once: that takes a small part of the time, and most lines have none.
        """
        joined = b"\n".join(texts)
        rest = without_frequent(joined)
        forms = (*DEFAULT_FORMS, *self._more)
        present = [form for form in forms if form.rare in rest and form.sign in joined]
        if self._key_lines or (_KEY_RARE in rest and _KEY_SIGN in joined):
            return self._without_keys(texts, present)
        for form in present:
            texts = form.mask_all(texts)
        return iter(texts)

    def _without_keys(self, texts: Sequence[bytes], present: Sequence[Form]) -> Iterator[bytes]:
        for line in texts:
            found = [self._without_key(line) if self._key_lines or _KEY_SIGN in line else line]
            for form in present:
                found = form.mask_all(found)
            yield found[0]

    def _without_key(self, text: bytes) -> bytes:
        """The text with a private key, or the part of it that is in this line, masked."""
        begins = None if self._key_lines else _KEY_BEGINS.search(text)
        if not self._key_lines and begins is None:
            return text
        ends = _KEY_ENDS.search(text, begins.end() if begins else 0)
        head = text[: begins.end()] if begins else b""
        if ends:
            self._key_lines = 0
            return head + MASK + text[ends.start() :]
        self._key_lines = (self._key_lines + 1) % LONGEST_KEY
        return head + MASK


def mask_line(line: Line, masker: FormMasker) -> Line:
    """The line without secrets."""
    text = masker.mask(line.text)
    return line if text is line.text else line._replace(text=text)


class ValueMasker:
    """Masks known values in one output. Not thread-safe.

    What may be the beginning of a value is held back until the next bytes, or the end, decide.
    """

    def __init__(self, values: Iterable[str]) -> None:
        forms = {form for value in values for form in value_forms(value)}
        # the longest first, or what a short one leaves of a longer one would stay
        self._forms = sorted(forms, key=lambda form: (-len(form), form))
        self._pattern = re.compile(b"|".join(map(re.escape, self._forms))) if forms else None
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """The bytes without values, as far as that can be said yet."""
        if self._pattern is None:
            return data
        data = self._held + data
        open_ends = self._open_ends(data)
        done, last = [], 0
        for found in self._pattern.finditer(data):
            if any(last <= place <= found.start() for place in open_ends):
                break
            done += [data[last : found.start()], MASK]
            last = found.end()
        held_from = next((place for place in open_ends if place >= last), len(data))
        self._held = data[held_from:]
        return b"".join([*done, data[last:held_from]])

    def end(self) -> bytes:
        """What was held back, when no more bytes come."""
        held, self._held = self._held, b""
        return self._pattern.sub(MASK, held) if self._pattern else held

    def _open_ends(self, data: bytes) -> list[int]:
        """The places from which the bytes, to their end, are the beginning of a value."""
        places = set()
        for form in self._forms:
            place = data.find(form[:1], max(0, len(data) - len(form) + 1))
            while place >= 0:
                if form.startswith(data[place:]):
                    places.add(place)
                place = data.find(form[:1], place + 1)
        return sorted(places)


def value_forms(value: str) -> set[bytes]:
    """A secret value as outputs show it: as it is, in a URL, as JSON and repr() escape it, in base64; and each of its
    lines. Empty for a value that is too short to be masked.
    """
    encoded = value.encode(errors="surrogateescape")  # an environment may hold bytes that are not UTF-8
    if len(encoded.strip()) < SHORTEST_VALUE:
        return set()
    found = {encoded, encoded.strip(), *(line for line in encoded.splitlines() if len(line) >= SHORTEST_LINE)}
    shown = (quote(encoded, safe=""), json.dumps(value)[1:-1], repr(value)[1:-1])
    found |= {text.encode(errors="surrogateescape") for text in shown}
    found |= {base64.b64encode(each) for each in (encoded, encoded.strip())}
    return found
