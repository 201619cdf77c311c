"""A picture of the dashboard: `python -m tests.dashboard_picture PICTURE.png`, in about three minutes.

A local system with work of several kinds, scraped by a real Prometheus; then the queries of dashboard.json as it has
them, drawn in Chromium by a few lines of SVG: with the places, titles and legends of the dashboard, without Grafana.
"""

from __future__ import annotations

import html
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import redis

from ottoscaler.cli.system import LocalSystem
from tests.cli.browser import browser
from tests.deploy.test_monitoring import Prometheus
from tests.fakes.wait import eventually

DASHBOARD: Final = Path(__file__).parents[1] / "deploy" / "monitoring" / "dashboard.json"
#: How long the run lasts, and how often an event is sent, seconds.
RUN_S: Final = 150
PAUSE_S: Final = 1.5
#: Rows of the dashboard that are drawn, by their titles.
ROWS: Final = ("Now", "Flow", "Results", "Times")
WIDTH: Final = 1200
#: One unit of the grid: the dashboard is 24 wide. Pixels.
UNIT_X: Final = WIDTH // 24
UNIT_Y: Final = 19
COLOURS: Final = ("#2f6fb5", "#c4572b", "#2c8a4b", "#8a5bb5", "#b58a1f", "#3a9aa8", "#a8325e", "#666666")
WORK: Final = 'sleep $((OTTO_WORKER_INDEX * 2 + ${#OTTO_EVENT_ID} % 5)); [ "$OTTO_WORKER_INDEX" != 4 ]'
STYLE: Final = (
    "body{margin:0;background:#fff;font:11px system-ui,sans-serif;color:#161616;position:relative}"
    "div{position:absolute;box-sizing:border-box;border:1px solid #d0d0d0;padding:3px 6px;overflow:hidden}"
    "b{display:block}.row{border:0;font-size:13px;padding:0 6px;line-height:15px}"
    ".big{font-size:26px;text-align:center}i{font-style:normal;margin-right:8px}"
)


def main(picture: Path) -> None:
    """Run, ask, draw."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("system", "prometheus", "profile"):
            (folder / name).mkdir()
        environ = {"PATH": "/usr/bin:/bin", "OTTO_AGENT_COMMAND": json.dumps(["sh", "-c", WORK]), "MAX_WORKERS": "24"}
        system = stack.enter_context(LocalSystem(folder / "system", environ))
        system.start_controller(folder / "log")
        target = f"127.0.0.1:{system.overrides['HTTP_PORT']}"
        prometheus = stack.enter_context(closing(Prometheus(folder / "prometheus", target)))
        eventually(lambda: prometheus.values("ottoscaler_build_info"), 60, "the first scrape")
        _work(system)
        page, height = _page(prometheus)
        (folder / "page.html").write_text(page, encoding="utf-8")
        with closing(stack.enter_context(browser(folder / "profile")).tab()) as tab:
            tab.emulate("light", WIDTH)
            tab.open(f"file://{folder}/page.html")
            tab.picture(picture, height)


def _work(system: LocalSystem) -> None:
    """Events for RUN_S, some of which are refused; more than there is room for in the middle."""
    settings, began = system.settings, time.monotonic()
    with redis.Redis(host=settings.redis.host, port=settings.redis.port) as client:
        while (gone := time.monotonic() - began) < RUN_S:
            count = 5 if 50 < gone < 90 else 1 + int(gone) % 4
            client.xadd(settings.keys.stream, {"type": "scale_up", "pod_count": count, "task_id": f"build-{int(gone)}"})
            if int(gone) % 20 == 0:
                client.xadd(settings.keys.stream, {"type": "scale_up", "pod_count": "many"})
            time.sleep(PAUSE_S)


def _page(prometheus: Prometheus) -> tuple[str, int]:
    """The markup, and how high it is."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    parts, is_drawn, bottom, shift = [], False, 0, 0
    for panel in panels:
        place = panel["gridPos"]
        if panel["type"] == "row":
            is_drawn = panel["title"] in ROWS
            shift = place["y"] - bottom if is_drawn else shift
        if not is_drawn:
            continue
        bottom = max(bottom, place["y"] - shift + place["h"])
        left, top = place["x"] * UNIT_X, (place["y"] - shift) * UNIT_Y
        size = f"left:{left}px;top:{top}px;width:{place['w'] * UNIT_X - 4}px;height:{place['h'] * UNIT_Y - 4}px"
        kind = "row" if panel["type"] == "row" else "panel"
        title = f"<b>{html.escape(panel['title'])}</b>"
        parts.append(f'<div class="{kind}" style="{size}">{title}{_body(prometheus, panel)}</div>')
    return f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{''.join(parts)}", bottom * UNIT_Y


def _body(prometheus: Prometheus, panel: Mapping[str, Any]) -> str:
    if panel["type"] == "row":
        return ""
    unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "")
    if panel["type"] == "stat":
        found = prometheus.values(_query(panel["targets"][0]))
        return f'<span class="big">{_figure(found[0], unit) if found else "-"}</span>'
    return _chart(list(_series(prometheus, panel)), unit, panel["gridPos"])


def _query(target: Mapping[str, Any]) -> str:
    return str(target["expr"]).replace("$__rate_interval", "15s").replace("$namespace", ".*")


def _series(prometheus: Prometheus, panel: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[float]]]:
    """Each with its legend; what is no number is 0."""
    now = time.time()
    for target in panel["targets"]:
        answer = prometheus.get(
            "query_range", query=_query(target), start=str(now - RUN_S), end=str(now), step="2"
        )  # fmt: skip
        for found in answer.get("data", {}).get("result", []):
            legend = target.get("legendFormat", "")
            for name, value in found["metric"].items():
                legend = legend.replace("{{" + name + "}}", value)
            values = [float(value) for _, value in found["values"]]
            yield legend, [value if value == value else 0.0 for value in values]


def _chart(series: Sequence[tuple[str, Sequence[float]]], unit: str, place: Mapping[str, int]) -> str:
    width, height = place["w"] * UNIT_X - 20, place["h"] * UNIT_Y - 52
    shown = [(legend, values) for legend, values in series if any(values)][: len(COLOURS)]
    most = max((max(values) for _, values in shown), default=0.0) or 1.0
    lines, names = [], []
    for (legend, values), colour in zip(shown, COLOURS, strict=False):
        step = width / max(1, len(values) - 1)
        places = ((n * step, height - value / most * (height - 3)) for n, value in enumerate(values))
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        names.append(f'<i style="color:{colour}">{html.escape(legend)} {_figure(values[-1], unit)}</i>')
    top = f'<text x="2" y="10" font-size="9" fill="#565656">{_figure(most, unit)}</text>'
    axis = f'<path d="M0 {height}H{width}" stroke="#767676"/>'
    drawn = f'<svg width="{width}" height="{height}" style="display:block">{axis}{"".join(lines)}{top}</svg>'
    return drawn + ("".join(names) or "none")


def _figure(value: float, unit: str) -> str:
    text = f"{value:.0f}" if value == int(value) or value >= 100 else f"{value:.2f}"
    return f"{text} {unit.removeprefix('short').replace('ops', '/s')}".strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
