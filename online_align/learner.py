"""One pass over preference pairs: each step scores a batch, adds the anchors, and moves the adapter a little.

It trains the policy that it is given and says how it goes; what is trained on, from which adapter, and what becomes of
the result is decided in `rounds`. It knows no journal and no folders but the file that it resumes from.

Legend: B pairs, N scored frames of the longer side.
"""

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from torch import Tensor

from online_align.batches import Batch, PackedPair, batches, collate, pack
from online_align.figures import Figures, mean_of, summed, sums_of
from online_align.good_spans import is_good_span
from online_align.losses import Scored, anchor, score
from online_align.policy import Policy
from online_align.records import Pair, Reference
from online_align.settings import LearnerSettings
from online_align.stopping import Stop
from online_align.training_state import Standing, restore, save
from online_align.unpaired import KTO, balance, loss_of, praise
from online_align.workers import Workers

__all__ = ["Pass", "context_of", "evaluate", "optimiser_groups", "reference_of"]

_FINAL_SHARE: Final = 0.1
"""Of the learning rate, at the last step."""
_BETAS: Final = (0.9, 0.95)


class Pass:
    """One pass over `pairs`, in an order that the settings' seed decides, and over `replayed` beside them.

    Every pair needs its reference. `unrelated` are those of `unpaired.mismatched`, with references by the same policy:
    KTO alone reads them, and good spans among `replayed` that have a reference are praise to it. `state` is where the
    pass is saved after every `save_every` steps, and gone on from when it belongs to the same `plan`. Raises
    `PairError`.
    """

    def __init__(
        self,
        policy: Policy,
        settings: LearnerSettings,
        pairs: Sequence[Pair],
        *,
        replayed: Sequence[Pair] = (),
        unrelated: Sequence[Pair] = (),
        plan: str = "",
        state: Path | None = None,
        save_every: int = 1,
        workers: Workers | None = None,
        stop: Stop | None = None,
    ) -> None:
        self._policy, self._settings, self._plan, self._state = policy, settings, plan, state
        self._save_every, self._stop = save_every, stop or Stop()
        self._workers = workers or Workers()
        self._device = policy.text_linear.weight.device
        self._steps = _dealt(pairs, settings, settings.batch)
        again = replayed if settings.anchor or settings.loss == KTO else ()
        self._replays = _dealt(again, settings, math.ceil(len(again) / max(1, len(self._steps))) or 1)
        self._unrelated = _dealt(unrelated, settings, settings.batch)
        praised = sum(is_good_span(pair) and pair.reference is not None for pair in again)
        self._praise_weight = balance(len(pairs), len(pairs) + praised)
        self._optimiser = torch.optim.AdamW(optimiser_groups(policy, settings), betas=_BETAS, weight_decay=0.0)
        self._schedule = [_share(step, len(self._steps), settings) for step in range(len(self._steps))]
        self._peaks = [group["lr"] for group in self._optimiser.param_groups]

    @property
    def steps(self) -> int:
        """Steps of the whole pass."""
        return len(self._steps)

    def run(self, told: Callable[[int, Figures], object] = lambda _step, _figures: None) -> Figures:
        """Make all steps that are left; `told` hears of each. Returns the means over the pass.

        Raises `Stopped` after a step that is saved.
        """
        standing = None
        if self._state is not None:
            standing = restore(self._state, self._policy, self._optimiser, plan=self._plan)
        first = standing.step if standing else 0
        sums = dict(standing.figures) if standing else {}
        for step in range(first, self.steps):
            # Several processes save together, and are not told to stop between the same two steps.
            with self._stop.after() if self._workers.size == 1 else contextlib.nullcontext():
                began = time.perf_counter()
                figures = self._step(step)
                figures = msgspec.structs.replace(figures, seconds=time.perf_counter() - began)
                for name, value in summed(figures).items():
                    sums[name] = sums.get(name, 0.0) + value
                told(step, figures)
                self._save(step + 1, sums)  # last: also when it is told to stop while it says what it did
        return mean_of(sums)

    def _save(self, made: int, sums: dict[str, float]) -> None:
        now = made % self._save_every == 0 or made == self.steps or (self._stop.asked and self._workers.size == 1)
        if self._state is not None and now:
            done = Standing(plan=self._plan, step=made, figures=sums)
            save(self._state, self._policy, self._optimiser, done, self._workers)

    def _step(self, step: int) -> Figures:
        """One step of the optimiser."""
        chosen = self._rows(self._steps[step], preference=True)
        again = self._rows(self._replays[step], preference=False) if step < len(self._replays) else []
        sums: dict[str, float] = {}
        far = self._divergence(step)
        self._optimiser.zero_grad(set_to_none=True)
        for batch, real_B in self._batches(chosen):
            loss_B, figures = self._losses(batch, real_B, far)
            self._backward(loss_B, real_B, len(chosen))
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value
        for batch, real_B in self._batches(again):
            self._backward(self._held(batch, far), real_B, len(chosen))
        for group, peak in zip(self._optimiser.param_groups, self._peaks, strict=True):
            group["lr"] = peak * self._schedule[step]
        torch.nn.utils.clip_grad_norm_(self._policy.learned().values(), self._settings.clip)
        self._optimiser.step()
        names = sorted(sums)
        total = self._workers.sum(torch.tensor([sums[name] for name in names], dtype=torch.float64))
        return mean_of(dict(zip(names, total.tolist(), strict=True)))

    def _losses(self, batch: Batch, real_B: Tensor, far: Tensor) -> tuple[Tensor, dict[str, float]]:
        """A loss for each pair `[B]`, and sums over those that are real."""
        logp_B2N = self._policy(batch)
        scored, settings = scored_of(logp_B2N, batch), self._settings
        loss_B = loss_of(settings.loss, scored, settings.beta, divergence=far, praise_weight=self._praise_weight)
        whole_B = loss_B + settings.anchor * self._anchor(logp_B2N, batch)
        return whole_B, sums_of(scored, loss_B.detach(), real_B)

    def _held(self, batch: Batch, far: Tensor) -> Tensor:
        """What is learned of replies without a preference, `[B]`."""
        logp_B2N, settings = self._policy(batch), self._settings
        loss_B = settings.anchor * self._anchor(logp_B2N, batch)
        if settings.loss == KTO:
            loss_B = loss_B + praise(logp_B2N, batch, settings.beta, divergence=far, weight=self._praise_weight)
        return loss_B

    @torch.no_grad()
    def _divergence(self, step: int) -> Tensor:
        """How far the policy has gone from its reference, in nats, a scalar: mean ratio of replies put elsewhere."""
        rows = self._rows(self._unrelated[step], preference=True) if step < len(self._unrelated) else []
        total = torch.zeros(2, dtype=torch.float64)
        for batch, real_B in self._batches(rows):
            ratio_B = scored_of(self._policy(batch), batch).chosen_ratio
            total += torch.stack([(ratio_B * real_B).sum(), real_B.sum()]).cpu().double()
        summed = self._workers.sum(total) if rows else total
        return (summed[0] / summed[1].clamp(min=1.0)).clamp(min=0).to(self._device, torch.float32)

    def _anchor(self, logp_B2N: Tensor, batch: Batch) -> Tensor:
        return anchor(logp_B2N[:, 0], batch.real_B2N[:, 0])

    def _backward(self, loss_B: Tensor, real_B: Tensor, count: int) -> None:
        # FSDP means over processes what is to be a sum over them.
        torch.autograd.backward((loss_B * real_B).sum() * (self._workers.size / count))

    def _rows(self, pairs: Sequence[Pair], *, preference: bool) -> list[PackedPair]:
        anchored = self._settings.anchor > 0
        context = context_of(self._policy, self._settings)
        whole = (anchored, False) if preference else (True, False)
        return [pack(pair, self._policy.grid, context=context, whole=whole) for pair in pairs]

    def _batches(self, rows: Sequence[PackedPair]) -> Iterator[tuple[Batch, Tensor]]:
        """This process's batches, with 1 for pairs that count. Every process gets as many, as FSDP needs."""
        grid, size = self._policy.grid, self._workers.size
        if size == 1:
            for batch in batches(rows, grid, self._device, positions=self._settings.positions):
                yield batch, torch.ones(len(batch.pairs), device=self._device)
            return
        ordered = sorted(rows, key=lambda row: (-row.positions, row.pair.id))
        for at in range(0, len(ordered), size):
            mine = at + self._workers.rank
            row = ordered[min(mine, len(ordered) - 1)]
            yield (
                collate([row], grid, self._device),
                torch.tensor([float(mine < len(ordered))], device=self._device),
            )


