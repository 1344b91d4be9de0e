"""Calls that outlast every ring buffer, and processes that outlast many calls."""

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from server.engine import Engine, SamplingParams
from server.engine.engine import Work
from tests.engine.calls import assert_same, batch, converse, mask
from tests.engine.stock import Call, Stock, sound


def test_parity_far_past_the_context(tiny: Path, stock: Stock) -> None:
    engine = Engine.load(tiny, slots=2, device="cpu")
    pcm = sound(3 * engine.context_frames, engine.frame_size, seed=30)
    got, wanted = converse(engine, 1, pcm), stock.converse(pcm)
    assert_same(got._replace(logprob=wanted.logprob), wanted)


def test_pause_and_reopening_after_the_ring_wrapped(tiny: Path) -> None:
    """A full ring has no spare place: a masked row must not lose its oldest entry, nor a new caller find it."""
    engine = Engine.load(tiny, slots=2, device="cpu")
    pcm = sound(engine.context_frames + 8, engine.frame_size, seed=31)
    wanted = converse(engine, 0, pcm)
    engine.open(0, SamplingParams(use_sampling=False))
    engine.open(1)
    got = []
    for frame, chunk in enumerate(pcm):
        if frame > engine.context_frames:
            engine.step(batch(engine, {0: -chunk, 1: chunk}), mask(engine, 1))
        got.append(engine.step(batch(engine, {0: chunk}), mask(engine, 0)).tokens[0].tolist())
    assert got == wanted.tokens.tolist()
    engine.close(0)
    assert_same(converse(engine, 0, pcm[:8]), Call(*(part[:8] for part in wanted)))


def test_nothing_piles_up(tiny: Path) -> None:
    """Neither frames nor calls leave tensors or memory behind."""
    engine = Engine.load(tiny, slots=2, device="cpu")
    _calls(engine, 2)
    tensors, resident = _live_tensors(), _resident_bytes()
    _calls(engine, 20)
    assert _live_tensors() == tensors
    assert _resident_bytes() - resident < 4 * 2**20


@pytest.mark.parametrize("work", ["native", "upstream"])
def test_any_thread_may_step(tiny: Path, work: Work) -> None:
    """Loaded here and stepped there, one thread at a time: the same tokens, and no denormals to slow torch down.

    The compiled step sets the mode for itself and leaves the thread's as it was.
    """
    engine = Engine.load(tiny, slots=2, device="cpu", work=work)
    pcm = sound(8, engine.frame_size, seed=32)
    wanted = converse(engine, 0, pcm)

    def elsewhere() -> tuple[Call, float]:
        call = converse(engine, 0, pcm)
        return call, float(torch.full((64,), 1e-38).mul(1e-3).sum())

    with ThreadPoolExecutor(max_workers=1) as pool:
        got, smallest = pool.submit(elsewhere).result()
    assert_same(got, wanted)
    assert (smallest == 0.0) == (work == "upstream")


def _calls(engine: Engine, count: int) -> None:
    pcm = sound(2, engine.frame_size, seed=1)
    for call in range(count):
        for slot in range(2):
            engine.open(slot, SamplingParams(repetition_penalty=1.2), seed=call)
        for frame in range(5):
            engine.step(pcm, torch.tensor([True, frame % 2 == 0]))
        for slot in range(2):
            engine.close(slot)


def _live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
