"""Where a Python file can be broken in one place, found by its syntax tree.

A place is a range of bytes and the text that replaces it. Log calls, docstrings, annotations, decorators and the bodies
of protocols are left out: what is written there is not behaviour.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
#: Calls that only describe or announce: nothing in them is broken on purpose.
_SILENT = frozenset({"_log", "logs", "TypeVar", "ParamSpec", "NewType", "cast"})

#: Their arguments may be swapped.
_SYMMETRIC = frozenset({"min", "max"})


@dataclass(frozen=True)
class Place:
    """One change: bytes `start` to `end` of a file become `text`. Lines count from 1."""

    path: str
    kind: str
    line: int
    end_line: int
    start: int
    end: int
    text: str

    def broken(self, source: bytes) -> bytes:
        """The file with this change."""
        return source[: self.start] + self.text.encode() + source[self.end :]


def python_places(path: str, source: bytes) -> list[Place]:
    """All places of a Python file, in the order of the file."""
    finder = _Finder(path, source)
    finder.visit(ast.parse(source))
    return finder.places


class _Finder(ast.NodeVisitor):
    """Collects places. One walk."""

    def __init__(self, path: str, source: bytes) -> None:
        self.places: list[Place] = []
        self._path = path
        lines = source.split(b"\n")
        self._starts = [0]
        for line in lines:
            self._starts.append(self._starts[-1] + len(line) + 1)

    def _add(self, kind: str, node: Any, text: str) -> None:
        start = self._starts[node.lineno - 1] + node.col_offset
        end = self._starts[node.end_lineno - 1] + node.end_col_offset
        self.places.append(Place(self._path, kind, node.lineno, node.end_lineno, start, end, text))

    def _changed(self, kind: str, node: Any, change: Callable[[Any], None]) -> None:
        """The node with something else inside, written on one line."""
        other = copy.deepcopy(node)
        change(other)
        self._add(kind, node, f"({ast.unparse(other)})")

    # -- what is left out

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Not protocols: they have no code."""
        if not any("Protocol" in ast.unparse(base) for base in node.bases):
            self._body(node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Defaults and body."""
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        self._returns_bool = node.returns is not None and ast.unparse(node.returns) == "bool"
        self._body(node.body)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """The value, not its type."""
        if node.value is not None:
            self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Nothing: Python 3.11 does not know where the parts of an f-string are."""

    def visit_Assert(self, node: ast.Assert) -> None:
        """Nothing: it is there for the type checker."""

    def visit_Import(self, node: ast.Import) -> None:
        """Nothing."""

    def _body(self, body: list[ast.stmt]) -> None:
        for statement in body:
            is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if not is_text and not (isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test)):
                self.visit(statement)

    # -- statements

    def visit_Expr(self, node: ast.Expr) -> None:
        """A call with a value that is not used: left out."""
        if isinstance(node.value, ast.Call) and not _is_silent(node.value):
            self._add("statement", node, "pass")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        """An attribute or an item that is not set."""
        if any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets):
            self._add("statement", node, "pass")
        self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """Counting that does not take place, or goes the other way."""
        self._add("statement", node, "pass")
        if type(node.op) in _COMPUTED and not _is_text(node.value):
            other = copy.deepcopy(node)
            other.op = _COMPUTED[type(node.op)]()
            self._add("arithmetic", node, ast.unparse(other))
        self.visit(node.value)

    def visit_Delete(self, node: ast.Delete) -> None:
        """Something that stays."""
        self._add("statement", node, "pass")

    def visit_Raise(self, node: ast.Raise) -> None:
        """An error that is not raised. What it says is not looked at."""
        self._add("statement", node, "pass")

    def visit_Continue(self, node: ast.Continue) -> None:
        """The rest of the loop is run, too."""
        self._add("statement", node, "pass")

    def visit_Break(self, node: ast.Break) -> None:
        """The loop goes on."""
        self._add("statement", node, "pass")

    def visit_Return(self, node: ast.Return) -> None:
        """Another value."""
        if node.value is None:
            self._add("statement", node, "pass")
            return
        if not isinstance(node.value, ast.Constant):
            other = f"not ({ast.unparse(node.value)})" if self._returns_bool else "None"
            self._add("return", node, f"return {other}")
        self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        """The other branch."""
        self._negated(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        """No round, or no end."""
        self._negated(node.test)
        self.generic_visit(node)

    # -- expressions

    def visit_IfExp(self, node: ast.IfExp) -> None:
        """The other value."""
        self._negated(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """The others."""
        for test in node.ifs:
            self._negated(test)
        self.generic_visit(node)

    def visit_match_case(self, node: ast.match_case) -> None:
        """Only guards and bodies: a pattern is not an expression."""
        if node.guard is not None:
            self._negated(node.guard)
            self.visit(node.guard)
        self._body(node.body)

    def _negated(self, test: ast.expr) -> None:
        if not isinstance(test, (ast.Compare, ast.Constant)):  # a comparison is turned round anyway
            self._add("condition", test, f"(not ({ast.unparse(test)}))")

    def visit_Compare(self, node: ast.Compare) -> None:
        """Each comparison with its neighbour or its opposite."""
        for number, operator in enumerate(node.ops):
            for other in _others(operator):
                self._changed("comparison", node, lambda new, n=number, o=other: new.ops.__setitem__(n, o()))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """`and` for `or`, and each operand left out."""
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        self._changed("boolean", node, lambda new: setattr(new, "op", other()))
        for number in range(len(node.values)):
            if len(node.values) == 2:
                self._add("boolean", node, f"({ast.unparse(node.values[1 - number])})")
            else:
                self._changed("boolean", node, lambda new, n=number: new.values.pop(n))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        """Without its `not` or its sign."""
        if isinstance(node.op, (ast.Not, ast.USub)):
            self._add(
                "boolean" if isinstance(node.op, ast.Not) else "arithmetic", node, f"({ast.unparse(node.operand)})"
            )
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """The opposite operator; not for texts, where it would be an error at once."""
        if type(node.op) in _COMPUTED and not (_is_text(node.left) or _is_text(node.right)) and not _is_type(node):
            self._changed("arithmetic", node, lambda new: setattr(new, "op", _COMPUTED[type(node.op)]()))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Two arguments for each other."""
        if _is_silent(node):
            return
        if ast.unparse(node.func) in _SYMMETRIC:
            self.generic_visit(node)
            return
        plain = [not isinstance(argument, ast.Starred) for argument in node.args]
        for number in range(len(node.args) - 1):
            if plain[number] and plain[number + 1] and ast.dump(node.args[number]) != ast.dump(node.args[number + 1]):
                self._changed("arguments", node, lambda new, n=number: _swap(new.args, n))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Another number, the other truth, another word. Sentences are not looked at."""
        value = node.value
        if isinstance(value, bool):
            self._add("constant", node, str(not value))
        elif isinstance(value, (int, float)):
            self._add("constant", node, repr(value + 1))
        elif isinstance(value, str) and value and " " not in value:
            self._add("constant", node, repr(value + "_"))
        elif isinstance(value, bytes) and value and b" " not in value:
            self._add("constant", node, repr(value + b"_"))

    _returns_bool = False


def _others(operator: ast.cmpop) -> Iterator[type[ast.cmpop]]:
    """The neighbour; for an order the opposite, too."""
    yield _COMPARED[type(operator)]
    opposite: dict[type[ast.cmpop], type[ast.cmpop]] = {
        ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt
    }  # fmt: skip
    if type(operator) in opposite:
        yield opposite[type(operator)]


def _swap(arguments: list[ast.expr], number: int) -> None:
    arguments[number], arguments[number + 1] = arguments[number + 1], arguments[number]


def _is_silent(call: ast.Call) -> bool:
    """A log line, or a word for the type checker."""
    return ast.unparse(call.func).split(".")[0] in _SILENT


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)))


def _is_type(node: ast.BinOp) -> bool:
    """`A | B` of types, as an alias has it."""
    return isinstance(node.op, ast.BitOr) and all(
        isinstance(part, (ast.Name, ast.Attribute, ast.Subscript, ast.Constant, ast.BinOp)) and _looks_like_type(part)
        for part in (node.left, node.right)
    )


def _looks_like_type(node: ast.expr) -> bool:
    name = ast.unparse(node).split(".")[-1]
    return name == "None" or name[:1].isupper() or name in ("str", "int", "float", "bytes", "bool", "list", "dict")
