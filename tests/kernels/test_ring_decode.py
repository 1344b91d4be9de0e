"""The ring's attention: against its reference, against upstream, against a list of everything said, in any order."""

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from moshi.modules.rope import RotaryEmbedding
from moshi.modules.transformer import StreamingMultiheadAttention
from moshi.utils.compile import no_compile
from torch import Tensor

from kernels import ring_decode as module
from kernels.combine import combine, combine_reference
from kernels.dialect import constexpr, jit, tl
from kernels.ring_decode import quantise, ring_decode, ring_decode_reference
from kernels.rope import rope_table, rotate, store_order
from tests.kernels.interpreter import Guarded, in_order, is_poison, permuted, same_bits

pytestmark = pytest.mark.timeout(300)  # the interpreter shares its core with whatever else runs

EXACT = 2e-6


@pytest.fixture(autouse=True)
def _many_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings here are so small that one split would do all the work."""
    monkeypatch.setattr(module, "LEAST", 1)


class Ring:
    """One layer's ring and everything round it, in poisoned memory."""

    def __init__(
        self, rows: int, heads: int, slots: int, width: int, *, times: int = 1, splits: int = 2,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        int8 = dtype == torch.int8
        self.cache = [Guarded(rows, heads, slots, width, dtype=dtype) for _ in "kv"]
        self.scales = [Guarded(rows, heads, slots) for _ in "kv"] if int8 else []
        self.partial = Guarded(rows, heads, splits, times, width)
        self.weight = Guarded(rows, heads, splits, times)
        self.out = Guarded(rows, times, heads, width)
        self.offset = torch.zeros(rows, dtype=torch.int64)

    @property
    def memory(self) -> list[Tensor]:
        return [guarded.tensor for guarded in self.cache + self.scales]

    def arguments(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        k, v = (guarded.tensor for guarded in self.cache)
        if not self.scales:
            return k, v, None, None
        return k, v, self.scales[0].tensor, self.scales[1].tensor

    def step(self, qkv: Tensor, moving: Tensor) -> Tensor:
        times, width = qkv.shape[1], qkv.shape[-1]
        table = rope_table(self.offset, times, width)
        ring_decode(qkv, *table, *self.arguments(), self.offset, moving, self.partial.tensor, self.weight.tensor)
        combine(self.partial.tensor, self.weight.tensor, moving, self.out.tensor)
        self.offset += times * moving
        for guarded in (*self.cache, *self.scales, self.partial, self.weight, self.out):
            guarded.check()
        return self.out.tensor.clone()

    def reference_step(self, qkv: Tensor, moving: Tensor) -> Tensor:
        table = rope_table(self.offset, qkv.shape[1], qkv.shape[-1])
        k, v, k_scale, v_scale = self.arguments()
        out = ring_decode_reference(qkv, *table, k, v, k_scale, v_scale, self.offset, moving)
        self.offset += qkv.shape[1] * moving
        return out


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize(
    ("rows", "heads", "slots", "width", "times", "dtype"),
    [
        (2, 2, 11, 16, 1, torch.float32),
        (2, 1, 37, 12, 1, torch.float32),
        (2, 1, 9, 16, 2, torch.float32),
        (1, 1, 1, 2, 1, torch.float32),
        (2, 1, 37, 16, 1, torch.int8),
        (1, 2, 9, 16, 2, torch.int8),
    ],
)
def test_equals_its_reference_far_past_the_ring(
    rows: int, heads: int, slots: int, width: int, times: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(slots)
    ours, wanted = (Ring(rows, heads, slots, width, times=times, dtype=dtype) for _ in range(2))
    ours.offset[0] = wanted.offset[0] = 0
    for _ in range(2 * slots // times // 3 + 9):
        qkv = draw(generator, rows, times, 3, heads, width)
        moving = torch.rand(rows, generator=generator) < 0.8
        moving[0] = True
        got, want = ours.step(qkv, moving), wanted.reference_step(qkv, moving)
        assert (got - want).abs().max() <= EXACT
        assert torch.equal(got[~moving], torch.zeros_like(got[~moving]))
    if dtype != torch.int8:  # a rounding of a last bit may move an int8 by one
        for one, other in zip(ours.memory, wanted.memory, strict=True):
            assert same_bits(one, other)


def test_a_ring_that_wrapped_long_ago() -> None:
    """Positions of an hour: the slot is the position modulo the ring, and the oldest is the one overwritten."""
    generator = torch.Generator().manual_seed(5)
    ours, wanted = Ring(1, 1, 13, 16), Ring(1, 1, 13, 16)
    history = [draw(generator, *guarded.tensor.shape) for guarded in ours.cache]
    for ring in (ours, wanted):
        ring.offset[:] = 45_000
        for guarded, values in zip(ring.cache, history, strict=True):
            guarded.tensor.copy_(values)
    for _ in range(4):
        qkv = draw(generator, 1, 1, 3, 1, 16)
        moving = torch.ones(1, dtype=torch.bool)
        assert (ours.step(qkv, moving) - wanted.reference_step(qkv, moving)).abs().max() <= EXACT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_cost_at_most_twice_what_they_cost_torch(dtype: torch.dtype) -> None:
    """Error against float32 at most twice that of plain torch in the same type.

    bfloat16 is read and not rounded to: the interpreter truncates where a GPU rounds, so the ring and the new position
    are rounded before, and the output is float32.
    """
    generator = torch.Generator().manual_seed(1)
    heads, slots, width = 2, 40, 16
    ring = Ring(1, heads, slots, width, dtype=dtype)
    k, v = (draw(generator, heads, 30, width).to(dtype) for _ in "kv")
    ring.cache[0].tensor[0, :, :30] = k[..., store_order(width)]
    ring.cache[1].tensor[0, :, :30] = v
    ring.offset[0] = 30
    qkv = draw(generator, 1, 1, 3, heads, width).to(dtype)
    cosine, sine = rope_table(ring.offset, 1, width)
    cosine, sine = torch.ones_like(cosine), torch.zeros_like(sine)
    new_k, new_v = qkv[0, 0, 1], qkv[0, 0, 2]
    every_k, every_v = torch.cat([k, new_k[:, None]], 1), torch.cat([v, new_v[:, None]], 1)
    moving = torch.ones(1, dtype=torch.bool)
    ring_decode(qkv, cosine, sine, *ring.arguments(), ring.offset, moving, ring.partial.tensor, ring.weight.tensor)
    combine(ring.partial.tensor, ring.weight.tensor, moving, ring.out.tensor)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("hd,hsd->hs", q, k) / math.sqrt(width)
        return torch.einsum("hs,hsd->hd", scores.softmax(-1), v)

    exact = plain(qkv[0, 0, 0].double(), every_k.double(), every_v.double())
    theirs = (plain(qkv[0, 0, 0], every_k, every_v).double() - exact).abs().max()
    ours = (ring.out.tensor[0, 0].double() - exact).abs().max()
    assert ours <= 2 * theirs


def test_int8_is_a_percent_away_from_float32() -> None:
    generator = torch.Generator().manual_seed(2)
    narrow, wide = Ring(1, 2, 24, 16, dtype=torch.int8), Ring(1, 2, 24, 16)
    moving = torch.ones(1, dtype=torch.bool)
    for step in range(30):
        qkv = draw(generator, 1, 1, 3, 2, 16) * (1 + step)
        error = (narrow.step(qkv, moving) - wide.reference_step(qkv, moving)).abs().max()
        assert error <= 0.02 * qkv[:, :, 2].abs().max()
    assert narrow.scales[0].tensor.std() > 0.01


def test_rows_that_do_not_move_are_neither_read_nor_written() -> None:
    generator = torch.Generator().manual_seed(3)
    ring = Ring(3, 1, 8, 16)
    qkv = draw(generator, 3, 1, 3, 1, 16)
    qkv[0] = qkv[2] = torch.nan
    out = ring.step(qkv, torch.tensor([False, True, False]))
    assert torch.equal(out[[0, 2]], torch.zeros_like(out[[0, 2]]))
    assert out[1].isfinite().all()
    for memory in (*ring.memory, ring.partial.tensor, ring.weight.tensor):
        assert is_poison(memory[[0, 2]]).all()
    for memory in ring.memory:
        assert not is_poison(memory[1, :, 0]).any()
        assert is_poison(memory[1, :, 1:]).all()


def test_nobody_moves() -> None:
    ring = Ring(2, 1, 8, 16)
    out = ring.step(torch.full((2, 1, 3, 1, 16), torch.nan), torch.zeros(2, dtype=torch.bool))
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize(("splits", "tile", "least"), [(1, 1, 1), (4, 1, 1), (8, 16, 1), (8, 1, 5), (8, 64, 128)])
def test_splits_and_tiles_change_nothing(splits: int, tile: int, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE", tile)
    monkeypatch.setattr(module, "LEAST", least)
    generator = torch.Generator().manual_seed(4)
    ours, wanted = Ring(1, 1, 21, 16, splits=splits), Ring(1, 1, 21, 16)
    moving = torch.ones(1, dtype=torch.bool)
    history = [draw(generator, *guarded.tensor.shape) for guarded in ours.cache]
    for past in (0, 1, 17, 21, 50):
        for ring in (ours, wanted):
            ring.offset[:] = past
            for guarded, values in zip(ring.cache, history, strict=True):
                guarded.tensor.copy_(values)
                guarded.tensor[:, :, min(past, 21) :] = torch.nan
        qkv = draw(generator, 1, 1, 3, 1, 16)
        assert (ours.step(qkv, moving) - wanted.reference_step(qkv, moving)).abs().max() <= EXACT


def test_a_rows_bits_do_not_depend_on_its_company() -> None:
    generator = torch.Generator().manual_seed(6)
    alone, crowd = Ring(1, 2, 9, 16, splits=4), Ring(3, 2, 9, 16, splits=4)
    for _ in range(12):
        qkv = draw(generator, 3, 1, 3, 2, 16)
        moving = torch.rand(3, generator=generator) < 0.5
        moving[1] = True
        together = crowd.step(qkv, moving)
        assert torch.equal(together[1], alone.step(qkv[1:2], torch.ones(1, dtype=torch.bool))[0])


def test_a_row_may_lie_beyond_two_to_the_thirty_one() -> None:
    """Addresses are 64 bits wide: the second row's ring begins 2**31 + 4096 bytes after the first's."""
    heads, slots, width = 1, 4, 16
    apart = 2**31 + 4096
    storage = torch.empty(apart + 4096, dtype=torch.int8)  # never touched, so never in memory
    size = heads * slots * width
    k, v = (
        storage[start:].as_strided((2, heads, slots, width), (apart, slots * width, width, 1)) for start in (0, size)
    )
    scales = [torch.zeros(2, heads, slots) for _ in "kv"]
    wanted = Ring(2, heads, slots, width, dtype=torch.int8)
    offset, moving = torch.zeros(2, dtype=torch.int64), torch.tensor([False, True])
    partial, weight, out = (
        torch.empty(2, heads, 2, 1, width),
        torch.empty(2, heads, 2, 1),
        torch.empty(2, 1, heads, width),
    )
    generator = torch.Generator().manual_seed(7)
    for _ in range(2):
        qkv = draw(generator, 2, 1, 3, heads, width)
        ring_decode(qkv, *rope_table(offset, 1, width), k, v, *scales, offset, moving, partial, weight)
        combine(partial, weight, moving, out)
        assert (out - wanted.reference_step(qkv, moving)).abs().max() <= EXACT
        offset += moving
    assert torch.equal(k[1, :, :2], wanted.memory[0][1, :, :2])


@jit
def _racy_kernel(value, ring, out, P: constexpr):  # type: ignore[no-untyped-def]
    """What `ring_decode` would be if every split read the new slot from memory: split 0 has not always written it."""
    split = tl.program_id(0)
    if split == 0:
        tl.store(ring, tl.load(value))
    tl.store(out + split, tl.load(ring))


def test_the_bench_catches_a_planted_race() -> None:
    """In the stock order the racy kernel looks right; in others it does not."""

    def race() -> Tensor:
        ring, out = torch.full((1,), -1.0), torch.zeros(8)
        _racy_kernel[(8,)](torch.ones(1), ring, out, P=8)
        return out

    with in_order():
        assert torch.equal(race(), torch.ones(8))
    with permuted(0):
        assert any(not torch.equal(race(), torch.ones(8)) for _ in range(3))


@pytest.mark.parametrize(("times", "slots"), [(1, 12), (2, 10)])
def test_parity_with_upstream(times: int, slots: int) -> None:
    """Upstream's module in streaming mode, with masks, more than once round the ring."""
    heads, width, rows = 2, 16, 2
    torch.manual_seed(0)
    theirs = StreamingMultiheadAttention(
        heads * width, heads, causal=True, context=slots, rope=RotaryEmbedding(interleave=True)
    )
    theirs.streaming_forever(rows)
    ring = Ring(rows, heads, slots, width, times=times)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad(), no_compile():
        for _ in range(2 * slots // times):
            moving = torch.rand(rows, generator=generator) < 0.7
            theirs.set_exec_mask(moving)
            x = draw(generator, rows, times, heads * width)
            want = theirs(x, x, x)
            qkv = theirs.in_projs[0](x).view(rows, times, 3, heads, width)
            got = theirs.out_projs[0](ring.step(qkv, moving).flatten(2))
            assert torch.allclose(got[moving], want[moving], atol=2e-6)


def test_combine_alone() -> None:
    """Splits without weight are not even read."""
    generator = torch.Generator().manual_seed(9)
    partial, weight, out = Guarded(2, 1, 4, 1, 12), Guarded(2, 1, 4, 1), Guarded(2, 1, 1, 12)
    partial.tensor[0, :, 1:3] = draw(generator, 1, 2, 1, 12)
    weight.tensor[0] = torch.tensor([-torch.inf, 3.0, -200.0, -torch.inf])[None, :, None]
    moving = torch.tensor([True, False])
    combine(partial.tensor, weight.tensor, moving, out.tensor)
    out.check()
    assert torch.allclose(out.tensor, combine_reference(partial.tensor, weight.tensor, moving), atol=EXACT)
    assert torch.allclose(out.tensor[0, 0, 0], partial.tensor[0, 0, 1, 0], atol=EXACT)


def test_opcheck() -> None:
    ring = Ring(1, 1, 5, 4, dtype=torch.int8)
    for memory in (*ring.memory, ring.partial.tensor, ring.weight.tensor, ring.out.tensor):
        memory.zero_()
    moving, qkv = torch.ones(1, dtype=torch.bool), torch.randn(1, 1, 3, 1, 4)
    table = rope_table(ring.offset, 1, 4)
    arguments = (qkv, *table, *ring.arguments(), ring.offset, moving, ring.partial.tensor, ring.weight.tensor)
    torch.library.opcheck(ring_decode, arguments)
    torch.library.opcheck(combine, (ring.partial.tensor, ring.weight.tensor, moving, ring.out.tensor))


def test_what_does_not_belong_together_is_refused() -> None:
    ring = Ring(1, 1, 8, 16)
    moving, table = torch.ones(1, dtype=torch.bool), rope_table(ring.offset, 1, 16)
    rest: Any = (*ring.arguments(), ring.offset, moving, ring.partial.tensor, ring.weight.tensor)
    with pytest.raises(ValueError, match="expected contiguous"):
        ring_decode(torch.zeros(1, 1, 3, 1, 16).double(), table[0][:, :, :4], table[1], *rest)
    with pytest.raises(ValueError, match="scales with int8"):
        ring_decode(
            torch.zeros(1, 1, 3, 1, 16), *table, *rest[:2], torch.zeros(1, 1, 8), torch.zeros(1, 1, 8), *rest[4:]
        )
    with pytest.raises(ValueError, match="powers of two"):
        ring_decode(torch.zeros(1, 3, 3, 1, 16), *rope_table(ring.offset, 3, 16), *rest)


def test_quantise_keeps_zero_and_the_largest() -> None:
    x = torch.tensor([[0.0, 1.0, -127.0, 63.4], [0.0, 0.0, 0.0, 0.0]])
    values, scale = quantise(x)
    assert values.tolist() == [[0, 1, -127, 63], [0, 0, 0, 0]]
    assert scale[0] == 1.0


def test_rotate_is_upstreams_rope() -> None:
    x, offset = torch.randn(2, 3, 2, 8), torch.tensor([0, 17])
    with no_compile():
        want, _ = RotaryEmbedding(interleave=True)(x, x, offset, time_before_heads=True)
    assert torch.allclose(rotate(x, *rope_table(offset, 3, 8)), want[..., store_order(8)], atol=1e-6)


class Conversation(RuleBasedStateMachine):
    """Rows step, pause, start anew and wrap, against lists of everything that was said."""

    @initialize(seed=st.integers(0, 1000), int8=st.booleans())
    def begin(self, seed: int, int8: bool) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.tolerance = 0.1 if int8 else EXACT
        self.ring = Ring(2, 1, 5, 4, dtype=torch.int8 if int8 else torch.float32)
        self.said: list[list[Tensor]] = [[], []]

    @rule(rows=st.sampled_from([(True, True), (True, False), (False, True), (False, False)]))
    def step(self, rows: tuple[bool, bool]) -> None:
        qkv = draw(self.generator, 2, 1, 3, 1, 4)
        got = self.ring.step(qkv, torch.tensor(rows))
        for row, moved in enumerate(rows):
            if moved:
                self.said[row].append(qkv[row, 0, :, 0])
                assert torch.allclose(got[row, 0, 0], self._expected(row), atol=self.tolerance)
            else:
                assert torch.equal(got[row], torch.zeros_like(got[row]))

    @rule(row=st.integers(0, 1))
    def start_anew(self, row: int) -> None:
        self.said[row] = []
        self.ring.offset[row] = 0
        for memory in self.ring.memory:
            memory[row] = torch.nan if memory.dtype.is_floating_point else 77

    @rule()
    def wrap(self) -> None:
        for _ in range(5):
            self.step((True, False))

    def _expected(self, row: int) -> Tensor:
        past = len(self.said[row])
        seen = range(max(0, past - 5), past)
        qkv = torch.stack([self.said[row][place] for place in seen])
        table = rope_table(torch.tensor([seen[0]]), len(seen), 4)
        q, k = (rotate(qkv[None, :, part, None], *table)[0, :, 0] for part in (0, 1))
        return (k @ q[-1] / 2.0).softmax(0) @ qkv[:, 2]


TestConversation = Conversation.TestCase
TestConversation.settings = settings(
    max_examples=4, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
