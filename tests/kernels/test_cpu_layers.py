"""Each operation of the compiled step against torch, at sizes that fill no vector."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional

from kernels.cpu import Program, RowMemory
from tests.kernels.lab import machine, run, step

SIZES = (1, 3, 15, 16, 17, 31, 48, 50)


def numbers(seed: int, *size: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    width_in=st.integers(1, 70),
    width_out=st.integers(1, 150),
    times=st.integers(1, 20),
    bias=st.booleans(),
    add=st.booleans(),
    short=st.booleans(),
)
def test_matmul(width_in: int, width_out: int, times: int, bias: bool, add: bool, short: bool) -> None:
    weight = torch.from_numpy(numbers(1, width_out, width_in))
    if short:
        weight = weight.bfloat16().float()
    offset = torch.from_numpy(numbers(2, width_out)) if bias else None
    x, before = numbers(3, times, width_in), numbers(4, times, width_out)
    program, memory = Program(), RowMemory()
    at, to = memory.scratch(x.size), memory.scratch(before.size)
    program.matmul(at, to, weight, offset, times=times, x_stride=width_in, y_stride=width_out, add=add)
    assert program.ops[0]["bf16"] == short
    got = run(program, memory, {at: x, to: before}, to, before.size).reshape(times, width_out)
    wanted = x.astype(np.float64) @ weight.double().numpy().T
    wanted += 0 if offset is None else offset.double().numpy()
    wanted += before if add else 0
    np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_matmul_is_the_same_to_the_last_bit_in_any_company() -> None:
    width_in, width_out, rows = 200, 300, 19
    program, memory = Program(), RowMemory()
    at, to = memory.scratch(width_in), memory.scratch(width_out)
    program.matmul(at, to, torch.from_numpy(numbers(1, width_out, width_in)))
    made = machine(program, memory, rows=rows)
    made.memory[:, at : at + width_in] = numbers(2, rows, width_in)
    step(made)
    together = made.memory[:, to : to + width_out].copy()
    for company in ([0], [3, 1], [5, 6, 7], list(range(4, 17)), list(range(18, -1, -1))):
        made.memory[:, to : to + width_out] = 0
        step(made, company)
        np.testing.assert_array_equal(made.memory[company, to : to + width_out], together[company])


def test_threads_change_no_number() -> None:
    width, rows = 64, 23
    results = []
    for threads in (1, 2, 3):
        program, memory = Program(), RowMemory()
        at, to = memory.scratch(width), memory.scratch(width)
        program.matmul(at, to, torch.from_numpy(numbers(1, width, width)))
        made = machine(program, memory, rows=rows, threads=threads)
        made.memory[:, at : at + width] = numbers(2, rows, width)
        step(made)
        results.append(made.memory[:, to : to + width].copy())
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("n", SIZES)
def test_elu_and_gelu(n: int) -> None:
    for name, reference in (("elu", functional.elu), ("gelu", functional.gelu)):
        x = np.concatenate([numbers(n, n, scale=3.0)[: n - 1], [np.float32(-120.0)]]).astype(np.float32)
        program, memory = Program(), RowMemory()
        at, to = memory.scratch(n), memory.scratch(n)
        getattr(program, name)(at, to, n)
        got = run(program, memory, {at: x}, to, n)
        np.testing.assert_allclose(got, reference(torch.from_numpy(x)).numpy(), atol=1e-6, rtol=2e-6)


def test_elu_over_its_whole_range() -> None:
    x = np.linspace(-100, 100, 40_000, dtype=np.float32)
    program, memory = Program(), RowMemory()
    at = memory.scratch(x.size)
    program.elu(at, at, x.size)
    got = run(program, memory, {at: x}, at, x.size)
    np.testing.assert_allclose(got, functional.elu(torch.from_numpy(x)).numpy(), atol=2e-7, rtol=1e-6)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("times", [1, 3])
def test_gate(n: int, times: int) -> None:
    x = numbers(n, times, 2, n, scale=4.0)
    program, memory = Program(), RowMemory()
    at, to = memory.scratch(x.size), memory.scratch(times * n)
    program.gate(at, to, n, times=times)
    got = run(program, memory, {at: x}, to, times * n).reshape(times, n)
    wanted = functional.silu(torch.from_numpy(x[:, 0])) * torch.from_numpy(x[:, 1])
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-6, rtol=2e-6)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("times", [1, 2])
def test_norms(n: int, times: int) -> None:
    x, alpha, beta = numbers(n, times, n), numbers(n + 1, n), numbers(n + 2, n)
    for centred in (False, True):
        program, memory = Program(), RowMemory()
        at, to = memory.scratch(x.size), memory.scratch(x.size)
        weight, bias, given = torch.from_numpy(alpha), torch.from_numpy(beta), torch.from_numpy(x)
        if centred:
            program.layer_norm(at, to, weight, bias, 1e-5, times=times)
            wanted = functional.layer_norm(given, (n,), weight, bias, 1e-5)
        else:
            program.rms_norm(at, to, weight, 1e-8, times=times)
            wanted = given * (weight * torch.rsqrt(1e-8 + given.square().mean(-1, keepdim=True)))
        got = run(program, memory, {at: x}, to, x.size).reshape(times, n)
        np.testing.assert_allclose(got, wanted.numpy(), atol=3e-6, rtol=3e-5)


@settings(max_examples=25, deadline=None)
@given(bins=st.integers(1, 70), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_quantise_takes_the_nearest_and_leaves_the_rest(bins: int, width: int, seed: int) -> None:
    centroids, x = numbers(seed, bins, width), numbers(seed + 1, width)
    program, memory = Program(), RowMemory()
    at = memory.scratch(width)
    program.quantise(at, torch.from_numpy(centroids), 0)
    made = machine(program, memory)
    made.memory[0, at : at + width] = x
    step(made)
    nearest = int(np.square(centroids.astype(np.float64) - x).sum(axis=1).argmin())
    assert made.tokens[0, 1, 0] == nearest
    np.testing.assert_allclose(made.memory[0, at : at + width], x - centroids[nearest], atol=1e-6)


def test_quantise_takes_the_first_of_two_alike() -> None:
    centroids = np.repeat(numbers(5, 3, 4), 9, axis=0)
    program, memory = Program(), RowMemory()
    at = memory.scratch(4)
    program.quantise(at, torch.from_numpy(centroids), 0)
    made = machine(program, memory)
    made.memory[0, at : at + 4] = centroids[10]
    step(made)
    assert made.tokens[0, 1, 0] == 9


def test_history_moves_on() -> None:
    program, memory = Program(), RowMemory()
    at = memory.state(10)
    program.shift(at, 6, 4)
    made = machine(program, memory)
    made.memory[0, at : at + 10] = np.arange(10)
    step(made)
    assert made.memory[0, at : at + 6].tolist() == [4, 5, 6, 7, 8, 9]
