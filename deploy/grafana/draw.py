"""Draw the dashboards from what a Prometheus answers: `python deploy/grafana/draw.py http://127.0.0.1:9090`.

For the pictures in docs/pictures, and for a look without Grafana: the same queries, the same layout, thresholds and
marks, drawn by matplotlib. It is not Grafana and does not look like it in every detail.
"""

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import matplotlib.style
import msgspec
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

DASHBOARDS: Final = Path(__file__).parent / "dashboards"
_COLOURS: Final = {"green": "#73bf69", "orange": "#ff9830", "yellow": "#fade2a", "red": "#f2495c", "blue": "#5794f2"}
_POINTS: Final = 150
_CELL_IN: Final = (0.62, 0.33)
"""Width and height of a cell of Grafana's grid."""
_MOST_NAMES: Final = 8
_BELOW_IN: Final = 0.16
"""From a picture to the names of its lines: room for the times."""

Numbers = NDArray[np.float64]


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What to look at, in seconds of the day's time, and how fine."""

    url: str
    start: float
    end: float
    step_s: float
    rate_s: int
    """What `$__rate_interval` stands for."""

    @property
    def times_T(self) -> Numbers:
        """Minutes before the end, float64 [T]."""
        return (np.arange(self.start, self.end + self.step_s / 2, self.step_s) - self.end) / 60

    def ask(self, expr: str) -> list[tuple[dict[str, str], Numbers]]:
        """Give each series' labels and its values at `times_T`, NaN where there are none."""
        expr = expr.replace("$__rate_interval", f"{self.rate_s}s").replace("$__interval", f"{self.rate_s}s")
        asked = {"query": expr, "start": self.start, "end": self.end, "step": self.step_s}
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        question = f"{self.url}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
        with direct.open(question, timeout=60) as response:
            result = json.load(response)["data"]["result"]
        return [(series["metric"], self._placed(series["values"])) for series in result]

    def _placed(self, samples: list[tuple[float, str]]) -> Numbers:
        values_T = np.full(len(self.times_T), np.nan)
        for at, value in samples:
            values_T[round((at - self.start) / self.step_s)] = float(value)
        return np.where(np.isfinite(values_T), values_T, np.nan)


