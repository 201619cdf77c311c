"""How deep a JSON text is nested, found without parsing it: a parser needs stack for each level, and how much there is
depends on the platform, its thread and its Python.
"""

from __future__ import annotations

import re
from typing import Final

#: The same limit for all JSON that others write, wherever it is read.
MAX_JSON_DEPTH: Final = 100

#: A string, also one that is not closed, or a bracket. No part of a string is looked at twice.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def json_depth(text: str) -> int:
    """The most arrays and objects inside one another. Of a text that is not JSON it is at least as many as a parser
    meets before it notices.
    """
    depth = most = 0
    for match in _TOKEN.finditer(text):
        first = match[0][0]
        if first in "[{":
            depth += 1
            most = max(most, depth)
        elif first in "]}":
            depth -= 1
    return most
