"""CPU and memory as events and policies write them: a small part of what Kubernetes takes, so that a slip (`128m` of
memory is 0.128 bytes) is refused, and any two can be compared as integers.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

_CPU: Final = re.compile(r"([0-9]{1,6})(?:\.([0-9]{1,3}))?(m)?")
_MEMORY: Final = re.compile(r"([0-9]{1,15})(Ki|Mi|Gi|Ti|k|M|G|T)?")
_UNITS: Final = {
    "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40
}  # fmt: skip

#: The least that a container can work with: 1 ms of each 100 ms of a core, and room for a runtime to start.
LEAST_CPU_M: Final = 10
LEAST_MEMORY: Final = 16 * 2**20
CPU_FORM: Final = "cores like 2, 0.5 or 500m, from 10m"
MEMORY_FORM: Final = "bytes like 512Mi, 2Gi or 1G, from 16Mi"


def cpu_m(text: str) -> int | None:
    """Thousandths of a core; None for other text, and for less than LEAST_CPU_M."""
    found = _CPU.fullmatch(text)
    if found is None or (found[2] and found[3]):
        return None
    value = int(found[1]) if found[3] else int(found[1]) * 1000 + int((found[2] or "0").ljust(3, "0"))
    return value if value >= LEAST_CPU_M else None


def memory_bytes(text: str) -> int | None:
    """Bytes; None for other text, and for less than LEAST_MEMORY."""
    found = _MEMORY.fullmatch(text)
    if found is None:
        return None
    value = int(found[1]) * _UNITS[found[2] or ""]
    return value if value >= LEAST_MEMORY else None


def cpu_text(value: int) -> str:
    """Thousandths of a core as Kubernetes writes them."""
    return f"{value}m" if value % 1000 else str(value // 1000)


def memory_text(value: int) -> str:
    """Bytes as Kubernetes writes them, with the largest unit that leaves a whole number."""
    for unit in ("Ti", "Gi", "Mi", "Ki"):
        if value % _UNITS[unit] == 0:
            return f"{value // _UNITS[unit]}{unit}"
    return str(value)


def quantity_text(value: Fraction, resource: str) -> str:
    """Cores or bytes as Kubernetes writes them. `resource`: as pods and quotas name it: `cpu`, `limits.memory`."""
    if resource.endswith("cpu"):
        return cpu_text(int(value * 1000))
    return memory_text(int(value)) if resource.endswith(("memory", "storage")) else str(value)
