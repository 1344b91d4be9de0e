"""One round from its plan to an exported adapter: its pairs with references, its pass, and its files.

What is deleted meanwhile is learned from anew without it. Which round this is, when it is made and what becomes of its
adapter is `rounds`' business.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from online_align.batches import fitting
from online_align.drift import divergence_from
from online_align.export import Manifest, write_adapter
from online_align.figures import Figures
from online_align.good_spans import is_good_span, open_spans
from online_align.learner import Pass, evaluate, reference_of
from online_align.pair_store import PairStore
from online_align.policy import Policy
from online_align.records import Pair
from online_align.round_plan import Round, RoundFiles, Stage
from online_align.starting import Starting
from online_align.stopping import Stop
from online_align.unpaired import KTO, mismatched
from online_align.workers import Workers
from server.journal import Journal
from server.journal.registry import AdapterRegistry

__all__ = ["RoundTraining", "Told"]

log = logging.getLogger(__name__)

_MOST_HELDOUT: Final = 64
_PROBED: Final = 8
_STATE: Final = "pass.safetensors"


class Told(Protocol):
    """Hears how a round goes."""

    def began(self, steps: int, pairs: int) -> None:
        """A pass of so many steps over so many pairs begins, or goes on."""

    def step(self, step: int, figures: Figures) -> None:
        """A step was made."""

    def ended(self, made: Round, heldout: Figures | None, divergence: float | None) -> None:
        """The pass is over."""


class RoundTraining:
    """Trains rounds of one data folder. `folder` is the learner's own; `stop` ends a pass after a step."""

    def __init__(
        self,
        data_dir: Path,
        folder: Path,
        journal: Journal,
        starting: Starting,
        files: RoundFiles,
        *,
        told: Told | None = None,
        workers: Workers,
        stop: Stop | None = None,
        save_every: int = 1,
    ) -> None:
        self._data_dir, self._folder, self._journal = data_dir, folder, journal
        self._starting, self._files = starting, files
        self._told, self._workers, self._stop, self._save_every = told, workers, stop, save_every
        self._store, self._registry = PairStore(journal), AdapterRegistry(journal.engine)

    def train(self, current: Round) -> Round:
        """Train and export a planned round, or find that nothing is left of it. Returns it as it is then.

        Raises `RoundError`, `CheckpointError`, and `Stopped` after a step that is saved.
        """
        current, pairs, replayed = self._still_there(current)
        while pairs:
            policy, config = self._starting.policy(current)
            pairs, replayed = fitting(pairs, policy.grid), fitting(replayed, policy.grid)
            if not pairs:
                break
            pairs = self._referenced(policy, current, pairs)
            heldout = self._referenced(
                policy, current, fitting(self._store.read(heldout=True, limit=_MOST_HELDOUT), policy.grid)
            )
            before = {name: part.detach().clone() for name, part in policy.learned().items()}
            replayed, unrelated = self._unpaired(policy, current, pairs, replayed)
            figures = self._pass(self._workers.shard(policy), current, pairs, replayed, unrelated)
            after, divergence = self._measured(policy, current, heldout, before)
            known, learned = current, pairs
            current, pairs, replayed = self._still_there(current)
            if current is known:
                return self._export(policy, current, learned, config, (figures, after, divergence))
        return self._files.write(current, stage=Stage.EMPTY, outcome="nothing is left that it could learn from")

    def _unpaired(
        self, policy: Policy, current: Round, pairs: Sequence[Pair], replayed: Sequence[Pair]
    ) -> tuple[list[Pair], list[Pair]]:
        """What KTO needs besides: good spans with a reference, and replies put where they do not belong."""
        if current.settings.loss != KTO:
            return list(replayed), []
        name, base = current.parent, current.base_sha256
        spans = [pair for pair in replayed if is_good_span(pair)]
        known = reference_of(policy, current.settings, spans, name=name, base_sha256=base)
        unrelated = fitting(mismatched(pairs), policy.grid)
        others = [pair for pair in replayed if not is_good_span(pair)]
        return [*others, *known], reference_of(policy, current.settings, unrelated, name=name, base_sha256=base)

    def _pass(
        self,
        policy: Policy,
        current: Round,
        pairs: Sequence[Pair],
        replayed: Sequence[Pair],
        unrelated: Sequence[Pair],
    ) -> Figures:
        training = Pass(
            policy,
            current.settings,
            pairs,
            replayed=replayed,
            unrelated=unrelated,
            plan=current.plan,
            state=self._folder / _STATE,
            save_every=self._save_every,
            workers=self._workers,
            stop=self._stop,
        )
        if self._told is None or not self._workers.first:
            return training.run()
        self._told.began(training.steps, len(pairs))
        return training.run(self._told.step)

    def _measured(
        self, policy: Policy, current: Round, heldout: Sequence[Pair], before: dict[str, Any]
    ) -> tuple[Figures | None, float | None]:
        """On held-out pairs: how they are told apart, and how far the policy went from its parent."""
        if not heldout or self._workers.size > 1:
            return None, None
        figures = evaluate(policy, current.settings, heldout)
        return figures, divergence_from(policy, before, heldout[:_PROBED], current.settings)

    def _export(
        self,
        policy: Policy,
        current: Round,
        pairs: Sequence[Pair],
        config: dict[str, Any],
        results: tuple[Figures, Figures | None, float | None],
    ) -> Round:
        figures, heldout, divergence = results
        kinds = sorted({pair.kind.value for pair in pairs})
        manifest = Manifest(
            id=current.adapter,
            made_at=current.made_at,
            parent=current.parent,
            checkpoint=current.checkpoint,
            base_sha256=current.base_sha256,
            settings=current.settings,
            pairs={kind: sum(pair.kind.value == kind for pair in pairs) for kind in kinds},
            trained=figures,
            heldout=heldout,
            divergence=divergence,
        )
        folder = self._data_dir / "adapters" / current.adapter
        sha256 = write_adapter(folder, policy, manifest=manifest, config=config, workers=self._workers)
        made = self._files.write(current, stage=Stage.EXPORTED, sha256=sha256, trained=figures)
        if self._told is not None and self._workers.first:
            self._told.ended(made, heldout, divergence)
        return made

    def _still_there(self, current: Round) -> tuple[Round, list[Pair], list[Pair]]:
        """The round without what has been deleted since it was planned; the very same one when nothing has."""
        pairs, replayed = self._store.readable(current.pairs), self._store.readable(current.replayed)
        good = open_spans(self._journal, current.good)
        parent = current.parent
        if parent and self._registry.get(parent).withdrawn:
            parent = self._starting.parent(current.base_sha256)
        planned = (len(current.pairs), len(current.replayed), len(current.good), current.parent)
        if (len(pairs), len(replayed), len(good), parent) != planned:
            there = {pair.session for pair in good}
            log.warning("round %d begins again: a call that it was to learn from was deleted", current.number)
            current = self._files.write(
                current,
                pairs=tuple(pair.id for pair in pairs),
                replayed=tuple(pair.id for pair in replayed),
                good=tuple(span for span in current.good if span.session in there),
                parent=parent,
                begun_again=current.begun_again + 1,
            )
        return current, pairs, [*replayed, *good]

    def _referenced(self, policy: Policy, current: Round, pairs: Sequence[Pair]) -> list[Pair]:
        """Pairs with log-probabilities by the parent: those they have, where they are its; else computed and kept."""
        lacking = [pair for pair in pairs if not _has_reference(pair, current)]
        found = reference_of(policy, current.settings, lacking, name=current.parent, base_sha256=current.base_sha256)
        if self._workers.first:
            for pair in found:
                assert pair.reference is not None
                self._store.set_reference(pair.id, pair.reference)
        new = {pair.id: pair for pair in found}
        return [new.get(pair.id, pair) for pair in pairs]


def _has_reference(pair: Pair, current: Round) -> bool:
    reference = pair.reference
    if reference is None or (reference.policy, reference.base_sha256) != (current.parent, current.base_sha256):
        return False
    sides = ((reference.chosen_T, pair.chosen), (reference.rejected_T, pair.rejected))
    return all(len(logp_T) == len(side.tokens_TK) for logp_T, side in sides)
