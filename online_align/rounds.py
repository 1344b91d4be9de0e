"""A round: which pairs, from which adapter, trained once, exported, staged, handed on. Whatever dies goes on.

Every round is a file in `DATA_DIR/learner/rounds`, written before its training starts and after each stage, and every
pair belongs to at most one of them: so no pair is trained twice, whenever the process is killed. What was deleted in
the meantime is left out. An adapter that learned from a deleted call is no parent. How one is trained is
`round_training`'s business; whether an adapter is good is the gate's business, to which it is handed.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from online_align.good_spans import find_spans
from online_align.pair_store import PairStore
from online_align.round_plan import OtherBaseError, Round, RoundFiles, Stage
from online_align.round_training import RoundTraining, Told
from online_align.settings import LearnerSettings
from online_align.starting import Starting
from online_align.stopping import Stop
from online_align.waiting import Waiting, waiting_of
from online_align.workers import Workers
from server.engine import model_name
from server.engine.adapters import file_sha256
from server.journal import Journal
from server.journal.registry import AdapterRegistry, AdapterRow

__all__ = ["HandOver", "Rounds", "kept"]

log = logging.getLogger(__name__)

_FOLDER: Final = "learner"

HandOver = Callable[[AdapterRow], str]
"""Takes a staged adapter, judges and releases it, and says what became of it."""


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
        self._hand_over, self._workers, self._most_pairs = hand_over, workers or Workers(), most_pairs
        self._store, self._registry = PairStore(journal), AdapterRegistry(journal.engine)
        self._starting = Starting(data_dir, self._registry, checkpoint, device)
        folder = data_dir / _FOLDER
        self._files = RoundFiles(folder / "rounds", writes=self._workers.first)
        self._training = RoundTraining(
            data_dir, folder, journal, self._starting, self._files,
            told=told, workers=self._workers, stop=stop, save_every=save_every,
        )  # fmt: skip

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
                current = self._training.train(current)
            except OtherBaseError as problem:
                log.warning("round %d is given up: %s", current.number, problem)
                current = self._files.write(
                    current, stage=Stage.EMPTY, pairs=(), replayed=(), good=(), outcome=str(problem)
                )
        if current.stage is Stage.EXPORTED and self._workers.first:
            current = self._stage(current)
        if current.stage is Stage.STAGED and self._workers.first:
            outcome = self._hand_over(self._registry.get(current.adapter))
            current = self._files.write(current, stage=Stage.DONE, outcome=outcome)
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
        return self._files.write(planned)

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
        sessions = {pair.session for pair in self._store.readable((*current.pairs, *current.replayed))}
        sessions |= {span.session for span in current.good}
        if current.parent:
            sessions |= set(self._registry.sessions_of(current.parent))
        self._registry.add(row, sessions=sorted(sessions))
        return self._files.write(current, stage=Stage.STAGED)
