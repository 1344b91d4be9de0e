"""A picture of one recorded call: both voices, the model's words where they were written, and what was seen.

Needs matplotlib (development extra) and no display.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from server.signals import Signal, SignalKind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Word", "draw", "words"]

_INK, _FAINT, _USER, _MODEL = "#1f2933", "#9aa5b1", "#2f6db5", "#d9622b"
_COLOURS: Final = {
    SignalKind.BARGE_IN: "#c0392b",
    SignalKind.NO_YIELD: "#c0392b",
    SignalKind.CUT_OFF: "#c0392b",
    SignalKind.PAUSE_TAKEOVER: "#c0392b",
    SignalKind.NO_RESPONSE: "#c0392b",
    SignalKind.YIELD: "#3f9c75",
    SignalKind.RESPONSE: "#3f9c75",
    SignalKind.BACKCHANNEL: "#3f9c75",
}
_BIN_S: Final = 0.02
_LANES: Final = 4
_WORD_START: Final = "▁"


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """A word of the model and the time of the frame it was written in, in seconds."""

    text: str
    t_s: float


def words(tokenizer: object, text_T: NDArray[np.int16], silent: frozenset[int], *, frame_s: float) -> list[Word]:
    """Join text tokens into words. `silent` are the tokens that say nothing."""
    found: list[Word] = []
    for frame, token in enumerate(text_T.tolist()):
        if token < 0 or token in silent:
            continue
        piece = str(tokenizer.id_to_piece(token))  # type: ignore[attr-defined]
        if piece.startswith(_WORD_START) or not found:
            found.append(Word(text=piece.removeprefix(_WORD_START), t_s=frame * frame_s))
        else:
            found[-1] = msgspec.structs.replace(found[-1], text=found[-1].text + piece)
    return found


def draw(
    path: Path,
    sides: NDArray[np.float32],
    said: Sequence[Word],
    signals: Sequence[Signal],
    *,
    sample_rate: int,
    title: str,
) -> None:
    """Write a PNG. `sides` is float32 `[2, samples]`: the caller, then the model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - a slow import for one picture
    from matplotlib.figure import Figure  # noqa: PLC0415

    length_s = sides.shape[1] / sample_rate
    figure = Figure(figsize=(min(40.0, max(10.0, length_s * 0.8)), 4.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    for lane, pcm, colour in ((1.0, sides[0], _USER), (-1.0, sides[1], _MODEL)):
        _draw_wave(axes, pcm, lane, colour, sample_rate)
    for index, word in enumerate(said):
        axes.text(word.t_s, -2.3 - 0.35 * (index % 2), word.text, fontsize=8, color=_INK)
    for index, signal in enumerate(sorted(signals, key=lambda each: each.t0)):
        _draw_signal(axes, signal, 2.2 + 0.42 * (index % _LANES))
    axes.set(xlim=(0, length_s), ylim=(-3.0, 2.2 + 0.42 * _LANES), yticks=[1.0, -1.0], xlabel="seconds")
    axes.set_yticklabels(["user", "model"])
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.savefig(path)


def _draw_wave(axes: "Axes", pcm: NDArray[np.float32], lane: float, colour: str, sample_rate: int) -> None:
    size = round(_BIN_S * sample_rate)
    peaks = np.abs(pcm[: len(pcm) // size * size].reshape(-1, size)).max(axis=1, initial=0.0)
    height = 0.85 * peaks / max(float(peaks.max(initial=0.0)), 1e-2)
    t_s = (np.arange(len(peaks)) + 0.5) * _BIN_S
    axes.fill_between(t_s, lane - height, lane + height, color=colour, linewidth=0, alpha=0.9)
    axes.axhline(lane, color=colour, linewidth=0.5, alpha=0.5)


def _draw_signal(axes: "Axes", signal: Signal, height: float) -> None:
    colour = _COLOURS.get(signal.kind, _FAINT)
    latency = "" if signal.latency_s is None else f" {signal.latency_s:+.2f} s"
    axes.axvspan(signal.t0, max(signal.t1, signal.t0 + 0.02), ymin=0.12, ymax=0.66, color=colour, alpha=0.12)
    axes.plot([signal.t0, signal.t1], [height, height], color=colour, linewidth=2)
    axes.text(signal.t0, height + 0.06, f"{signal.kind}{latency}", fontsize=8, color=colour)
