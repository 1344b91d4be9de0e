"""Norm and gate: against their references, against upstream's modules, and their gradients against autograd's."""

import pytest
import torch
from moshi.modules.gating import make_gating
from moshi.modules.transformer import create_norm_fn
from moshi.utils.compile import no_compile
from torch import Tensor
from torch.nn import functional

from kernels import norm_gate
from kernels.norm_gate import rms_norm, rms_norm_reference, swiglu, swiglu_reference
from tests.kernels.interpreter import Guarded

EPSILON = 1e-8


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("width", [1, 17, 1027])
@pytest.mark.parametrize("residual", [True, False])
def test_rms_norm_equals_its_reference(width: int, residual: bool) -> None:
    x, update, alpha = draw(2, 3, width), draw(2, 3, width, seed=1), draw(width, seed=2)
    total, out = rms_norm(x, update if residual else None, alpha, EPSILON)
    want_total, want = rms_norm_reference(x, update if residual else torch.zeros_like(x), alpha, EPSILON)
    assert torch.equal(total, want_total)
    assert torch.allclose(out, want, atol=1e-6, rtol=1e-6)


def test_rms_norm_is_upstreams() -> None:
    theirs = create_norm_fn("rms_norm_f32", 48)
    with torch.no_grad(), no_compile():
        theirs.alpha.copy_(draw(1, 1, 48, seed=3))
        x = draw(2, 1, 48)
        assert torch.allclose(rms_norm(x, None, theirs.alpha, theirs.eps)[1], theirs(x), atol=1e-6)


def test_rms_norm_in_half_precision_errs_at_most_twice_as_much_as_torch() -> None:
    x, update, alpha = (draw(4, 65, dtype=torch.float16, seed=seed) for seed in range(3))
    _, out = rms_norm(x, update, alpha[0].contiguous(), EPSILON)
    total = (x + update).double()  # the stream's own rounding belongs to it
    exact = total / (EPSILON + total.square().mean(-1, keepdim=True)).sqrt() * alpha[0].double()
    plain = (x + update) * torch.rsqrt(EPSILON + (x + update).square().mean(-1, keepdim=True)) * alpha[0]
    assert (out - exact).abs().max() <= 2 * (plain - exact).abs().max()


def test_bfloat16_in_gives_float32_sums() -> None:
    """What is read is bfloat16 that torch rounded; the gradient of a float32 stream beside it is exact."""
    x = draw(2, 33, dtype=torch.bfloat16)
    out = Guarded(2, 33)
    norm_gate.rms_norm_kernel[(2,)](x, x, draw(33, seed=1), x, out.tensor, EPSILON, N=33, WIDE=64, RESIDUAL=False)
    out.check()
    want = rms_norm_reference(x.float(), torch.zeros(2, 33), draw(33, seed=1), EPSILON)[1]
    assert torch.allclose(out.tensor, want, atol=1e-6)


@pytest.mark.parametrize("width", [1, 30, 1030])
def test_swiglu_equals_its_reference(width: int) -> None:
    x = draw(3, 2 * width) * 4
    assert torch.allclose(swiglu(x), swiglu_reference(x), atol=1e-6, rtol=1e-6)


def test_swiglu_is_the_middle_of_upstreams_gate() -> None:
    gate = make_gating("silu", 16, 66)
    x = draw(2, 1, 16)
    with torch.no_grad(), no_compile():
        want = gate(x)
        assert torch.allclose(functional.linear(swiglu(gate.linear_in(x)), gate.linear_out.weight), want, atol=1e-6)


def test_swiglu_in_half_precision_errs_at_most_twice_as_much_as_torch() -> None:
    x = draw(4, 66, dtype=torch.float16)
    gate, value = x.chunk(2, dim=-1)
    exact = functional.silu(gate.double()) * value.double()
    plain = functional.silu(gate) * value
    assert (swiglu(x) - exact).abs().max() <= 2 * (plain - exact).abs().max()


def test_gradients_are_autograds() -> None:
    alpha = draw(9, seed=4)
    given = [draw(2, 9, seed=seed).requires_grad_() for seed in (5, 6)]
    weights = draw(2, 9, seed=7), draw(2, 9, seed=8)

    def gradients(total: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((total * weights[0]).sum() + (out * weights[1]).sum(), given)

    ours = gradients(*rms_norm(given[0], given[1], alpha, EPSILON))
    theirs = gradients(*rms_norm_reference(given[0], given[1], alpha, EPSILON))
    for got, want in zip(ours, theirs, strict=True):
        assert torch.allclose(got, want, atol=1e-6)

    x = draw(3, 22).requires_grad_()
    (got,) = torch.autograd.grad((swiglu(x) * draw(3, 11, seed=9)).sum(), x)
    (want,) = torch.autograd.grad((swiglu_reference(x) * draw(3, 11, seed=9)).sum(), x)
    assert torch.allclose(got, want, atol=1e-6)


def test_opcheck() -> None:
    x = draw(2, 6).requires_grad_()
    torch.library.opcheck(
        torch.ops.duologue.rms_norm.default, (x, draw(2, 6, seed=1).requires_grad_(), draw(6), EPSILON)
    )
    torch.library.opcheck(swiglu, (x,))


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match="update is"):
        rms_norm(draw(2, 6), draw(2, 5), draw(6), EPSILON)
    with pytest.raises(ValueError, match="alpha has 5"):
        rms_norm(draw(2, 6), None, draw(5), EPSILON)
    with pytest.raises(ValueError, match="even width"):
        swiglu(draw(2, 5))
