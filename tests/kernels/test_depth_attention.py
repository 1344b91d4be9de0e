"""The depth transformer's attention: against its reference and upstream's module, over whole frames."""

import pytest
import torch
from moshi.modules.transformer import StreamingMultiheadAttention
from moshi.utils.compile import no_compile

from kernels.depth_attention import depth_attention, depth_attention_reference
from tests.kernels.interpreter import Guarded, is_poison


@pytest.mark.parametrize(("rows", "heads", "width", "slots"), [(3, 2, 16, 8), (2, 1, 12, 5), (1, 1, 2, 1)])
def test_equals_its_reference_over_a_frame(rows: int, heads: int, width: int, slots: int) -> None:
    generator = torch.Generator().manual_seed(slots)
    k, v, out = Guarded(rows, heads, slots, width), Guarded(rows, heads, slots, width), Guarded(rows, heads, width)
    want_k, want_v = k.tensor.clone(), v.tensor.clone()
    moving = torch.ones(rows, dtype=torch.bool)
    moving[-1] = rows == 1
    for position in range(slots):
        qkv = torch.randn(rows, 3, heads, width, generator=generator)
        qkv[~moving] = torch.nan
        depth_attention(qkv, k.tensor, v.tensor, position, moving, out.tensor)
        want = depth_attention_reference(qkv, want_k, want_v, position, moving)
        assert torch.allclose(out.tensor, want, atol=1e-6)
        for ours, theirs in ((k, want_k), (v, want_v)):
            ours.check()
            assert torch.equal(ours.tensor[moving, :, : position + 1], theirs[moving, :, : position + 1])
            assert is_poison(ours.tensor[:, :, position + 1 :]).all()
            assert is_poison(ours.tensor[~moving]).all()
        out.check()


def test_half_precision_errs_at_most_twice_as_much_as_torch() -> None:
    generator = torch.Generator().manual_seed(1)
    heads, width, slots = 2, 16, 8
    said = torch.randn(slots, 1, 3, heads, width, generator=generator).half()
    k, v = (torch.zeros(1, heads, slots, width, dtype=torch.float16) for _ in "kv")
    out = torch.zeros(1, heads, width)
    for position in range(slots):
        depth_attention(said[position], k, v, position, torch.ones(1, dtype=torch.bool), out)

    def plain(dtype: torch.dtype) -> torch.Tensor:
        q, keys, values = said[-1, 0, 0].to(dtype), said[:, 0, 1].to(dtype), said[:, 0, 2].to(dtype)
        scores = torch.einsum("hd,shd->hs", q, keys) / width**0.5
        return torch.einsum("hs,shd->hd", scores.softmax(-1), values)

    exact = plain(torch.float64)
    assert (out[0] - exact).abs().max() <= 2 * (plain(torch.float16) - exact).abs().max()


def test_parity_with_upstream() -> None:
    """Other weights at every step, as the depth transformer has them."""
    heads, width, steps, rows = 2, 8, 4, 2
    torch.manual_seed(0)
    theirs = StreamingMultiheadAttention(heads * width, heads, causal=True, context=steps, weights_per_step=steps)
    k, v = (torch.full((rows, heads, steps, width), torch.nan) for _ in "kv")
    out, moving = torch.empty(rows, heads, width), torch.ones(rows, dtype=torch.bool)
    with torch.no_grad(), no_compile(), theirs.streaming(rows):
        for step in range(steps):
            x = torch.randn(rows, 1, heads * width)
            qkv = theirs.in_projs[step](x).view(rows, 3, heads, width)
            depth_attention(qkv, k, v, step, moving, out)
            assert torch.allclose(theirs.out_projs[step](out.flatten(1)), theirs(x, x, x)[:, 0], atol=1e-6)


def test_opcheck_and_refusals() -> None:
    k, v, out = torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 4)
    moving = torch.ones(1, dtype=torch.bool)
    torch.library.opcheck(depth_attention, (torch.randn(1, 3, 1, 4), k, v, 1, moving, out))
    with pytest.raises(ValueError, match="position 3"):
        depth_attention(torch.randn(1, 3, 1, 4), k, v, 3, moving, out)
    with pytest.raises(ValueError, match="v is"):
        depth_attention(torch.randn(1, 3, 1, 4), k, v[:, :, :2], 1, moving, out)
