"""Kernels one by one on a GPU: time, the share of the bytes a second that they reach, and torch's own way beside them.

Sizes are those of a model's attention and feed-forward blocks, one layer. It knows no engine.

Legend: B rows, H heads, D width of a head, S ring slots.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.report import Row, compare
from kernels.combine import combine
from kernels.norm_gate import rms_norm, swiglu
from kernels.ring_decode import SPLITS, ring_decode
from kernels.roofline import Model, ring_bytes
from kernels.rope import rope_table

__all__ = ["sweep"]

_WARM_UPS: Final = 5
_MAX_PERIOD: Final = 10_000.0


class _Timed(msgspec.Struct, frozen=True, kw_only=True):
    """Median seconds of ours and of torch's."""

    ours: float
    torch: float


def sweep(
    model: Model, device: torch.device, *, rows: Sequence[int], ages: Sequence[int], repeats: int
) -> Iterator[Row]:
    """Measure one layer's kernels at every width; the ring also at every age (frames), in 16 bits and in 8."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for width in rows:
        for age in ages:
            for int8 in (False, True):
                yield _ring(model, device, dtype, width, age, int8=int8, repeats=repeats)
        yield _norm(model, device, dtype, width, repeats)
        yield _gate(model, device, dtype, width, repeats)


def _ring(
    model: Model, device: torch.device, dtype: torch.dtype, rows: int, age: int, *, int8: bool, repeats: int
) -> Row:
    """Against attention over every slot of a ring that lies ready, as the stock model has it, without its write."""
    heads, width, slots = model.heads, model.dim // model.heads, model.context
    kind = torch.int8 if int8 else dtype
    k, v = (torch.zeros(rows, heads, slots, width, dtype=kind, device=device) for _ in "kv")
    scales = [torch.ones(rows, heads, slots, device=device) if int8 else None for _ in "kv"]
    qkv = torch.randn(rows, 1, 3, heads, width, dtype=dtype, device=device)
    offset = torch.full((rows,), age, dtype=torch.int64, device=device)
    moving = torch.ones(rows, dtype=torch.bool, device=device)
    partial = torch.zeros(rows, heads, SPLITS, 1, width, device=device)
    weight = torch.zeros(rows, heads, SPLITS, 1, device=device)
    out = torch.zeros(rows, 1, heads, width, dtype=dtype, device=device)
    table = rope_table(offset, 1, width, _MAX_PERIOD)
    full_k, full_v = (torch.zeros(rows, heads, slots, width, dtype=dtype, device=device) for _ in "kv")
    seen = (torch.arange(slots, device=device) < age).expand(rows, 1, 1, slots)

    def ours() -> None:
        ring_decode(qkv, *table, k, v, *scales, offset, moving, partial, weight)
        combine(partial, weight, moving, out)

    def theirs() -> None:
        functional.scaled_dot_product_attention(qkv[:, :, 0].transpose(1, 2), full_k, full_v, attn_mask=seen)

    name = f"ring_decode_us_rows_{rows}_age_{age}_{'int8' if int8 else _short(dtype)}"
    needed = rows * ring_bytes(model, age, int8=int8).needed
    return _row(name, _timed(ours, theirs, device, repeats), needed, "attention over the whole ring")


def _norm(model: Model, device: torch.device, dtype: torch.dtype, rows: int, repeats: int) -> Row:
    x, update = (torch.randn(rows, model.dim, dtype=dtype, device=device) for _ in range(2))
    alpha = torch.ones(1, 1, model.dim, dtype=torch.float32, device=device)
    eps = 1e-8

    def theirs() -> Tensor:
        total = (x + update).float()
        return (total * alpha[0] * torch.rsqrt(eps + total.square().mean(-1, keepdim=True))).to(dtype)

    timed = _timed(lambda: rms_norm(x, update, alpha, eps), theirs, device, repeats)
    return _row(f"rms_norm_us_rows_{rows}", timed, 4 * x.nbytes + alpha.nbytes, "torch, operation by operation")


def _gate(model: Model, device: torch.device, dtype: torch.dtype, rows: int, repeats: int) -> Row:
    x = torch.randn(rows, 2 * model.hidden, dtype=dtype, device=device)

    def theirs() -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        return functional.silu(gate) * value

    timed = _timed(lambda: swiglu(x), theirs, device, repeats)
    return _row(f"swiglu_us_rows_{rows}", timed, x.nbytes * 3 // 2, "torch, operation by operation")


def _row(name: str, timed: _Timed, needed: float, peer: str) -> Row:
    reached = f"{needed / timed.ours / 1e9:.0f} GB/s of the bytes that must move"
    return compare(
        name, 1e6 * timed.ours, "us", better="lower", peer=peer, peer_value=1e6 * timed.torch, remark=reached
    )


def _timed(ours: Callable[[], object], theirs: Callable[[], object], device: torch.device, repeats: int) -> _Timed:
    """Both in turns, each call by itself, so that nothing is kept warm for one of them alone."""
    found: tuple[list[float], list[float]] = ([], [])
    for repeat in range(_WARM_UPS + repeats):
        for run, into in zip((ours, theirs), found, strict=True):
            seconds = _seconds(run, device)
            if repeat >= _WARM_UPS:
                into.append(seconds)
    return _Timed(ours=statistics.median(found[0]), torch=statistics.median(found[1]))


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def _short(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32")
