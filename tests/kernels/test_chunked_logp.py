"""Log-probabilities without the logits: against the full softmax, forward and backward, and never more than a chunk."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import chunked_logp as module
from kernels.chunked_logp import chunked_logp, chunked_logp_reference


def given(frames: int, width: int, card: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(card)
    hidden = torch.randn(frames, width, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(card, width, generator=generator).to(dtype).requires_grad_()
    target = torch.randint(card, (frames,), generator=generator)
    target[1::4] = -1
    return hidden, weight, target


@pytest.mark.parametrize("interpreted", [True, False])
@pytest.mark.parametrize(("card", "chunk"), [(40, 7), (40, 40), (33, 64), (1, 1)])
def test_equals_the_full_softmax(card: int, chunk: int, interpreted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels and the processor's own path alike."""
    monkeypatch.setattr(module, "uses_triton", lambda _: interpreted)
    monkeypatch.setattr(module, "BLOCK", 16)
    hidden, weight, target = given(6, 5, card)
    slope = torch.randn(6, generator=torch.Generator().manual_seed(1))
    ours, theirs = chunked_logp(hidden, weight, target, chunk=chunk), chunked_logp_reference(hidden, weight, target)
    assert torch.allclose(ours, theirs, atol=2e-6)
    assert torch.equal(ours[1::4], torch.zeros_like(ours[1::4]))
    for got, want in zip(
        torch.autograd.grad((ours * slope).sum(), (hidden, weight)),
        torch.autograd.grad((theirs * slope).sum(), (hidden, weight)),
        strict=True,
    ):
        assert torch.allclose(got, want, atol=5e-6)


def test_padding_stops_everything_even_a_gradient_that_is_no_number() -> None:
    hidden, weight, target = given(6, 5, 12)
    logp = chunked_logp(hidden, weight, target, chunk=5)
    (gradient,) = torch.autograd.grad(logp, hidden, torch.where(target < 0, torch.nan, 1.0))
    assert gradient.isfinite().all()
    assert torch.equal(gradient[1], torch.zeros(5))


def test_a_frozen_weight_costs_no_gradient() -> None:
    hidden, weight, target = given(6, 5, 12)
    logp = chunked_logp(hidden, weight.detach(), target, chunk=5)
    (gradient,) = torch.autograd.grad(logp.sum(), hidden)
    assert gradient.abs().sum() > 0


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, target = given(6, 5, 30)
    with torch.no_grad():
        ours = chunked_logp(hidden * 200, weight * 200, target, chunk=8)
        assert ours.isfinite().all()
        assert torch.allclose(ours, chunked_logp_reference(hidden * 200, weight * 200, target), rtol=1e-5)


def test_half_precision_errs_at_most_twice_as_much_as_torch() -> None:
    hidden, weight, target = given(8, 32, 50, torch.float16)
    with torch.no_grad():
        exact = chunked_logp_reference(hidden.double().float(), weight.double().float(), target).double()
        exact = torch.where(
            target >= 0,
            torch.log_softmax(hidden.double() @ weight.double().T, -1).gather(1, target.clamp(min=0)[:, None])[:, 0],
            0.0,
        )
        plain = torch.log_softmax(hidden @ weight.T, -1).gather(1, target.clamp(min=0)[:, None])[:, 0]
        plain = torch.where(target >= 0, plain, 0.0)
        ours = chunked_logp(hidden, weight, target, chunk=16)
    assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max()


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the largest tensor that any operation made."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):  # type: ignore[no-untyped-def]
        made = function(*arguments, **(named or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


def test_never_more_than_a_chunk_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 frames and 600 tokens, the full logits are 12,000 numbers; the weight is 2,400."""
    monkeypatch.setattr(module, "uses_triton", lambda _: False)
    hidden, weight, target = given(20, 4, 600)
    frozen = weight.detach()
    with _Largest() as plain:  # type: ignore[no-untyped-call]
        torch.autograd.grad(chunked_logp_reference(hidden, frozen, target).sum(), hidden)
    with _Largest() as ours:  # type: ignore[no-untyped-call]
        module._chunked_logp._init_fn(hidden.detach(), frozen, target, 50)
        module._chunked_logp_backward._init_fn(
            hidden.detach(), frozen, target, torch.zeros(20), torch.ones(20), 50, False
        )
    assert plain.numbers == 12_000
    assert ours.numbers <= 2_400


def test_opcheck_and_refusals() -> None:
    hidden, weight, target = given(3, 4, 9)
    torch.library.opcheck(torch.ops.duologue.chunked_logp.default, (hidden, weight, target, 4))
    with pytest.raises(ValueError, match="target is"):
        chunked_logp(hidden, weight, target.int())
    with pytest.raises(ValueError, match="a chunk of 0"):
        chunked_logp(hidden, weight, target, chunk=0)