def main() -> None:
    """Draw every dashboard, or those that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url", help="Prometheus' address")
    parser.add_argument("--minutes", type=float, default=60.0, help="how far to look back (default: %(default)s)")
    parser.add_argument("--rate-seconds", type=int, default=20, help="window of rates (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"), help="folder (default: %(default)s)")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="dashboards to draw (default: all)")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    now = time.time()
    span_s = 60 * given.minutes
    window = Window(
        url=given.url.rstrip("/"),
        start=now - span_s,
        end=now,
        step_s=span_s / _POINTS,
        rate_s=given.rate_seconds,
    )
    matplotlib.style.use("dark_background")
    for path in sorted(DASHBOARDS.glob("*.json")):
        if not given.only or path.stem in given.only:
            page = json.loads(path.read_text(encoding="utf-8"))
            _draw(page, window).savefig(given.out / f"{path.stem}.png", dpi=70, pil_kwargs={"optimize": True})


def _draw(page: dict[str, Any], window: Window) -> Figure:
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in page["panels"])
    width, height = 24 * _CELL_IN[0], (rows + 1) * _CELL_IN[1]
    figure = Figure(figsize=(width, height), facecolor="#111217")
    title = f"{page['title']}   (last {(window.end - window.start) / 60:.0f} minutes)"
    figure.text(0.005, 1 - 0.7 * _CELL_IN[1] / height, title, fontsize=12, weight="bold")
    swaps = [(mark, window.ask(mark["expr"])) for mark in page["annotations"]["list"]]
    for panel in page["panels"]:
        place = panel["gridPos"]
        left, top = place["x"] / 24, 1 - (place["y"] + 1) / (rows + 1)
        inner = (
            left + 0.045 * min(1, place["w"] / 8),
            top - (place["h"] - 1.9) / (rows + 1),
            place["w"] / 24 - 0.055,
            (place["h"] - 3.3) / (rows + 1),
        )
        axes = figure.add_axes(inner, facecolor="#181b1f")
        axes.set_title(panel["title"], fontsize=9, loc="left")
        _PICTURES[panel["type"]](axes, panel, window)
        if panel["type"] == "timeseries":
            _mark(axes, swaps, window)
    return figure


def _series(panel: dict[str, Any], window: Window) -> Iterator[tuple[str, Numbers]]:
    for target in panel["targets"]:
        for labels, values_T in window.ask(target["expr"]):
            yield _named(target["legendFormat"], labels), values_T


def _named(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend)


def _lines(axes: Axes, panel: dict[str, Any], window: Window) -> None:
    named = list(_series(panel, window))
    defaults = panel["fieldConfig"]["defaults"]
    named.sort(key=lambda each: -float(np.nan_to_num(each[1]).max()))
    if defaults["custom"]["stacking"]["mode"] == "normal":
        values = [np.nan_to_num(values_T) for _, values_T in named]
        axes.stackplot(window.times_T, *values, labels=[name for name, _ in named], alpha=0.8)
    else:
        for name, values_T in named:
            axes.plot(window.times_T, values_T, label=name, linewidth=1.1)
    bottom, top = axes.get_ylim()
    limits = [step for step in defaults["thresholds"]["steps"] if step["value"] is not None]
    for step in limits if defaults["custom"]["thresholdsStyle"]["mode"] == "line" else []:
        axes.axhline(step["value"], color=_COLOURS[step["color"]], linewidth=0.9, linestyle="--")
        top = max(top, 1.05 * step["value"])
    bottom, top = defaults.get("min", bottom), defaults.get("max", top)
    axes.set_ylim(bottom - 0.04 * (top - bottom), top + 0.04 * (top - bottom))  # a line on the edge is seen, too
    axes.set_xlim(window.times_T[0], 0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _said(value, defaults["unit"])))
    axes.tick_params(labelsize=7, colors="#9fa7b3")
    axes.grid(color="#2c3235", linewidth=0.5)
    drawn, names = axes.get_legend_handles_labels()
    below = _BELOW_IN / axes.get_window_extent().height * axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    axes.legend(
        drawn[:_MOST_NAMES],
        names[:_MOST_NAMES],
        fontsize=6.5,
        loc="upper left",
        bbox_to_anchor=(0, -below),
        ncols=4,
        frameon=False,
        borderpad=0,
        handlelength=1.2,
    )


def _number(axes: Axes, panel: dict[str, Any], window: Window) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    _, values_T = next(_series(panel, window))
    finite = values_T[np.isfinite(values_T)]
    defaults = panel["fieldConfig"]["defaults"]
    steps = defaults["thresholds"]["steps"]
    value = float(finite[-1]) if len(finite) else math.nan
    colour = next(
        (each["color"] for each in reversed(steps) if each["value"] is None or value >= each["value"]), "green"
    )
    axes.set_facecolor(_COLOURS[colour])
    said = _said(value, defaults["unit"])
    axes.text(0.5, 0.5, said, fontsize=22, ha="center", va="center", weight="bold", color="#111217")


def _heat(axes: Axes, panel: dict[str, Any], window: Window) -> None:
    series = window.ask(panel["targets"][0]["expr"])
    series.sort(key=lambda each: float(each[0]["le"].replace("+Inf", "inf")))
    counts = np.diff(np.nan_to_num(np.stack([values_T for _, values_T in series])), axis=0, prepend=0).clip(min=0)
    used = np.flatnonzero(counts.sum(axis=1))
    rows = range(max(0, used.min() - 1), min(len(series), used.max() + 2)) if len(used) else range(len(series))
    names = [series[row][0]["le"] for row in rows]
    axes.pcolormesh(window.times_T, np.arange(len(names)), counts[list(rows)], cmap="inferno", shading="nearest")
    axes.set_yticks(range(len(names)), [_said(float(name.replace("+Inf", "inf")), "s") for name in names])
    axes.tick_params(labelsize=7, colors="#9fa7b3")


def _rows(axes: Axes, panel: dict[str, Any], window: Window) -> None:
    axes.axis("off")
    now = [(labels, values_T) for labels, values_T in window.ask(panel["targets"][0]["expr"])]
    present = [labels for labels, values_T in now if np.isfinite(values_T[-3:]).any()]
    columns = sorted({name for labels in present for name in labels})
    cells = [columns, *([labels.get(name, "") for name in columns] for labels in present)]
    for line, row in enumerate(cells):
        for column, cell in enumerate(row):
            place = 0.02 + column / max(1, len(columns)), 0.9 - 0.16 * line
            axes.text(*place, cell or "(none)", fontsize=9, weight="normal" if line else "bold")


def _mark(axes: Axes, swaps: list[tuple[dict[str, Any], list[tuple[dict[str, str], Numbers]]]], window: Window) -> None:
    for mark, found in swaps:
        for _, values_T in found:
            starts = np.flatnonzero(np.isfinite(values_T) & ~np.isfinite(np.roll(values_T, 1)))
            for start in starts:
                axes.axvline(window.times_T[start], color=_COLOURS[mark["iconColor"]], linewidth=1.0, linestyle=":")


def _said(value: float, unit: str) -> str:
    if not math.isfinite(value):
        return "∞" if value > 0 else "no data"
    match unit:
        case "s":
            return f"{1000 * value:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
        case "percentunit":
            return f"{100 * value:.4g} %"
        case "bytes":
            return f"{value / 2**20:.4g} MiB"
        case "cps":
            return f"{value:.3g} /s"
        case _:
            return f"{value:.4g}"


_PICTURES: Final = {"timeseries": _lines, "stat": _number, "heatmap": _heat, "table": _rows}


if __name__ == "__main__":
    main()
