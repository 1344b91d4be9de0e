"""Every row's own adapter, against the reference and upstream's `LoRALinear`."""

import pytest
import torch
from moshi.modules.lora import LoRALinear

from kernels.lora_delta import lora_delta, lora_delta_reference
from tests.kernels.interpreter import Guarded, same_bits

Adapters = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def adapters(count: int, width_in: int, width_out: int, rank: int, dtype: torch.dtype = torch.float32) -> Adapters:
    generator = torch.Generator().manual_seed(rank)
    down = torch.randn(count, rank, width_in, generator=generator).to(dtype)
    up = torch.randn(count, width_out, rank, generator=generator).to(dtype)
    return down, up, torch.rand(count, generator=generator) + 0.5


@pytest.mark.parametrize(("width_in", "width_out", "rank"), [(16, 16, 4), (300, 65, 9), (7, 130, 1)])
def test_equals_its_reference(width_in: int, width_out: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    down, up, scaling = adapters(3, width_in, width_out, rank)
    x = torch.randn(5, width_in, generator=generator)
    adapter, moving = torch.tensor([3, 0, 1, 3, 2]), torch.tensor([True, True, True, False, True])
    x[1] = x[3] = torch.nan
    inner, out = Guarded(5, rank), Guarded(5, width_out)
    out.tensor.copy_(torch.randn(5, width_out, generator=generator))
    before, want = out.tensor.clone(), out.tensor.clone()
    lora_delta(x, down, up, scaling, adapter, moving, inner.tensor, out.tensor)
    lora_delta_reference(x, down, up, scaling, adapter, moving, want)
    inner.check()
    out.check()
    assert torch.allclose(out.tensor, want, atol=1e-4, rtol=1e-5)
    assert same_bits(out.tensor[[1, 3]], before[[1, 3]])
    assert inner.tensor[[1, 3]].isnan().all()


def test_an_adapter_of_scaling_zero_is_not_read() -> None:
    down, up, _ = adapters(1, 9, 4, 2)
    out, yes = torch.ones(1, 4), torch.ones(1, dtype=torch.bool)
    some = torch.ones(1, dtype=torch.int64)
    lora_delta(torch.ones(1, 9), down * torch.nan, up * torch.nan, torch.zeros(1), some, yes, torch.empty(1, 2), out)
    assert torch.equal(out, torch.ones(1, 4))


def test_a_rows_bits_do_not_depend_on_its_company() -> None:
    down, up, scaling = adapters(2, 33, 20, 5)
    x = torch.randn(3, 33, generator=torch.Generator().manual_seed(1))
    alone, crowd = torch.zeros(1, 20), torch.zeros(3, 20)
    yes = torch.ones(3, dtype=torch.bool)
    lora_delta(x, down, up, scaling, torch.tensor([1, 2, 2]), yes, torch.empty(3, 5), crowd)
    lora_delta(x[1:2].clone(), down, up, scaling, torch.tensor([2]), yes[:1], torch.empty(1, 5), alone)
    assert torch.equal(crowd[1], alone[0])


def test_half_precision_errs_at_most_twice_as_much_as_torch() -> None:
    down, up, scaling = adapters(1, 40, 24, 8, torch.float16)
    x = torch.randn(1, 40, generator=torch.Generator().manual_seed(2)).half()
    out = torch.zeros(1, 24, dtype=torch.float16)
    lora_delta(x, down, up, scaling, torch.ones(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool),
               torch.empty(1, 8), out)  # fmt: skip
    exact = (up[0].double() @ (down[0].double() @ x[0].double())) * scaling[0].double()
    plain = (up[0] @ (down[0] @ x[0])) * scaling[0].half()
    assert (out[0] - exact).abs().max() <= 2 * (plain - exact).abs().max()


def test_it_is_upstreams_lora() -> None:
    torch.manual_seed(0)
    theirs = LoRALinear(12, 20, 4, 2.0, dtype=torch.float32)
    x = torch.randn(2, 12)
    with torch.no_grad():
        out = theirs.frozen_W(x)
        lora_delta(
            x, theirs.lora_A.weight[None].clone(), theirs.lora_B.weight[None].clone(), torch.tensor([2.0]),
            torch.tensor([1, 1]), torch.ones(2, dtype=torch.bool), torch.empty(2, 4), out,
        )  # fmt: skip
        assert torch.allclose(out, theirs(x), atol=1e-6)


def test_opcheck_and_refusals() -> None:
    down, up, scaling = adapters(1, 4, 4, 2)
    rest = (torch.ones(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool), torch.zeros(1, 2), torch.zeros(1, 4))
    torch.library.opcheck(lora_delta, (torch.randn(1, 4), down, up, scaling, *rest))
    with pytest.raises(ValueError, match="down is"):
        lora_delta(torch.randn(1, 5), down, up, scaling, *rest)
