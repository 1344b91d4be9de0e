"""Preference pairs for the tests of learning: of random tokens, and of what an engine really said."""

from typing import Any

import numpy as np
import torch

from online_align.records import Evidence, Pair, PairKind, Side
from server.engine import Engine, SamplingParams
from tests.engine.stock import sound

EVIDENCE = Evidence(rule="test", signals=(), confidence=1.0)


def make_pair(name: str, context: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, **more: Any) -> Pair:
    fields: dict[str, Any] = {
        "id": name, "session": f"of-{name}", "user_hash": "", "kind": PairKind.CONTENT, "made_at": 0.0,
        "at_tick": len(context), "event": 0, "policy": "", "heldout": False, "evidence": EVIDENCE,
    }  # fmt: skip
    sides: dict[str, Any] = {
        "context_PK": context.astype(np.int16),
        "chosen": Side(tokens_TK=chosen.astype(np.int16), words=""),
        "rejected": Side(tokens_TK=rejected.astype(np.int16), words=""),
    }
    return Pair(**(fields | sides | more))


def columns(frames: int, seed: int, *, codebooks: int = 9, card: int = 32, text_card: int = 44) -> np.ndarray:
    """Random columns of the tiny checkpoint."""
    draw = np.random.default_rng(seed)
    made = draw.integers(0, card, (frames, codebooks))
    made[:, 0] = draw.integers(0, text_card, frames)
    return made.astype(np.int16)


def random_pair(seed: int, *, past: int = 12, chosen: int = 9, rejected: int = 7, same: int = 0, **more: Any) -> Pair:
    """Sides that agree in their first `same` frames."""
    left, right = columns(chosen, 3 * seed + 1), columns(rejected, 3 * seed + 2)
    right[:same] = left[:same]
    return make_pair(f"pair-{seed}", columns(past, 3 * seed), left, right, **more)


def spoken(engine: Engine, frames: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A call as the journal keeps it: columns `[T, K]` and the text tokens' log-probabilities `[T]`."""
    engine.open(0, SamplingParams(text_temperature=1.1), seed=seed)
    active = torch.arange(engine.slots) == 0
    kept, logprob = [], []
    for chunk in sound(frames, engine.frame_size, seed):
        pcm = torch.zeros(engine.slots, engine.frame_size)
        pcm[0] = chunk
        out = engine.step(pcm, active)
        if out.text[0] >= 0:
            kept.append(out.tokens[0].numpy())
            logprob.append(float(out.logprob[0]))
    engine.close(0)
    return np.array(kept, np.int16), np.array(logprob, np.float32)
