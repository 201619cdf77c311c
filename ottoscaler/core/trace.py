"""W3C Trace Context: which value of `traceparent` is valid, and how a future version is read.

Source: https://www.w3.org/TR/trace-context/#versioning-of-traceparent.
"""

from __future__ import annotations

import re
from typing import Final

#: Version 00 has exactly these four parts; a later one may add more behind a further dash. ff is no version, and an id
#: of zeros is none.
_FORM: Final = re.compile(rb"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 1


def normalize_traceparent(value: bytes) -> bytes:
    """A `traceparent` as version 00 writes it; empty if it is not valid.

    Of an unknown version W3C lets us use the trace id, the parent id and the sampled bit, only.
    """
    match = _FORM.fullmatch(value)
    if match is None:
        return b""
    version, ids, flags, more = match.groups()
    if version == b"00":
        return b"" if more is not None else value
    return b"00-%b-%02x" % (ids, int(flags, 16) & _SAMPLED)