def optimiser_groups(policy: Policy, settings: LearnerSettings) -> list[dict[str, Any]]:
    """Parameters by their learning rate: those of the temporal transformer, and those of the depth transformer."""
    temporal: list[Tensor] = []
    depth: list[Tensor] = []
    for name, parameter in policy.learned().items():
        (temporal if name.startswith("transformer.") else depth).append(parameter)
    groups: list[dict[str, Any]] = [{"params": temporal, "lr": settings.learning_rate}]
    if depth:
        groups.append({"params": depth, "lr": settings.depth_learning_rate})
    return groups


def scored_of(logp_B2N: Tensor, batch: Batch) -> Scored:
    """What the losses take, from the policy's log-probabilities and the pairs' references."""
    reference_B2N = _references(batch)
    sums = [score(logp_B2N[:, side], batch.credit_B2N[:, side]) for side in range(2)]
    references = [score(reference_B2N[:, side], batch.credit_B2N[:, side])[0] for side in range(2)]
    return Scored(
        chosen=sums[0][0],
        rejected=sums[1][0],
        chosen_reference=references[0],
        rejected_reference=references[1],
        chosen_length=sums[0][1],
        rejected_length=sums[1][1],
    )


def context_of(policy: Policy, settings: LearnerSettings) -> int:
    """Frames of the past that are read: at most as many as the model attends to."""
    asked = settings.context_s
    grid = policy.grid
    return grid.context if asked is None else min(grid.context, round(asked * grid.frame_rate))


