"""The script functions and their Python callers fit together: the same names in files of the same name, as many
arguments as parameters, and a comment above each function that explains its keys, its arguments and its reply.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from ottoscaler.adapters.scripts import (
    EPILOGUE_FILES,
    FOLDER,
    LUA_CONSTANTS,
    LUA_LISTS,
    PRELUDE_FILES,
    SCRIPT_MODULES,
    shared_constants,
    source,
)
from ottoscaler.core import results
from ottoscaler.local.redis import EmbeddedRedis

_FUNCTION = re.compile(r"((?:^--.*\n)+)^function F\.(\w+)\((.*?)\)", re.MULTILINE)


@dataclass(frozen=True)
class Function:
    """A script function: the comment above it and its parameters."""

    comment: str
    parameters: tuple[str, ...]


def functions(source: str) -> dict[str, Function]:
    """The script functions of a Lua file; one without a comment is not found."""
    found = {}
    for comment, name, parameters in _FUNCTION.findall(source):
        found[name] = Function(comment, tuple(filter(None, re.split(r",\s*", parameters))))
    return found


def calls(source: str) -> list[tuple[str, int, bool]]:
    """The script calls of a Python file: function, number of arguments, and whether any number more may follow."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        match called, node.args:
            case (("run" | "run_for_worker"), [name, _keys, *arguments]):
                pass
            case "run_without_keys", [name, *arguments]:
                pass
            case "ScriptCall", [name, _keys, ast.List(elts=arguments)]:
                pass
            case _:
                continue
        fixed = [argument for argument in arguments if not isinstance(argument, ast.Starred)]
        assert isinstance(name, ast.Constant)
        found.append((str(name.value), len(fixed), len(fixed) < len(arguments)))
    return found


def methods(source: str) -> set[str]:
    """The names of all functions in a Python file, without a leading underscore."""
    return {node.name.lstrip("_") for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A Redis with nothing in it."""
    started = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    started.start()
    yield started
    started.close()


def text(name: str) -> str:
    """One file of the adapters."""
    return (FOLDER / name).read_text(encoding="utf-8")


def test_the_files_are_those_of_the_ports() -> None:
    """No function of a port stands in any other file, and no two have one name."""
    shared = (*PRELUDE_FILES, *EPILOGUE_FILES)
    assert [name for name in shared if "function F." in text(name)] == []
    assert {path.name for path in FOLDER.glob("*.lua")} == {
        *shared,
        "dead.lua",
        *(f"{port}.lua" for port in SCRIPT_MODULES),
    }
    names = [name for port in SCRIPT_MODULES for name in functions(text(f"{port}.lua"))]
    assert sorted(set(names)) == sorted(names)


def test_the_files_make_one_script_too(server: EmbeddedRedis) -> None:
    """No two give one name to different things: a file may move into another script."""
    whole = shared_constants().encode() + source(
        *PRELUDE_FILES, *(f"{port}.lua" for port in SCRIPT_MODULES), *EPILOGUE_FILES
    )
    keys = ("events", "open", "results", "dead", "buried", "group")
    with redis.Redis(server.host, server.port) as client:
        assert client.eval(whole, len(keys), *keys, "reserve_prefix", "g", 1, 1) == b"g"


def test_what_is_shared_comes_to_lua_as_it_is(server: EmbeddedRedis) -> None:
    """Numbers, sentences and lists of fields of ottoscaler/core."""
    with redis.Redis(server.host, server.port, decode_responses=True) as client:
        for name, value in LUA_CONSTANTS.items():
            assert client.eval(f"{shared_constants()} return {name}", 0) == value
        for name, fields in LUA_LISTS.items():
            assert client.eval(f"{shared_constants()} return {name}()", 0) == list(fields)


@pytest.mark.parametrize("port", SCRIPT_MODULES)
def test_each_function_is_called_by_the_method_of_its_name(port: str) -> None:
    """In the Python file of the same name: a reader who knows one finds the other."""
    defined = re.findall(r"^function F\.(\w+)", text(f"{port}.lua"), re.MULTILINE)
    assert {name for name, _, _ in calls(text(f"{port}.py"))} == set(defined)
    assert set(defined) <= methods(text(f"{port}.py"))


@pytest.mark.parametrize("port", SCRIPT_MODULES)
def test_a_call_has_as_many_arguments_as_there_are_parameters(port: str) -> None:
    """Lua would take a missing one for nil, and drop one too many."""
    found = functions(text(f"{port}.lua"))
    for name, count, more in calls(text(f"{port}.py")):
        parameters = found[name].parameters
        assert (name, count, more) == (name, len([each for each in parameters if each != "..."]), "..." in parameters)


@pytest.mark.parametrize("port", SCRIPT_MODULES)
def test_each_function_is_explained(port: str) -> None:
    """Its keys, its arguments by name, and what it returns."""
    found = functions(text(f"{port}.lua"))
    assert len(found) == text(f"{port}.lua").count("\nfunction F.")
    for name, function in found.items():
        assert [word for word in ("KEYS:", "ARGV:", "Returns ") if word not in function.comment] == [], name
        wanted = {"packed": "msgpack map"}
        unexplained = [
            each
            for each in function.parameters
            if each != "..." and not re.search(rf"\b{wanted.get(each, each)}\b", function.comment)
        ]
        assert unexplained == [], name


def test_a_call_that_does_not_fit_is_noticed() -> None:
    """Each rule sees what it is there to see."""
    assert functions("function F.a(x)\nend\n") == {}
    [(name, function)] = functions("-- KEYS: task.\nfunction F.a(x, ...)\nend\n").items()
    assert (name, function.parameters) == ("a", ("x", "..."))
    source = 'r.run("a", [k], 1, *more)\nScriptCall("b", [], [1, 2])\nr.run_without_keys("c", *keys)\nr.other("d")'
    assert sorted(calls(source)) == [("a", 1, True), ("b", 2, False), ("c", 0, True)]


def test_a_worker_result_has_the_fields_that_the_scripts_know() -> None:
    """One list for results that Python makes, and for those that a script makes in its place."""
    source = (Path(results.__file__)).read_text(encoding="utf-8")
    made = {
        node.name: [key.value for each in ast.walk(node) if isinstance(each, ast.Dict) and len(each.keys) > 5
                    for key in each.keys if isinstance(key, ast.Constant)]
        for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)
    }  # fmt: skip
    assert set(made["worker_result"]) == set(results.WORKER_FIELDS)
    assert set(made["scale_down_result"]) == set(results.SCALE_DOWN_FIELDS)
