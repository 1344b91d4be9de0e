"""Streaming attention over a ring, against attention over everything that was ever said."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kernels.cpu import Program, RowMemory
from kernels.cpu.program import LARGEST_CONTEXT, Counter, UnsupportedModelError
from tests.kernels.lab import machine, step

FREQUENCIES = 10000.0


def turned(x_THD: torch.Tensor) -> torch.Tensor:
    """RoPE as upstream has it: neighbouring numbers are a pair."""
    times, _, width = x_THD.shape
    rate = torch.exp(torch.arange(width // 2) * (-math.log(FREQUENCIES) * 2 / width))
    angle = torch.arange(times)[:, None, None] * rate
    real, imaginary = x_THD[..., 0::2], x_THD[..., 1::2]
    cosine, sine = angle.cos(), angle.sin()
    pairs = torch.stack([real * cosine - imaginary * sine, real * sine + imaginary * cosine], -1)
    return pairs.flatten(-2)


def reference(
    qkv_T3HD: NDArray[np.float32], capacity: int, times: int, *, rope: bool, bf16: bool = False
) -> torch.Tensor:
    """Every position sees the last `capacity` that are in the ring when its step writes, as the ring keeps them."""
    q, k, v = torch.from_numpy(qkv_T3HD).double().unbind(1)
    if rope:
        q, k = turned(q), turned(k)
    if bf16:
        k, v = (each.float().bfloat16().double() for each in (k, v))
    total = len(q)
    here, there = torch.arange(total)[:, None], torch.arange(total)[None]
    newest = (here // times + 1) * times - 1
    seen = (there <= here) & (there > newest - capacity)
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -math.inf).softmax(-1), v)


@pytest.mark.parametrize(
    ("heads", "width", "capacity", "times"),
    [
        (1, 2, 5, 1),
        (3, 12, 24, 1),
        (2, 32, 50, 2),
        (4, 40, 16, 1),
        (2, 64, 33, 2),
        (1, 6, 750, 1),
    ],
)
@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("bf16", [False, True])
def test_far_past_the_ring(heads: int, width: int, capacity: int, times: int, rope: bool, bf16: bool) -> None:
    """Three times round the ring; what was never written is poison."""
    steps = (min(3 * capacity, 900)) // times
    generator = np.random.default_rng(capacity)
    qkv = generator.standard_normal((steps * times, 3, heads, width)).astype(np.float32)
    wanted = reference(qkv, capacity, times, rope=rope, bf16=bf16)
    program, memory = Program(), RowMemory()
    at, to = memory.scratch(times * 3 * heads * width), memory.scratch(times * heads * width)
    ring = memory.ring(heads, width, capacity, bf16=bf16)
    table = -1
    if rope:
        table = memory.scratch(times * width)
        rate = torch.exp(torch.arange(width // 2) * (-math.log(FREQUENCIES) * 2 / width))
        program.rope(table, rate, Counter.STEPS, times=times)
    program.attend(
        at, to, ring, heads=heads, width=width, capacity=capacity, at=Counter.STEPS, table=table, times=times, bf16=bf16
    )
    made = machine(program, memory, rows=2)
    made.memory[1, ring:].view(np.uint32)[:] = 0xFFFFFFFF  # no number, and no two short ones
    for now in range(steps):
        given = qkv[now * times : (now + 1) * times]
        made.memory[1, at : at + given.size] = given.ravel()
        step(made, [1])
        got = made.memory[1, to : to + times * heads * width].reshape(times, heads, width)
        np.testing.assert_allclose(got, wanted[now * times : (now + 1) * times].numpy(), atol=2e-4, rtol=2e-4)


def test_a_fixed_position() -> None:
    """The depth transformer's steps are positions 0, 1, 2... of each frame, and remember nothing of the last."""
    heads, width, places = 2, 8, 5
    program, memory = Program(), RowMemory()
    size = 3 * heads * width
    at, to = memory.scratch(places * size), memory.scratch(places * heads * width)
    ring = memory.ring(heads, width, places)
    for place in range(places):
        program.attend(
            at + place * size, to + place * heads * width, ring, heads=heads, width=width, capacity=places, at=place
        )
    made = machine(program, memory)
    for frame in range(3):
        qkv = np.random.default_rng(frame).standard_normal((places, 3, heads, width)).astype(np.float32)
        made.memory[0, at : at + qkv.size] = qkv.ravel()
        step(made)
        got = made.memory[0, to : to + places * heads * width].reshape(places, heads, width)
        np.testing.assert_allclose(got, reference(qkv, places, 1, rope=False).numpy(), atol=1e-5)


def test_a_context_too_long_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=str(LARGEST_CONTEXT)):
        Program().attend(0, 0, 0, heads=1, width=2, capacity=LARGEST_CONTEXT + 1, at=0)
