"""A process that has collected all tests already, and tries them on one mutant after the other: see fork_server.py."""

from __future__ import annotations

import ast
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.mutants.places import Place
from tests.mutants.scratch import environment

#: A collection that takes longer than this, seconds, is broken.
COLLECT_S = 300.0
#: How much longer than its child the server may take to answer, seconds.
MARGIN_S = 30.0


class Forks:
    """The process, of one copy of the checkout. One thread."""

    def __init__(self, folder: Path, suites: Sequence[str]) -> None:
        """Start it; `suites` as the chart has them."""
        self._folder = folder
        requests, to_server = os.pipe()
        from_server, answers = os.pipe()
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "tests.mutants.observer",
            "-p", "tests.mutants.fork_server", "-m", "not e2e", "--capture=sys", "-o", "cache_dir=cache-forks",
            *sorted({path for suite in suites for path in suite.removeprefix("real:").split()}),
        ]  # fmt: skip
        with (folder / "output-forks").open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=folder, env={**environment(folder), "OTTO_MUTANT_PIPES": f"{requests},{answers}"},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(requests, answers),
                start_new_session=True,
            )  # fmt: skip
        os.close(requests)
        os.close(answers)
        self._to, self._from = to_server, from_server
        self._ready = False

    def wait_ready(self) -> None:
        """Wait until everything is imported: before that, nothing in the folder may be broken."""
        if not self._ready:
            self._answer(COLLECT_S)
            self._ready = True

    def verdict(self, place: Place, source: bytes, longest: Mapping[str, float], bound_s: float) -> tuple[str, str]:
        """What these tests say of a mutant that stands in the folder: `noticed` or `hung`, and by which test. To be
        called after `wait_ready`.

        `missed` proves nothing of code that an import runs, and `unfit` says that only a fresh import can show it.
        """
        if place.path.endswith(".py") and not _in_a_function(place, source):
            return "unfit", ""
        request = {
            "path": str(self._folder / place.path), "before": source.decode("latin-1"),
            "after": place.broken(source).decode("latin-1"), "longest": longest, "bound_s": bound_s,
        }  # fmt: skip
        text = json.dumps(request).encode() + b"\n"
        while text:
            text = text[os.write(self._to, text) :]
        return self._answer(bound_s + MARGIN_S)

    def _answer(self, bound_s: float) -> tuple[str, str]:
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._from], [], [], bound_s)
            part = os.read(self._from, 65536) if ready else b""
            if not part:
                said = (self._folder / "output-forks").read_bytes()[-2000:].decode(errors="replace")
                raise RuntimeError(f"the process with all tests does not answer:\n{said}")
            line += part
        answer = json.loads(line)
        return ("ready", "") if answer == "ready" else (str(answer[0]), str(answer[1]))

    def close(self) -> None:
        """End the process."""
        os.close(self._to)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._from)


def _in_a_function(place: Place, source: bytes) -> bool:
    """Whether it is in the body of a function, which is not run by an import."""
    starts = [0]
    for line in source.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            first, last = node.body[0], node.body[-1]
            begin = starts[first.lineno - 1] + first.col_offset
            if begin <= place.start and place.end <= starts[(last.end_lineno or 0) - 1] + (last.end_col_offset or 0):
                return True
    return False
