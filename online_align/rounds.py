"""A round: which pairs, from which adapter, trained once, exported, staged, handed on. Whatever dies goes on.

Every round is a file in `DATA_DIR/learner/rounds`, written before its training starts and after each stage, and every
pair belongs to at most one of them: so no pair is trained twice, whenever the process is killed. What was deleted in
the meantime is left out, and a pass that has seen it is begun again without it. An adapter that learned from a deleted
call is no parent. Whether an adapter is good is the gate's business, to which it is handed.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from online_align.batches import fitting
from online_align.drift import divergence_from
from online_align.export import Manifest, write_adapter
from online_align.good_spans import find_spans, is_good_span, open_spans
from online_align.learner import Figures, Pass, evaluate, reference_of
from online_align.pair_store import PairStore
from online_align.policy import Policy
from online_align.records import Pair
from online_align.round_plan import OtherBaseError, Round, RoundFiles, Stage
from online_align.settings import LearnerSettings
from online_align.starting import Starting
from online_align.stopping import Stop
from online_align.unpaired import KTO, mismatched
from online_align.waiting import Waiting, waiting_of
from online_align.workers import Workers
from server.engine import model_name
from server.engine.adapters import file_sha256
from server.journal import Journal, JournalError
from server.journal.registry import AdapterRegistry, AdapterRow

__all__ = ["HandOver", "Rounds", "Told", "kept"]

log = logging.getLogger(__name__)

_FOLDER: Final = "learner"
_MOST_HELDOUT: Final = 64
_PROBED: Final = 8


HandOver = Callable[[AdapterRow], str]
"""Takes a staged adapter, judges and releases it, and says what became of it."""


class Told(Protocol):
    """Hears how a round goes."""

    def began(self, steps: int, pairs: int) -> None:
        """A pass of so many steps over so many pairs begins, or goes on."""

    def step(self, step: int, figures: Figures) -> None:
        """A step was made."""

    def ended(self, made: Round, heldout: Figures | None, divergence: float | None) -> None:
        """The pass is over."""


def kept(row: AdapterRow) -> str:
    """Hand over to nobody."""
    return f"{row.id} is {row.state}"


class Rounds:
    """All rounds of one data folder. One process at a time owns it (`learner_lock`)."""

    def __init__(
        self,
        data_dir: Path,
        journal: Journal,
        settings: LearnerSettings,
        *,
        checkpoint: str = "mini",
        device: str = "cpu",
        hand_over: HandOver = kept,
        told: Told | None = None,
        workers: Workers | None = None,
        stop: Stop | None = None,
        most_pairs: int = 512,
        save_every: int = 1,
    ) -> None:
        self._data_dir, self._journal, self._settings = data_dir, journal, settings
        self._checkpoint_name = model_name(checkpoint)
        self._hand_over, self._told, self._workers = hand_over, told, workers or Workers()
        self._most_pairs, self._save_every, self._stop = most_pairs, save_every, stop
        self._store, self._registry = PairStore(journal), AdapterRegistry(journal.engine)
        self._starting = Starting(data_dir, self._registry, checkpoint, device)
        self._folder = data_dir / _FOLDER
        self._files = RoundFiles(self._folder / "rounds")

    def waiting(self) -> list[str]:
        """Ids of the pairs that a round would take now, the oldest first. Raises `RoundError`.

        No round has had them; `waiting` says which are left for later.
        """
        return self._waiting().ids

    def _waiting(self) -> Waiting:
        rounds = self._files.all()
        parent = self._starting.parent(rounds[-1].base_sha256) if rounds else ""
        return waiting_of(
            self._store.summaries(heldout=False),
            consumed={pair for each in rounds for pair in each.pairs},
            learned_from=self._registry.sessions_of(parent) if parent else (),
            most=self._most_pairs,
        )

    def unfinished(self) -> Round | None:
        """A round that was left and can be gone on with. Raises `RoundError`."""
        rounds = self._files.all()
        return None if not rounds or rounds[-1].is_over else rounds[-1]

    def once(self) -> Round | None:
        """Finish the round that was left, or make a new one of what waits. None when nothing waits.

        Raises `RoundError`, `CheckpointError` and whatever the gate raises; the round then stays where it
        is, and is gone on with next time.
        """
        current: Round | None = self._workers.tell(self._next() if self._workers.first else None)
        if current is None:
            return None
        if current.stage is Stage.PLANNED:
            try:
                current = self._train(current)
            except OtherBaseError as problem:
                log.warning("round %d is given up: %s", current.number, problem)
                current = self._write(current, stage=Stage.EMPTY, pairs=(), replayed=(), good=(), outcome=str(problem))
        if current.stage is Stage.EXPORTED and self._workers.first:
            current = self._stage(current)
        if current.stage is Stage.STAGED and self._workers.first:
            outcome = self._hand_over(self._registry.get(current.adapter))
            current = self._write(current, stage=Stage.DONE, outcome=outcome)
        return current

    def _next(self) -> Round | None:
        if left := self.unfinished():
            log.info("going on with round %d, which is %s", left.number, left.stage)
            return left
        rounds = self._files.all()
        waiting = self._waiting()
        if waiting.later:
            log.info("%d more pairs wait: for the next round, or until more people have called", waiting.later)
        return self._plan(len(rounds) + 1, rounds, waiting.ids) if waiting.ids else None

    def _plan(self, number: int, rounds: Sequence[Round], waiting: Sequence[str]) -> Round:
        checkpoint = self._starting.load()
        base, lm = file_sha256(checkpoint.lm_path), checkpoint.lm
        earlier = [pair for each in rounds[::-1] for pair in each.pairs]
        there = self._store.ids()
        again = [pair for pair in earlier if pair in there][: round(self._settings.replay * len(waiting))]
        planned = Round(
            number=number,
            made_at=time.time(),
            parent=self._starting.parent(base),
            checkpoint=self._checkpoint_name,
            base_sha256=base,
            settings=self._settings,
            pairs=tuple(waiting),
            replayed=tuple(again),
            good=tuple(
                find_spans(
                    self._journal,
                    checkpoint=self._checkpoint_name,
                    base_sha256=base,
                    silent=(lm.text_padding_token_id, lm.end_of_text_padding_id),
                    count=round(self._settings.good * len(waiting)),
                )
            ),
        )
        return self._write(planned)

    def _train(self, current: Round) -> Round:
        current, pairs, replayed = self._still_there(current)
        while pairs:
            policy, config = self._starting.policy(current)
            pairs, replayed = fitting(pairs, policy.grid), fitting(replayed, policy.grid)
            if not pairs:
                break
            pairs = self._referenced(policy, current, pairs)
            heldout = self._referenced(policy, current, fitting(self._heldout(), policy.grid))
            before = {name: part.detach().clone() for name, part in policy.learned().items()}
            replayed, unrelated = self._unpaired(policy, current, pairs, replayed)
            figures = self._pass(self._workers.shard(policy), current, pairs, replayed, unrelated)
            after, divergence = self._measured(policy, current, heldout, before)
            known, learned = current, pairs
            current, pairs, replayed = self._still_there(current)
            if current is known:
                return self._export(policy, current, learned, config, (figures, after, divergence))
        return self._write(current, stage=Stage.EMPTY, outcome="nothing is left that it could learn from")

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
            state=self._folder / "pass.safetensors",
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
        made = self._write(current, stage=Stage.EXPORTED, sha256=sha256, trained=figures)
        if self._told is not None and self._workers.first:
            self._told.ended(made, heldout, divergence)
        return made

    def _stage(self, current: Round) -> Round:
        folder = self._data_dir / "adapters" / current.adapter
        row = AdapterRow(
            id=current.adapter,
            made_at=current.made_at,
            parent=current.parent,
            checkpoint=current.checkpoint,
            path=f"adapters/{current.adapter}",
            sha256=current.sha256,
            manifest=(folder / "manifest.json").read_text(),
        )
        sessions = {pair.session for pair in self._opened((*current.pairs, *current.replayed))}
        sessions |= {span.session for span in current.good}
        if current.parent:
            sessions |= set(self._registry.sessions_of(current.parent))
        self._registry.add(row, sessions=sorted(sessions))
        return self._write(current, stage=Stage.STAGED)

    def _still_there(self, current: Round) -> tuple[Round, list[Pair], list[Pair]]:
        """The round without what has been deleted since it was planned; the very same one when nothing has."""
        pairs, replayed = self._opened(current.pairs), self._opened(current.replayed)
        good = open_spans(self._journal, current.good)
        parent = current.parent
        if parent and self._registry.get(parent).withdrawn:
            parent = self._starting.parent(current.base_sha256)
        planned = (len(current.pairs), len(current.replayed), len(current.good), current.parent)
        if (len(pairs), len(replayed), len(good), parent) != planned:
            there = {pair.session for pair in good}
            log.warning("round %d begins again: a call that it was to learn from was deleted", current.number)
            current = self._write(
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

    def _opened(self, ids: Iterable[str]) -> list[Pair]:
        """The pairs that are there and can be read."""
        found = []
        for each in ids:
            try:
                found.append(self._store.get(each))
            except JournalError as problem:
                log.info("pair %s is left out: %s", each, problem)
        return found

    def _heldout(self) -> list[Pair]:
        return self._store.read(heldout=True, limit=_MOST_HELDOUT)

    def _write(self, current: Round, **changes: Any) -> Round:
        if self._workers.first:
            return self._files.write(current, **changes)
        return msgspec.structs.replace(current, **changes)


def _has_reference(pair: Pair, current: Round) -> bool:
    reference = pair.reference
    if reference is None or (reference.policy, reference.base_sha256) != (current.parent, current.base_sha256):
        return False
    sides = ((reference.chosen_T, pair.chosen), (reference.rejected_T, pair.rejected))
    return all(len(logp_T) == len(side.tokens_TK) for logp_T, side in sides)
