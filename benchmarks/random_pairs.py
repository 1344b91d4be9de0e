"""Preference pairs of random tokens with the lengths that calls have, for measuring: what they say changes no time."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from online_align.records import Evidence, Pair, PairKind, Side

__all__ = ["FRAMES", "random_pairs"]

FRAMES: Final = (125, 500, 25, 75)
"""Least and most frames of the past and of a side: 10 to 40 s, and 2 to 6 s."""


def random_pairs(number: int, folder: Path, *, frames: Sequence[int] = FRAMES, session: str = "") -> list[Pair]:
    """So many for the model in `folder`, of the call `session`, the same each time. `frames` are as `FRAMES`."""
    config = json.loads((folder / "config.json").read_text())
    draw = np.random.default_rng(0)
    past, most_past, side, most_side = frames

    def columns(length: int) -> np.ndarray:
        made = draw.integers(0, config["card"], (length, 1 + config["n_q"]))
        made[:, 0] = draw.integers(0, config["text_card"], length)
        return made.astype(np.int16)

    def pair(index: int) -> Pair:
        context, sides = columns(int(draw.integers(past, most_past + 1))), draw.integers(side, most_side + 1, 2)
        chosen, rejected = (Side(tokens_TK=columns(int(length)), words="") for length in sides)
        return Pair(
            id=f"{index:03d}", session=session, user_hash="", kind=PairKind.CONTENT, made_at=0.0,
            at_tick=len(context), event=0, policy="", heldout=False,
            evidence=Evidence(rule="", signals=(), confidence=1.0),
            context_PK=context, chosen=chosen, rejected=rejected,
        )  # fmt: skip

    return [pair(index) for index in range(number)]
