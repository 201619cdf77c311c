"""Packages from npm that tests need, installed once for each list of them and kept in .cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import require
from tests.readme import ROOT

#: How long npm may take: with packages that it has, it takes seconds; without a network it must not hold up the suite.
INSTALL_S = 180


def installed(packages: Path, name: str) -> Path:
    """A folder with the packages of a package.json. Without npm, or a package, the test is skipped; with OTTO_CI=1 it
    fails.
    """
    npm = require("npm")
    folder = ROOT / ".cache" / name / hashlib.sha256(packages.read_bytes()).hexdigest()[:16]
    if (folder / "installed").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(packages, folder)
    install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"]
    try:
        subprocess.run(install, cwd=folder, check=True, capture_output=True, text=True, timeout=INSTALL_S)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        said = " ".join(str(error.stderr or error).split())[-300:]
        missing = f"needs the packages of {packages.relative_to(ROOT)}, and npm could not install them: {said}"
        if os.environ.get("OTTO_CI") == "1":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    (folder / "installed").touch()
    return folder
