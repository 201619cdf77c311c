"""The plots of a report, as SVG that is the same for the same report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "ottoscaler", "svg.fonttype": "none", "axes.spines.top": False, "font.size": 9})
mpl.rcParams.update({"axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True})

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import NullFormatter, ScalarFormatter  # noqa: E402

Report = Mapping[str, Any]
_OURS, _OTHER = "#1f6f8b", "#b8b8b8"
_NAMES: Final = {
    "one event": "Ottoscaler,\none event",
    "events of one": "Ottoscaler,\nevents of one pod",
    "bare": "bare Go loop",
    "polling, lifted": "polling,\nno limit",
    "typed": "typed client,\nthread per pod",
}


def draw(report: Report, folder: Path) -> list[Path]:
    """Write what there are figures for; returns the files."""
    drawn = []
    for name, (needs, plot) in _PLOTS.items():
        if set(needs.split()) <= report.keys():
            figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.0), layout="constrained")
            plot(report, axes)
            path = folder / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None})
            plt.close(figure)
            drawn.append(path)
    return drawn


def _throughput(report: Report, axes: Any) -> None:
    answer = report["pairs"]
    names = list(_NAMES)
    colours = [_OURS if name in ("one event", "events of one") else _OTHER for name in names]
    sides = (("pods_per_s", "whole lifecycles per second"), ("cpu_per_1000", "own CPU seconds per 1,000 pods"))
    for side, (what, label) in zip(axes, sides, strict=True):
        medians = answer["pods_per_s" if what == "pods_per_s" else "own_cpu_per_1000"]
        side.barh([_NAMES[name] for name in names], [medians[name] for name in names], color=colours)
        for row, name in enumerate(names):
            seen = [each[name][what] for each in answer["rounds"]]
            side.plot(seen, [row] * len(seen), "k|", markersize=5, alpha=0.6)
        side.invert_yaxis()
        side.set_xlabel(label)
    axes[1].set_yticklabels([])
    axes[0].set_title(f"{answer['pods']:,} pods that run 1 s", loc="left")


def _delays(report: Report, axes: Any) -> None:
    curves = (
        (axes[0], "event → create request, idle", report["latency"]["ms"], _OURS),
        (axes[1], "end of pod → result recorded", report["ends"]["to_result"]["ms"], _OURS),
        (axes[1], "end of pod → delete request", report["ends"]["to_delete"]["ms"], _OTHER),
    )
    for side, label, ms, colour in curves:
        ordered = sorted(max(0.1, each) for each in ms)
        side.plot(ordered, [(n + 1) / len(ordered) for n in range(len(ordered))], label=label, color=colour)
    for side, title in zip(axes, ("one event at a time", "50 pods/s"), strict=True):
        side.set_xscale("log")
        side.xaxis.set_major_formatter(ScalarFormatter())
        side.xaxis.set_minor_formatter(NullFormatter())
        side.set_xlabel("milliseconds")
        side.set_ylabel("share")
        side.set_title(title, loc="left")
        side.legend(loc="lower right", fontsize=8)


def _growth(report: Report, axes: Any) -> None:
    answer = report["scaling"]
    curves = (("cpu_per_1000", "own CPU seconds per 1,000 pods"), ("rss_mib", "RSS, MiB"))
    for side, (what, label) in zip(axes, curves, strict=True):
        live = sorted(map(int, answer[what]))
        values = [answer[what][str(each)] for each in live]
        side.plot(live, values, "o-", color=_OURS)
        side.set_xlabel("live pods")
        side.set_ylabel(label)
        side.set_ylim(0, 1.1 * max(values))


_PLOTS: Final[Mapping[str, tuple[str, Callable[[Report, Any], None]]]] = {
    "throughput": ("pairs", _throughput),
    "delays": ("latency ends", _delays),
    "growth": ("scaling", _growth),
}
