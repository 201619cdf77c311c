"""Where a Lua file can be broken in one place, found by its tokens: strings and comments are known, and nothing more of
the language.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.mutants.places import Place

_TOKEN = re.compile(
    r"""(?P<comment>--\[\[(?s:.*?)\]\]|--[^\n]*)|(?P<text>'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*")"""
    r"""|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"""
    r"""|(?P<number>[0-9]+(?:\.[0-9]+)?)|(?P<sign>==|~=|<=|>=|\.\.\.|\.\.|[<>+\-*/%#(){}\[\];:,.=])""",
    re.VERBOSE,
)
_COMPARED = {
    "==": ("~=",), "~=": ("==",), "<": ("<=", ">="), "<=": ("<", ">"), ">": (">=", "<="), ">=": (">", "<"),
}  # fmt: skip
_COMPUTED = {"+": "-", "-": "+", "*": "/", "/": "*"}
_WORDS = {"and": "or", "or": "and", "true": "false", "false": "true"}
_CONDITION = re.compile(r"\b(?:if|elseif|while) (.+?) (?:then|do)\b")
_CALL = re.compile(r"^\s*(redis\.call\(.*\))$")
_SET = re.compile(r"^\s*((?!local\b|return\b|for\b|if\b|--)[A-Za-z_][\w.\[\]#+ ]* = [^{(].*[^,{(])$")
#: Not the names of commands, which would be an error at once.
_WORD = re.compile(r"^.(?![A-Z]+.$)[^ %]+.$")
_RETURN = re.compile(r"\breturn (?!nil\b)(.+?)(?= end\b|$)")


def lua_places(path: str, source: bytes) -> list[Place]:
    """All places of a Lua file."""
    text = source.decode("latin-1")  # each character is a byte: what is not ASCII stands in comments
    found = sorted((start, end, new, kind) for kind, start, end, new in _all(text) if new.isascii())
    return [Place(path, kind, _line(text, start), _line(text, end), start, end, new) for start, end, new, kind in found]


def _all(text: str) -> Iterator[tuple[str, int, int, str]]:
    yield from _tokens(text)
    at = 0
    for line, code in zip(text.split("\n"), _blanked(text).split("\n"), strict=True):
        code = code.rstrip()
        for found in _CONDITION.finditer(code):
            yield "condition", at + found.start(1), at + found.end(1), f"not ({line[found.start(1) : found.end(1)]})"
        for pattern in (_CALL, _SET):
            if (whole := pattern.match(code)) and _is_balanced(code):
                yield "statement", at + whole.start(1), at + whole.end(1), "-- deleted"
        for found in _RETURN.finditer(code):
            if _is_balanced(found.group(1)):
                yield "return", at + found.start(1), at + found.end(1), "nil"
        at += len(line) + 1


def _tokens(text: str) -> Iterator[tuple[str, int, int, str]]:
    before = ""
    for token in _TOKEN.finditer(text):
        word, start, end = token.group(), token.start(), token.end()
        if token.lastgroup == "comment":
            continue
        if word in _COMPARED:
            for other in _COMPARED[word]:
                yield "comparison", start, end, other
        elif word in _COMPUTED and (word != "-" or before.isidentifier() or before.isdigit() or before in ")]"):
            yield "arithmetic", start, end, _COMPUTED[word]
        elif word in _WORDS:
            yield "boolean", start, end, _WORDS[word]
        elif word == "not":
            yield "boolean", start, end, ""
        elif token.lastgroup == "number":
            yield "constant", start, end, str(int(word) + 1) if word.isdigit() else f"{float(word) + 1}"
        elif token.lastgroup == "text" and _WORD.match(word):
            yield "constant", start, end, f"{word[:-1]}_{word[-1]}"
        before = word


def _blanked(text: str) -> str:
    """The text without what is inside its strings and comments, as long as before and in the same lines."""

    def blank(token: re.Match[str]) -> str:
        if token.lastgroup == "comment":
            return re.sub(r"[^\n]", " ", token.group())
        return token.group() if token.lastgroup != "text" else "'" + "x" * (len(token.group()) - 2) + "'"

    return _TOKEN.sub(blank, text)


def _is_balanced(code: str) -> bool:
    return all(code.count(left) == code.count(right) for left, right in ("()", "{}", "[]"))


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1
