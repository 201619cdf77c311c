"""A pytest plugin (`-p tests.mutants.fork_server`): collects tests once, then runs some of them for each mutant that it
is asked about, in a child of its own.

A child is forked after the collection, so it spends no time on imports. It puts the broken code into the functions, and
the broken text into the scripts, that are already there. What is computed at import stays as it was: of code that an
import runs, a caller must not call it unnoticed before the tests have run on a fresh import, too.

OTTO_MUTANT_PIPES names two file descriptors: requests come from one and answers go to the other, a line of JSON each.
"""

from __future__ import annotations

import gc
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NoReturn

import pytest

from ottoscaler.adapters.scripts import Script
from tests.mutants import observer


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    """Answer requests until there are no more."""
    items = {item.nodeid: item for item in session.items}
    reading, writing = (int(number) for number in os.environ["OTTO_MUTANT_PIPES"].split(","))
    with open(reading, encoding="utf-8") as requests, open(writing, "w", encoding="utf-8", buffering=1) as answers:
        print(json.dumps("ready"), file=answers)
        for line in requests:
            print(json.dumps(_answered(session, items, json.loads(line))), file=answers)
    return True


def _answered(session: pytest.Session, items: dict[str, pytest.Item], request: dict[str, Any]) -> tuple[str, str]:
    """The verdict of a child: `noticed` by which test, `missed`, `hung`; `unfit` if the change cannot be put in."""
    reading, writing = os.pipe()
    folder = tempfile.mkdtemp(prefix="forked-")
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(session, items, request, writing, Path(folder))
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], request["bound_s"])
        said = os.read(reading, 65536).decode() if ready else ""
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)  # with servers that it has left
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)  # it may not lead a group yet
        os.waitpid(child, 0)
        os.close(reading)
        shutil.rmtree(folder, ignore_errors=True)
    if not ready:
        return "hung", ""
    verdict, _, by = said.partition(" ")
    return (verdict, by) if verdict else ("noticed", "the end of the process")


def _child(
    session: pytest.Session, items: dict[str, pytest.Item], request: dict[str, Any], writing: int, folder: Path
) -> NoReturn:
    verdict = "unfit"
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nothing, number)
        random.seed()
        session.config._tmp_path_factory._basetemp = folder  # type: ignore[attr-defined]
        if put_in(request["path"], request["before"].encode("latin-1"), request["after"].encode("latin-1")):
            chosen = [items[name] for name in request["longest"] if name in items]
            verdict = _run(session, chosen, request["longest"])
    finally:
        os.write(writing, verdict.encode())
        os._exit(0)


def _run(session: pytest.Session, chosen: list[pytest.Item], longest: dict[str, float]) -> str:
    observer.expect(longest)
    for item in chosen:
        item.add_marker(pytest.mark.timeout(longest[item.nodeid]), append=False)
    for item, following in zip_longest(chosen, chosen[1:]):
        try:
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        except BaseException as error:  # the program has broken pytest, which the plain run would show as well
            return f"noticed {item.nodeid} ({error.__class__.__name__})"
        if session.shouldstop:
            return f"noticed {item.nodeid}"
    return "missed"


# -- broken code for code that is there


def put_in(path: str, before: bytes, after: bytes) -> bool:
    """Break what is already imported. False if nothing of it can be changed."""
    if path.endswith(".lua"):
        return _put_text(before, after) > 0
    return _put_code(path, before, after) > 0


def _put_code(path: str, before: bytes, after: bytes) -> int:
    old, broken = (compile(source, path, "exec", dont_inherit=True) for source in (before, after))
    pairs = dict(_pairs(old, broken))
    put = 0
    for function in [one for one in gc.get_objects() if isinstance(one, FunctionType)]:
        code = function.__code__
        if code.co_filename == path and (new := pairs.get(_name(code))) and new.co_freevars == code.co_freevars:
            function.__code__ = new
            put += 1
    return put


def _pairs(before: CodeType, after: CodeType) -> Iterator[tuple[tuple[object, ...], CodeType]]:
    """Which code takes the place of which, by their order."""
    inner, other = ([one for one in code.co_consts if isinstance(one, CodeType)] for code in (before, after))
    if [one.co_name for one in inner] == [one.co_name for one in other]:
        for old, new in zip(inner, other, strict=True):
            yield _name(old), new
            yield from _pairs(old, new)


def _name(code: CodeType) -> tuple[object, ...]:
    return code.co_qualname, code.co_firstlineno, code.co_code, code.co_names, code.co_freevars


def _put_text(before: bytes, after: bytes) -> int:
    """In each text that modules of the checkout hold: alone, in a dict, or in a script."""
    holders = [vars(module) for module in list(sys.modules.values()) if _is_ours(module)]
    holders += [one for holder in holders for one in list(holder.values()) if type(one) is dict]
    put = 0
    for holder in holders:
        for name, value in list(holder.items()):
            new = _replaced(value, before, after)
            if new is not value:
                holder[name] = new
                put += 1
    return put


def _is_ours(module: ModuleType) -> bool:
    return module.__name__.partition(".")[0] in ("ottoscaler", "tests")


def _replaced(value: Any, before: bytes, after: bytes) -> Any:
    if isinstance(value, bytes):
        return value.replace(before, after) if before in value else value
    if isinstance(value, str):
        old = before.decode()
        return value.replace(old, after.decode()) if old in value else value
    if isinstance(value, Script) and before in value.source:
        return Script.of(value.source.replace(before, after))
    return value
