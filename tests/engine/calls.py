"""Short ways to hold conversations with an engine."""

import torch
from torch import Tensor

from server.engine import Engine, SamplingParams
from tests.engine.stock import Call, sound

GREEDY = SamplingParams(use_sampling=False)


def mask(engine: Engine, *slots: int) -> Tensor:
    active = torch.zeros(engine.slots, dtype=torch.bool)
    active[list(slots)] = True
    return active


def batch(engine: Engine, frames: dict[int, Tensor]) -> Tensor:
    pcm = torch.zeros(engine.slots, engine.frame_size)
    for slot, frame in frames.items():
        pcm[slot] = frame
    return pcm


def converse(
    engine: Engine,
    slot: int,
    pcm: Tensor,
    params: SamplingParams = GREEDY,
    seed: int = 0,
    noise_seed: int | None = None,
) -> Call:
    """One conversation in `slot`; with `noise_seed` every other slot talks, too, about something else."""
    others = [] if noise_seed is None else [other for other in range(engine.slots) if other != slot]
    engine.open(slot, params, seed=seed)
    for other in others:
        engine.open(other, SamplingParams(text_temperature=1.0), seed=seed + 1 + other)
    outputs = []
    for frame, chunk in enumerate(pcm):
        heard = {other: sound(1, engine.frame_size, noise_seed * 1000 + frame)[0] for other in others if noise_seed}
        outputs.append(engine.step(batch(engine, heard | {slot: chunk}), mask(engine, slot, *others)))
    for open_slot in (slot, *others):
        engine.close(open_slot)
    return Call(
        torch.stack([out.tokens[slot] for out in outputs]),
        torch.stack([out.pcm[slot] for out in outputs]),
        torch.stack([out.logprob[slot] for out in outputs]),
    )


def assert_same(got: Call, wanted: Call) -> None:
    """Tokens equal; sound and log-probabilities equal but for rounding."""
    assert got.tokens.tolist() == wanted.tokens.tolist()
    torch.testing.assert_close(got.pcm, wanted.pcm, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(got.logprob, wanted.logprob, atol=1e-4, rtol=1e-4, equal_nan=True)
