"""How large a run of the recipe is: which voices speak how much, and how long every stage trains.

`full` makes the model that ships; `small` is a rehearsal of it with real synthesis in less than an hour; `smoke` takes
recordings that ship with the project for voices and only shows that every stage works, `smoke-flite` the same with
synthesis by one voice.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SIZES", "Phase", "Size"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the language model's training: conversations of `frames` frames, until `minutes` are spent."""

    frames: int
    minutes: float


@dataclass(frozen=True, kw_only=True)
class Size:
    """One size of the recipe; minutes are processor time."""

    recordings: bool = False  # take shipped recordings for voices instead of synthesis
    callers: tuple[str, ...] = ()  # who speaks in the bank; none named: all of them
    scale: float = 1.0  # share of each caller's lines
    at_least: int = 20  # utterances below which a voice is left out
    encoder_minutes: float
    fit_batches: int = 150
    decoder_minutes: float
    phases: tuple[Phase, ...]
    variant: Phase  # a variant of the finished language model: without faults, or with another voice
    variant_decoder_minutes: float
    shard_s: float = 1300.0
    save_s: float = 90.0
    report_steps: int = 100
    questions: int = 120  # asked of each group in the evaluation
    recognised: int = 40  # answers whose sound goes through a recogniser
    scenes: int = 24
    shipped: int = 16  # recordings kept per group


def _smoke(**changes: object) -> Size:
    tiny: dict = {
        "at_least": 1,
        "encoder_minutes": 0.1,
        "fit_batches": 8,
        "decoder_minutes": 0.08,
        "phases": (Phase(frames=128, minutes=0.1), Phase(frames=256, minutes=0.16)),
        "variant": Phase(frames=256, minutes=0.05),
        "variant_decoder_minutes": 0.04,
        "shard_s": 84.0,
        "save_s": 2.0,
        "report_steps": 2,
        "questions": 4,
        "recognised": 0,
        "scenes": 1,
        "shipped": 2,
    }
    return Size(**tiny | changes)


SIZES = {
    "full": Size(
        encoder_minutes=40.0,
        decoder_minutes=33.0,
        phases=(
            Phase(frames=256, minutes=90.0),
            Phase(frames=768, minutes=264.0),
            Phase(frames=1125, minutes=290.0),
        ),
        variant=Phase(frames=768, minutes=18.0),
        variant_decoder_minutes=20.0,
    ),
    "small": Size(
        callers=("flite kal16", "espeak en-us", "festival ked_diphone", "kokoro am_adam", "flite rms"),
        scale=0.3,
        encoder_minutes=3.0,
        fit_batches=60,
        decoder_minutes=3.0,
        phases=(Phase(frames=256, minutes=4.0), Phase(frames=768, minutes=5.5)),
        variant=Phase(frames=768, minutes=1.5),
        variant_decoder_minutes=1.0,
        questions=40,
        recognised=8,
        scenes=4,
        shipped=4,
    ),
    "smoke": _smoke(recordings=True),
    "smoke-flite": _smoke(callers=("flite kal16", "flite rms"), scale=0.05),
}
