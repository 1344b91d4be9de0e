"""Every loss against `trl`'s own, to 1e-5, value and gradient.

`trl` brings transformers, accelerate and datasets, of which a loss uses nothing. So only `trl` itself is installed,
without its dependencies, and the methods that compute losses are compiled from its installed source as they are; what
they ask of a trainer is given by a stand-in. No line of theirs is copied here.
"""

import ast
import contextlib
import math
import warnings
from collections import defaultdict
from functools import cache
from importlib.metadata import distribution
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from online_align.losses import LOSSES, Scored, kto

DPO = ("trl/trainer/dpo_trainer.py", "DPOTrainer", "_compute_loss")
KTO = ("trl/trainer/kto_trainer.py", "KTOTrainer", "_compute_loss")
CPO = ("trl/experimental/cpo/cpo_trainer.py", "CPOTrainer", "cpo_loss")
PAIRS, FRAMES = 5, 12


@cache
def method(file: str, owner: str, name: str) -> Any:
    """A method of the installed `trl`, compiled from its source without importing what its module imports."""
    source = str(distribution("trl").locate_file(file))
    with open(source, encoding="utf-8") as opened:  # noqa: PTH123 - `locate_file` gives no pathlib.Path
        tree = ast.parse(opened.read())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner]
    (found,) = [node for node in classes[0].body if isinstance(node, ast.FunctionDef) and node.name == name]
    found.returns, found.decorator_list = None, []
    for argument in found.args.args:
        argument.annotation = None
    world = {"torch": torch, "F": functional, "math": math, "warnings": warnings, "contextlib": contextlib}
    exec(compile(ast.Module([found], []), source, "exec"), world)
    return world[name]


class Pairs:
    """Log-probabilities of pairs whose replies have different lengths; the first position is the prompt's."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, FRAMES + 1, (2 * PAIRS,), generator=draw)
        self.mask = (torch.arange(FRAMES + 1) >= 1) & (torch.arange(FRAMES + 1) <= lengths[:, None])
        both = -3 * torch.rand(2, 2 * PAIRS, FRAMES, generator=draw, dtype=torch.float64)
        self.logp, self.reference = both * self.mask[:, 1:]
        self.logp.requires_grad_()

    def scored(self) -> Scored:
        sums, references, lengths = self.logp.sum(1), self.reference.sum(1), self.mask.sum(1).double()
        return Scored(
            chosen=sums[:PAIRS], rejected=sums[PAIRS:],
            chosen_reference=references[:PAIRS], rejected_reference=references[PAIRS:],
            chosen_length=lengths[:PAIRS], rejected_length=lengths[PAIRS:],
        )  # fmt: skip

    def spoken(self, **_: object) -> SimpleNamespace:
        """What their model gives."""
        zeros = torch.zeros_like(self.mask[:, 1:], dtype=torch.float64)
        return SimpleNamespace(log_probs=self.logp, entropy=zeros, mean_logits=zeros, is_top1=self.mask[:, 1:])


def trainer(**more: Any) -> SimpleNamespace:
    same = SimpleNamespace(device="cpu", gather=lambda value: value, gather_for_metrics=lambda value: value)
    fixed = {
        "model": SimpleNamespace(training=True), "accelerator": same, "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0, "_tp_size": 1, "aux_loss_enabled": False, "precompute_ref_logps": True,
        "ld_alpha": None, "f_divergence_type": "reverse_kl", "use_weighting": False, "loss_weights": [1.0],
        "label_smoothing": 0.0, "alpha": 0.0, "calculate_KL": True,
    }  # fmt: skip
    return SimpleNamespace(**(fixed | more))


def their_dpo(pairs: Pairs, kind: str, beta: float) -> Tensor:
    references = pairs.reference.sum(1)
    inputs = {
        "input_ids": torch.zeros_like(pairs.mask, dtype=torch.int64), "attention_mask": pairs.mask.long(),
        "completion_mask": pairs.mask.long(),
        "ref_chosen_logps": references[:PAIRS], "ref_rejected_logps": references[PAIRS:],
    }  # fmt: skip
    loss: Tensor = method(*DPO)(trainer(loss_types=[kind], beta=beta), pairs.spoken, inputs, return_outputs=False)
    return loss


def their_cpo(pairs: Pairs, kind: str, beta: float) -> Tensor:
    scored = pairs.scored()
    if kind == "simpo":
        given = scored.chosen / scored.chosen_length, scored.rejected / scored.rejected_length
        settings = trainer(loss_type="simpo", beta=beta, simpo_gamma=0.5)
    else:
        given = scored.chosen_ratio, scored.rejected_ratio
        settings = trainer(loss_type="sigmoid", beta=beta, label_smoothing=0.1)
    losses: Tensor = method(*CPO)(settings, *given)[0]
    return losses.mean()


THEIRS = {
    "dpo": (their_dpo, "sigmoid"),
    "dpo-ln": (their_dpo, "sigmoid_norm"),
    "ipo": (their_dpo, "ipo"),
    "apo-zero": (their_dpo, "apo_zero"),
    "simpo": (their_cpo, "simpo"),
    "cdpo": (their_cpo, "smoothed"),
}


def test_none_is_left_out() -> None:
    assert set(THEIRS) == set(LOSSES)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("beta", [0.1, 0.3, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_as_trl(name: str, beta: float, seed: int) -> None:
    pairs = Pairs(seed)
    compute, kind = THEIRS[name]
    ours, theirs = LOSSES[name](pairs.scored(), beta).mean(), compute(pairs, kind, beta)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    slopes = [torch.autograd.grad(loss, pairs.logp, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(slopes[0], slopes[1], atol=1e-5, rtol=1e-5)
    assert slopes[0].abs().sum() > 0


@pytest.mark.parametrize("divergence", [-0.7, 0.4])
def test_kto_as_trl(divergence: float) -> None:
    pairs = Pairs(2)
    desirable = torch.tensor([True, False] * PAIRS)
    inputs = {
        "input_ids": torch.zeros_like(pairs.mask, dtype=torch.int64), "attention_mask": pairs.mask.long(),
        "completion_mask": pairs.mask.long(), "label": desirable, "ref_logps": pairs.reference.sum(1),
        "ref_KL_logps": torch.zeros(1, dtype=torch.float64),
    }  # fmt: skip
    settings = trainer(loss_type="kto", beta=0.3, desirable_weight=1.0, undesirable_weight=1.5)
    settings._compute_kl_logps = lambda _model, _batch: torch.full((1,), divergence, dtype=torch.float64)
    theirs = method(*KTO)(settings, pairs.spoken, inputs, return_outputs=False)
    ratio = (pairs.logp - pairs.reference).sum(1)
    ours = kto(ratio, desirable, torch.tensor(divergence), 0.3, undesirable_weight=1.5).mean()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    slopes = [torch.autograd.grad(loss, pairs.logp, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(slopes[0], slopes[1], atol=1e-5, rtol=1e-5)
