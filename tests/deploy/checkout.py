"""A checkout of a developer's own, with stand-ins for docker, kind and kubectl: no test here needs the real ones."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.conftest import require

ROOT: Final = Path(__file__).resolve().parents[2]
TEAM: Final = {
    "한진우": ("jinwoo", 6379),
    "장준영": ("junyoung", 6380),
    "고민지": ("minji", 6381),
    "이지윤": ("jiyoon", 6382),
    "김보아": ("boa", 6383),
    "유호준": ("hojun", 6384),
}
#: What the scripts take from the system; docker, kind and kubectl are none of it.
TOOLS: Final = "bash make dirname sed grep head tail mkdir rm mv cat awk flock id sort chmod ls sleep tee"


def make_checkout(folder: Path) -> Path:
    """A folder with what the scripts need of the project, and a PATH on which nothing else is."""
    folder.mkdir()
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    (folder / "ottoscaler").symlink_to(_package())
    (folder / "bin").mkdir()
    require("make")  # the slim image has none
    for tool in TOOLS.split():
        found = shutil.which(tool)
        assert found, tool
        (folder / "bin" / tool).symlink_to(found)
    (folder / "bin" / "python3").symlink_to(Path(sys.executable).resolve())
    return folder


@functools.cache
def _package() -> Path:
    """One copy of the package for all checkouts, with the bytecode. What a script does to it does not reach ours."""
    folder = Path(tempfile.mkdtemp(prefix="otto-package-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(shutil.copytree(ROOT / "ottoscaler", folder / "ottoscaler"))


def add_program(checkout: Path, name: str, script: str) -> None:
    """Put a program on the PATH."""
    path = checkout / "bin" / name
    path.write_text(f"#!/usr/bin/env bash\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def add_venv(checkout: Path) -> None:
    """A virtual environment in name, with a Python that writes its arguments and some variables down."""
    folder = checkout / ".venv" / "bin"
    folder.mkdir(parents=True)
    for stamp in ("runtime", "local", "dev"):
        (checkout / ".venv" / f".{stamp}-{sys.version_info[0]}.{sys.version_info[1]}").touch()
    script = '#!/usr/bin/env bash\nprintf \'%s\\n\' "$@" >python.args\nenv >python.environ\nexit "${PYTHON_EXITS:-0}"\n'
    (folder / "python").write_text(script, encoding="utf-8")
    (folder / "python").chmod(0o755)
    (checkout / "bin" / "env").unlink(missing_ok=True)
    (checkout / "bin" / "env").symlink_to(shutil.which("env") or "/usr/bin/env")


def run(
    checkout: Path, *command: str, environ: Mapping[str, str] | None = None, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """A command in the checkout, without a terminal; what it reads, nothing if that is None."""
    environment = {"PATH": f"{checkout}/bin", "HOME": str(checkout), "USER": "root", "PORT": "1", **(environ or {})}
    return subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=False, timeout=50,
        input=stdin, stdin=subprocess.DEVNULL if stdin is None else None,
    )  # fmt: skip


def calls(checkout: Path) -> list[str]:
    """What the stand-ins were asked for, a line each."""
    path = checkout / "calls"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def write_env(checkout: Path, user: str, *more: str) -> Path:
    """An environment file as setup-user makes it."""
    path = checkout / f".env.{user}.local"
    path.write_text(_template(user) + "".join(f"{line}\n" for line in more), encoding="utf-8")
    path.chmod(0o600)
    return path


@functools.cache
def _template(user: str) -> str:
    """Made once: hundreds of tests begin with it."""
    port = str(dict(TEAM.values())[user])
    command = [sys.executable, "-I", "-S", "deploy/environment.py", "template", user, port]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=50).stdout


def mode(path: Path) -> str:
    """The permissions of a file, in octal."""
    return f"{os.stat(path).st_mode & 0o777:o}"
