"""The log of a pod as a kubelet keeps and serves it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class KubeletLog:
    """Lines with their times, and the rotation of their file."""

    zone: str = "Z"
    lines: list[tuple[str, bytes]] = field(default_factory=list)
    first: int = 0
    """Those before it were rotated away."""

    def write(self, at_ns: int, text: bytes) -> None:
        """Add a line, so many nanoseconds behind 2026-05-01T12:00:00."""
        seconds, nanoseconds = divmod(at_ns, 1_000_000_000)
        minutes, seconds = divmod(seconds, 60)
        self.lines.append((f"2026-05-01T12:{minutes:02}:{seconds:02}.{nanoseconds:09}{self.zone}", text))

    def answer(self, since: str = "") -> bytes:
        """What `pods/log` gives with times, from a whole second on."""
        kept = self.lines[self.first :]
        wanted = [(time, text) for time, text in kept if time[:19] >= since[:19]]
        return b"".join(time.encode() + b" " + text + b"\n" for time, text in wanted)
