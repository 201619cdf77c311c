"""The folder for bytecode begins with what is compiled already, and Python takes it from there."""

from __future__ import annotations

import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bytecode import environ, installed, link


def test_python_takes_what_was_linked(tmp_path: Path) -> None:
    """It compiles nothing, and the file is the same one."""
    packages, prefix = tmp_path / "packages", tmp_path / "bytecode"
    packages.mkdir()
    source = packages / "one.py"
    source.write_text("print(__cached__)\n", encoding="utf-8")
    compiled = packages / "__pycache__" / f"one.{sys.implementation.cache_tag}.pyc"
    py_compile.compile(str(source), cfile=str(compiled))
    assert link([str(packages)], str(prefix)) == 1
    given = {**os.environ, "PYTHONPATH": str(packages), "PYTHONPYCACHEPREFIX": str(prefix)}
    given.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-c", "import one"], env=given, capture_output=True, text=True, check=True, timeout=60
    )
    assert os.path.samefile(done.stdout.strip(), compiled)


def test_what_is_there_stays(tmp_path: Path) -> None:
    """A second time nothing is linked, and nothing fails."""
    compiled = tmp_path / "packages" / "__pycache__" / "one.pyc"
    compiled.parent.mkdir(parents=True)
    compiled.write_bytes(b"1")
    assert [link([str(tmp_path / "packages")], str(tmp_path / "bytecode")) for _ in range(2)] == [1, 0]


def test_what_is_installed_is_found() -> None:
    """The standard library and the packages of the tests."""
    roots = installed()
    for module in ("json", "pytest"):
        path = Path(str(__import__(module).__file__))
        assert any(path.is_relative_to(root) for root in roots), path


def test_a_process_with_an_environment_of_its_own_keeps_it_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not set stays so, and nothing else is passed on."""
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", "/somewhere")
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    assert environ() == {"PATH": os.environ["PATH"], "PYTHONPYCACHEPREFIX": "/somewhere"}
