"""The picture of a load: who talked when, how long replies took, and where the server spent its time.

Needs matplotlib (development extra) and no display.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from client.load.report import LoadReport
from server.protocol import FRAME_MS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

_INK, _FAINT, _GRID = "#1f2933", "#9aa5b1", "#e4e7eb"
_CALLERS, _DELAY, _TAIL, _CLIENT, _LATE = "#2f6db5", "#3f9c75", "#d9622b", "#9aa5b1", "#c0392b"
_HEARING: Final = ("opus_decode", "ingest", "encode", "temporal", "depth", "decode")
_STAGES: Final = (*_HEARING, "step", "opus_encode", "emit", "total")


def draw(path: Path, report: LoadReport) -> None:
    """Write a PNG of `report`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - a slow import for one picture
    from matplotlib.figure import Figure  # noqa: PLC0415

    stages = bool(report.server_ticks)
    figure = Figure(figsize=(12, 8.2 if stages else 5.6), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(report), x=0.012, ha="left", fontsize=13, fontweight="bold", color=_INK)
    rows = figure.subplots(3 if stages else 2, 1, height_ratios=(1, 2, 1.6)[: 3 if stages else 2])
    _draw_callers(rows[0], report)
    _draw_delays(rows[1], report)
    if stages:
        _draw_stages(rows[2], report)
    figure.savefig(path)


def _title(report: LoadReport) -> str:
    delay = (
        f"delay p50 {report.delay_ms.p50:.0f}, p99 {report.delay_ms.p99:.0f} ms" if report.delay_ms else "no replies"
    )
    frames = report.frames
    return f"{report.callers} callers: {delay}; {frames.late} late, {frames.dropped + frames.skipped} dropped frames"


def _draw_callers(axes: "Axes", report: LoadReport) -> None:
    t_s = [second.t_s + 0.5 for second in report.series]
    axes.fill_between(t_s, [second.callers for second in report.series], step="mid", color=_CALLERS, alpha=0.25)
    axes.set_title("calls being served, and late frames a second", loc="left", fontsize=10, color=_INK)
    axes.bar(t_s, [second.late for second in report.series], width=0.8, color=_LATE)
    _style(axes, report)


def _draw_delays(axes: "Axes", report: LoadReport) -> None:
    seconds = [(second, second.delay_ms) for second in report.series]
    heard = [(second, spread) for second, spread in seconds if spread is not None]
    t_s = [second.t_s + 0.5 for second, _ in heard]
    lines = (
        ("p50", _DELAY, [spread.p50 for _, spread in heard]),
        ("p99", _TAIL, [spread.p99 for _, spread in heard]),
        ("worst", _LATE, [spread.max for _, spread in heard]),
        ("this program's own lateness, worst", _CLIENT, [second.send_late_max_ms for second, _ in heard]),
    )
    for label, colour, values in lines:
        dotted = colour is _CLIENT
        axes.plot(t_s, values, color=colour, label=label, linewidth=1.2, linestyle=":" if dotted else "-")
    axes.axhline(FRAME_MS, color=_INK, linewidth=0.8, linestyle="--")
    axes.axvline(report.seconds - report.measured_s, color=_FAINT, linewidth=0.8)
    axes.set_title("what server and network add to the model's own delay, ms", loc="left", fontsize=10, color=_INK)
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])  # room for the legend
    axes.set_xlabel("seconds", color=_INK, fontsize=9)
    axes.legend(loc="upper left", fontsize=8, frameon=False, ncols=4)
    _style(axes, report)


def _draw_stages(axes: "Axes", report: LoadReport) -> None:
    ticks = report.server_ticks or {}
    names = [name for name in _STAGES if name in ticks]
    axes.barh(names, [ticks[name].p99_ms for name in names], color=_TAIL, alpha=0.35, label="p99")
    axes.barh(names, [ticks[name].p50_ms for name in names], color=_DELAY, label="p50")
    axes.axvline(FRAME_MS, color=_INK, linewidth=0.8, linestyle="--")
    axes.invert_yaxis()
    axes.set_title("the server's own clock: time by stage, ms", loc="left", fontsize=10, color=_INK)
    axes.legend(loc="upper right", fontsize=8, frameon=False)
    _bare(axes)


def _style(axes: "Axes", report: LoadReport) -> None:
    axes.set_xlim(0, report.seconds)
    _bare(axes)


def _bare(axes: "Axes") -> None:
    axes.tick_params(length=0, labelsize=9, colors=_INK)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
