"""The manifests as `kubectl kustomize` renders them."""

from __future__ import annotations

import subprocess
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from tests.conftest import require

ROOT: Final = Path(__file__).resolve().parents[2]
DEPLOY: Final = ROOT / "deploy"
OVERLAYS: Final = ("dev", "production")

Json = dict[str, Any]


def rendered(folder: str) -> list[Json]:
    """The objects of a folder below deploy/, in the order in which they are applied. A test may change its own."""
    return deepcopy(_rendered(folder))


@cache
def _rendered(folder: str) -> list[Json]:
    command = [require("kubectl"), "kustomize", str(DEPLOY / folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "kustomize warns"
    return list(yaml.safe_load_all(done.stdout))


def overlay(name: str) -> list[Json]:
    """The objects of an overlay."""
    return rendered(f"overlays/{name}")


def only(objects: list[Json], kind: str, name: str = "") -> Json:
    """The one object of a kind, or of a kind and name."""
    (found,) = (each for each in objects if each["kind"] == kind and name in ("", each["metadata"]["name"]))
    return found


def settings_of(objects: list[Json]) -> dict[str, str]:
    """What the controller finds in its environment."""
    return dict(only(objects, "ConfigMap")["data"])