@torch.no_grad()
def reference_of(
    policy: Policy, settings: LearnerSettings, pairs: Sequence[Pair], *, name: str, base_sha256: str
) -> list[Pair]:
    """The pairs with log-probabilities by the policy as it is now, which is the adapter `name`. Raises `PairError`."""
    rows = [pack(pair, policy.grid, context=context_of(policy, settings)) for pair in pairs]
    found: dict[str, Reference] = {}
    for batch in batches(rows, policy.grid, policy.text_linear.weight.device, positions=settings.positions):
        logp_B2N = policy(batch).cpu().numpy()
        for pair, logp_2N in zip(batch.pairs, logp_B2N, strict=True):
            found[pair.id] = Reference(
                policy=name,
                base_sha256=base_sha256,
                chosen_T=logp_2N[0, : len(pair.chosen.tokens_TK)].copy(),
                rejected_T=logp_2N[1, : len(pair.rejected.tokens_TK)].copy(),
            )
    return [msgspec.structs.replace(pair, reference=found[pair.id]) for pair in pairs]


@torch.no_grad()
def evaluate(policy: Policy, settings: LearnerSettings, pairs: Sequence[Pair]) -> Figures:
    """Loss, margin and accuracy on pairs that are not trained on; all of them need their reference."""
    context = context_of(policy, settings)
    rows = [pack(pair, policy.grid, context=context, whole=(False, False)) for pair in pairs]
    sums: dict[str, float] = {}
    device = policy.text_linear.weight.device
    for batch in batches(rows, policy.grid, device, positions=settings.positions):
        scored = scored_of(policy(batch), batch)
        loss_B = loss_of(settings.loss, scored, settings.beta)
        for name, value in sums_of(scored, loss_B, torch.ones(len(batch.pairs), device=device)).items():
            sums[name] = sums.get(name, 0.0) + value
    return mean_of(sums)


def _references(batch: Batch) -> Tensor:
    values = np.zeros(batch.credit_B2N.shape, np.float32)
    for place, pair in enumerate(batch.pairs):
        assert pair.reference is not None, f"pair {pair.id} has no reference: rounds gives it one"
        for side, logp_T in enumerate((pair.reference.chosen_T, pair.reference.rejected_T)):
            kept = logp_T[: values.shape[2]]
            values[place, side, : len(kept)] = kept
    return torch.from_numpy(values).to(batch.credit_B2N.device)


def _dealt(pairs: Sequence[Pair], settings: LearnerSettings, size: int) -> list[list[Pair]]:
    """Pairs in a shuffled order that depends on nothing but themselves and the seed, `size` at a time."""
    ordered = sorted(pairs, key=lambda pair: pair.id)
    random.Random(settings.seed).shuffle(ordered)
    return [ordered[at : at + size] for at in range(0, len(ordered), size)]


def _share(step: int, steps: int, settings: LearnerSettings) -> float:
    """Share of the learning rate at a step: up in a line, then down as a cosine."""
    rise = min(settings.warm_up_steps, steps - 1)
    if step < rise:
        return (step + 1) / (rise + 1)
    fallen = (step - rise) / max(1, steps - rise)
    return _FINAL_SHARE + (1 - _FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * fallen))
