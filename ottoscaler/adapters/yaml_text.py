"""Data as YAML, for people."""

from __future__ import annotations

from typing import Any

import yaml


def to_yaml(data: Any) -> str:
    """The data in block style, in their own order, with a line end."""
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=False, width=120))
