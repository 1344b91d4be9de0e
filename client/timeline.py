"""One picture of a few calls: both waveforms, the model's words where it wrote them, turns and their gaps.

Every row is a call on the same clock. Needs matplotlib (development extra) and no display.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from client.activity import Turn
from client.sound import SAMPLE_RATE_HZ, Pcm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CallPicture", "Word", "draw"]

_INK, _FAINT = "#1f2933", "#9aa5b1"
_USER, _MODEL, _GAP, _OVERLAP = "#2f6db5", "#d9622b", "#3f9c75", "#c0392b"
_USER_LANE, _MODEL_LANE = 1.0, -1.0
_BIN_S = 0.01
_CHARACTER_SHARE = 0.008  # of the picture's width, for one character of a word
_ROW_INCHES = 2.15


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """A word of the model's text and when it was written, in seconds of the call."""

    text: str
    t_s: float


class CallPicture(msgspec.Struct, frozen=True, kw_only=True):
    """What one row shows. Sound is float32 [samples] at 24 kHz, both sides on the call's clock."""

    question: str
    verdict: str
    user: Pcm
    model: Pcm
    words: tuple[Word, ...]
    turns: tuple[Turn, ...]


def draw(path: Path, calls: Sequence[CallPicture], *, title: str) -> None:
    """Write a PNG of `calls`, one below the other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - a slow import for one picture
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(12, 0.9 + _ROW_INCHES * len(calls)), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=_INK)
    grid = figure.subplots(len(calls), 1, sharex=True, squeeze=False)
    length_s = max(len(call.user) for call in calls) / SAMPLE_RATE_HZ
    for axes, call in zip(grid[:, 0], calls, strict=True):
        _draw_call(axes, call, length_s)
    grid[-1, 0].set_xlabel("seconds", color=_INK, fontsize=9)
    grid[-1, 0].tick_params(bottom=True, labelbottom=True)
    figure.savefig(path)


def _draw_call(axes: "Axes", call: CallPicture, length_s: float) -> None:
    axes.set_title(f"“{call.question}”", loc="left", fontsize=11, color=_USER, pad=4)
    axes.set_title(call.verdict, loc="right", fontsize=9, color=_INK, pad=4)
    _draw_wave(axes, call.user, lane=_USER_LANE, colour=_USER)
    _draw_wave(axes, call.model, lane=_MODEL_LANE, colour=_MODEL)
    for turn in call.turns:
        _draw_gap(axes, turn)
    _draw_words(axes, call.words, length_s)
    axes.set(xlim=(0, length_s), ylim=(-3.3, 2.1), yticks=[_USER_LANE, _MODEL_LANE])
    axes.set_yticklabels(["user", "model"], fontsize=9)
    for label, colour in zip(axes.get_yticklabels(), (_USER, _MODEL), strict=True):
        label.set_color(colour)
    axes.tick_params(length=0, labelsize=9, colors=_FAINT)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_wave(axes: "Axes", pcm: Pcm, *, lane: float, colour: str) -> None:
    """The envelope, scaled to its own loudest moment so that a quiet side is still legible."""
    size = round(_BIN_S * SAMPLE_RATE_HZ)
    bins = np.abs(pcm[: len(pcm) // size * size].reshape(-1, size)).max(axis=1, initial=0.0)
    height = 0.85 * bins / max(float(bins.max(initial=0.0)), 1e-2)
    t_s = (np.arange(len(bins)) + 0.5) * _BIN_S
    axes.fill_between(t_s, lane - height, lane + height, color=colour, linewidth=0, alpha=0.9)
    axes.axhline(lane, color=colour, linewidth=0.5, alpha=0.5)


def _draw_gap(axes: "Axes", turn: Turn) -> None:
    """The time between the user's end and the model's start, or their overlap."""
    if turn.reply is None or turn.latency_s is None:
        axes.text(turn.user.end_s, 0.0, " no answer", fontsize=9, color=_OVERLAP, va="center")
        return
    colour = _GAP if turn.latency_s >= 0 else _OVERLAP
    axes.axvspan(turn.user.end_s, turn.reply.start_s, ymin=0.26, ymax=0.96, color=colour, alpha=0.16, linewidth=0)
    middle = (turn.user.end_s + turn.reply.start_s) / 2
    axes.text(
        middle,
        0.0,
        f"{turn.latency_s:+.2f} s",
        fontsize=8.5,
        color=colour,
        ha="center",
        va="center",
        fontweight="bold",
        bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none", "alpha": 0.8},
    )


def _draw_words(axes: "Axes", words: Sequence[Word], length_s: float) -> None:
    """Words at their time under the model's wave, on two lines; one that would collide moves to the right."""
    free_s = [0.0, 0.0]
    for word in words:
        line = 0 if free_s[0] <= max(word.t_s, free_s[1]) else 1
        at_s = max(word.t_s, free_s[line])
        text = axes.text(at_s, -2.4 - 0.62 * line, word.text, fontsize=9.5, color=_INK, va="center", clip_on=True)
        text.set_in_layout(False)
        axes.plot([word.t_s, word.t_s], [_MODEL_LANE - 0.95, _MODEL_LANE - 0.8], color=_INK, linewidth=0.8)
        free_s[line] = at_s + (len(word.text) + 1.2) * _CHARACTER_SHARE * length_s
