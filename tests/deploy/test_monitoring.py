"""What deploy/monitoring watches: alerts that fire when they should, and a dashboard that shows what there is."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

import pytest
import redis
import yaml

from ottoscaler.cli.system import LocalSystem
from ottoscaler.core.status_codes import CODES, WORKER_CODES
from tests.conftest import require
from tests.deploy.manifests import only, overlay
from tests.fakes.wait import eventually
from tests.metrics_reference import figures
from tests.monitoring import (
    DASHBOARD,
    MONITORING,
    OPERATOR_RULE,
    RULES,
    Json,
    alerts,
    groups,
    operator_rule_text,
    panels,
    queries,
)
from tests.readme import METRICS, korean

CASES: Final = Path(__file__).with_name("alerts.yaml")
_NAME: Final = re.compile(r"\bottoscaler_[a-z_]+")
#: What takes part in a histogram or is the process's own is not in the golden file under that name.
_PARTS: Final = re.compile(r"_(?:bucket|sum|count)$")
_PATIENCE_S: Final = 40.0


def _known() -> set[str]:
    return {figure.name for figure in figures()}


def test_the_rules_are_valid() -> None:
    """Also their templates."""
    done = subprocess.run(
        [require("promtool"), "check", "rules", str(RULES)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


def test_each_alert_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    """By promtool, over minutes and hours of made-up samples. Its texts are left out here: they are templates."""
    bare = {"groups": groups()}
    for rule in (rule for group in bare["groups"] for rule in group["rules"]):
        rule.pop("annotations", None)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(bare), encoding="utf-8")
    (tmp_path / "alerts.yaml").write_text(CASES.read_text(encoding="utf-8"), encoding="utf-8")
    done = subprocess.run(
        [require("promtool"), "test", "rules", "alerts.yaml"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    """And says in words what is wrong and what to do."""
    cases = [each for test in yaml.safe_load(CASES.read_text(encoding="utf-8"))["tests"] for each in
             test["alert_rule_test"]]  # fmt: skip
    names = {rule["alert"] for rule in alerts()}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert all(text.rstrip().endswith(".") for text in rule["annotations"].values())


def test_the_alert_on_workers_that_are_held_up_names_all_codes_that_need_attention() -> None:
    """Of those that a worker can have."""
    (rule,) = (rule for rule in alerts() if rule["alert"] == "OttoscalerWorkersHeldUp")
    named = re.findall(r'code=~"([^"]+)"', rule["expr"])
    assert named == ["|".join(code for code in WORKER_CODES if CODES[code].attention)]


@pytest.mark.parametrize("path", [METRICS, korean(METRICS)], ids=lambda path: path.stem)
def test_the_documents_list_each_alert(path: Path) -> None:
    """With its severity."""
    rows = re.findall(r"^\| `(Ottoscaler\w+)` \| (\w+) \|", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(rule["alert"], rule["labels"]["severity"]) for rule in alerts()]


def test_the_object_for_the_operator_has_the_same_rules() -> None:
    """`python -m tests.monitoring` writes it."""
    assert OPERATOR_RULE.read_text(encoding="utf-8") == operator_rule_text()
    assert yaml.safe_load(operator_rule_text())["spec"]["groups"] == groups()


@pytest.mark.parametrize("source", ["rules", "dashboard"])
def test_rules_and_dashboard_speak_of_metrics_that_there_are(source: str) -> None:
    """A metric that was renamed would leave an alert silent and a panel empty."""
    text = RULES.read_text(encoding="utf-8") if source == "rules" else " ".join(expr for _, expr in queries())
    names = {_PARTS.sub("", name) for name in _NAME.findall(text)}
    assert names
    assert names <= _known()


def test_the_dashboard_shows_every_metric() -> None:
    """Only what is counted nowhere else is left out."""
    shown = {_PARTS.sub("", name) for _, expr in queries() for name in _NAME.findall(expr)}
    assert _known() - shown == {"ottoscaler_kept_pods", "ottoscaler_ready_workers", "ottoscaler_trace_spans_total"}


def test_the_dashboard_fits_any_grafana() -> None:
    """It names its source by a variable, each panel has its own place and number."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]} == {"${datasource}"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken = [
        (x, y)
        for panel in board["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24


def test_the_component_finds_the_controller_and_its_port() -> None:
    """The labels and the name of the port are those of the Deployment."""
    monitor = yaml.safe_load((MONITORING / "podmonitor.yaml").read_text(encoding="utf-8"))
    template = only(overlay("production"), "Deployment")["spec"]["template"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    ports = [port["name"] for container in template["spec"]["containers"] for port in container["ports"]]
    assert endpoint["port"] in ports


def test_an_overlay_takes_the_component(tmp_path: Path) -> None:
    """Its objects get the namespace of the overlay."""
    (tmp_path / "component").mkdir()
    for file in ("kustomization.yaml", "podmonitor.yaml", "prometheusrule.yaml"):
        (tmp_path / "component" / file).write_text((MONITORING / file).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: ci\ncomponents: [../component]\n",
        encoding="utf-8",
    )
    command = [require("kubectl"), "kustomize", str(tmp_path / "overlay")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    found = list(yaml.safe_load_all(done.stdout))
    assert {(each["kind"], each["metadata"]["namespace"]) for each in found} == {
        ("PodMonitor", "ci"), ("PrometheusRule", "ci"),
    }  # fmt: skip


class Prometheus:
    """A real one that scrapes one address each second. A context manager."""

    def __init__(self, folder: Path, target: str) -> None:
        self._folder = folder
        self._port = _free_port()
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [
                {"job_name": "otto", "static_configs": [{"targets": [target], "labels": {"namespace": "ci"}}]}
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [
                require("prometheus"), f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{self._port}",
                "--enable-feature=exemplar-storage",
            ],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(20)
        self._log.close()

    def get(self, path: str, **parameters: str) -> Json:
        """The data of an answer of its API; none while it starts."""
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return dict(json.load(answer))
        except OSError:
            return {}

    def values(self, query: str) -> list[float]:
        """What an instant query returns, without what is not a number."""
        found = self.get("query", query=query).get("data", {}).get("result", [])
        return [value for each in found if (value := float(each["value"][1])) == value]


def _free_port() -> int:

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Prometheus]:
    """It scrapes a whole system on this machine, which has some work of each kind."""
    require("prometheus")
    for name in ("system", "prometheus"):
        (tmp_path / name).mkdir()
    environ = {"PATH": "/usr/bin:/bin", "OTTO_AGENT_COMMAND": '["sleep", "1"]', "LOG_FORMAT": "json"}
    with ExitStack() as stack:
        system = stack.enter_context(LocalSystem(tmp_path / "system", environ))
        system.start_controller(tmp_path / "controller.log")
        target = f"127.0.0.1:{system.overrides['HTTP_PORT']}"
        made = stack.enter_context(closing(Prometheus(tmp_path / "prometheus", target)))
        eventually(lambda: made.values("ottoscaler_build_info"), _PATIENCE_S, "the first scrape")
        settings = system.settings
        with redis.Redis(host=settings.redis.host, port=settings.redis.port) as client:
            parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            client.xadd(settings.keys.stream, {"type": "scale_up", "pod_count": "3", "traceparent": parent})
            client.xadd(settings.keys.stream, {"type": "no such type"})
            yield made


@pytest.mark.real
@pytest.mark.timeout(150)
def test_each_query_of_the_dashboard_returns_data(prometheus: Prometheus) -> None:
    """In a run against a real Prometheus; numbers, and the exemplar of the event's trace."""
    eventually(lambda: sum(prometheus.values("ottoscaler_workers_finished_total")) >= 3, _PATIENCE_S, "the results")
    missing: list[str] = []

    def complete() -> bool:
        replaced = ((expr.replace("$__rate_interval", "1m").replace("$namespace", ".*")) for _, expr in queries())
        missing[:] = [expr for expr in replaced if not prometheus.values(expr)]
        return not missing

    deadline = time.monotonic() + _PATIENCE_S
    while not complete() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert missing == []
    found = prometheus.get(
        "query_exemplars", query="ottoscaler_run_seconds_bucket", start=str(time.time() - 300), end=str(time.time())
    )
    (series,) = found["data"]
    assert series["exemplars"][0]["labels"] == {"trace_id": "0af7651916cd43dd8448eb211c80319c"}
    rules = prometheus.get("rules")["data"]["groups"]
    assert {rule["health"] for group in rules for rule in group["rules"]} <= {"ok", "unknown"}
