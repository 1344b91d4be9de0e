"""The learner while it runs: what it looks at each time, when a round is due, and who collects, judges and reviews.

`opened` puts the parts together as the flags say. The command line itself is `learn_command`'s business, and how a
round is made that of `rounds`.
"""

import argparse
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from online_align import judging
from online_align.judge import JudgeError
from online_align.room import storing
from online_align.stopping import Stop
from server.journal.database import exists

if TYPE_CHECKING:
    from online_align.settings import LearnerSettings

__all__ = ["Learner", "opened", "review_of"]

log = logging.getLogger(__name__)


class Learner:
    """The rounds of one data folder, and who hears of them."""

    def __init__(
        self, rounds: Any, progress: Any, workers: Any, collect: Callable[[], int], review: Callable[[], bool]
    ) -> None:
        self.workers = workers
        self._rounds, self._progress, self._collect, self._review = rounds, progress, collect, review

    def is_due(self, pairs_per_round: int, *, by_clock: bool) -> bool:
        """Whether a round shall be made now: one was left, enough pairs wait, or it is time and some do.

        None is made while people are being asked about the last one: what it learned would be lost on the next.
        """
        with storing():
            asking = False
            if self.workers.first:
                try:
                    self._collect()
                except JudgeError as problem:
                    log.warning("no new pairs while the judge cannot judge: %s", problem)
                asking = self._review()
            waiting = len(self._rounds.waiting())
            self._progress.waits(waiting)
        enough = waiting >= pairs_per_round or (by_clock and waiting > 0)
        return bool(self.workers.tell(self._rounds.unfinished() is not None or (enough and not asking)))

    def left(self) -> str:
        """What is left to do, for the end of a sentence."""
        left = self._rounds.unfinished()
        return f" in round {left.number}, which is {left.stage}; the next learner goes on with it" if left else ""

    def round(self, *, collect: bool = False) -> Any:
        """Make one round of what waits, and first collect when asked to."""
        with storing():
            if collect and self.workers.first:
                self._collect()
            return self._rounds.once()


@contextlib.contextmanager
def opened(asked: argparse.Namespace, settings: "LearnerSettings", stop: Stop) -> Iterator[Learner]:
    """Everything that `asked`, the flags of `learn_command`, names. Waits for a journal, and takes the learner's lock.

    Raises `LearnerLockedError`, and `CheckpointError` where the base model cannot be loaded.
    """
    # torch takes seconds to import: not before the flags have been read.
    from online_align.learner_lock import only_learner  # noqa: PLC0415
    from online_align.progress import LearnerMetrics, Progress  # noqa: PLC0415
    from online_align.rounds import Rounds  # noqa: PLC0415
    from online_align.workers import Workers  # noqa: PLC0415
    from server.journal import open_journal  # noqa: PLC0415

    workers = Workers.join()
    metrics = LearnerMetrics()
    if waits := not exists(asked.data_dir, asked.journal_url):
        _serve(metrics, asked, workers)  # who watches it sees that it is there
        _await_journal(asked)
    journal = open_journal(asked.data_dir, asked.journal_url)
    try:
        with only_learner(journal.engine, asked.data_dir) if workers.first else contextlib.nullcontext():
            if not waits:
                _serve(metrics, asked, workers)
            textfile = asked.metrics_textfile or asked.data_dir / "learner" / "metrics.prom"
            progress = Progress(metrics, textfile=textfile if workers.first else None)
            rounds = Rounds(
                asked.data_dir, journal, settings, checkpoint=asked.checkpoint, device=asked.device,
                hand_over=_hand_over(asked, journal, progress), told=progress, workers=workers, stop=stop,
                most_pairs=asked.most_pairs, save_every=asked.save_every,
            )  # fmt: skip
            yield Learner(rounds, progress, workers, _collector(asked, journal), review_of(asked, journal))
    finally:
        journal.engine.dispose()
        workers.leave()


def _serve(metrics: Any, asked: argparse.Namespace, workers: Any) -> None:
    if asked.metrics_port is not None and workers.first:
        log.info("metrics on port %d", metrics.serve(asked.metrics_port, host=asked.metrics_host))


def _collector(asked: argparse.Namespace, journal: Any) -> Callable[[], int]:
    """What makes new pairs of new calls; it gives how many."""
    if asked.no_collect:
        return lambda: 0
    import torch  # noqa: PLC0415

    from online_align.pairs import PairBuilder  # noqa: PLC0415
    from server.engine.checkpoint import load_checkpoint  # noqa: PLC0415

    checkpoint = load_checkpoint(asked.checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    builder = PairBuilder(
        journal,
        checkpoint,
        data_dir=asked.data_dir,
        judge=judging.judge_of(asked),
        recogniser=judging.recogniser_of(asked.recogniser),
    )

    def collect() -> int:
        tally = builder.build()
        made = tally.made.total()
        if made:
            log.info("%d new pairs: %s", made, _counted(tally.made))
        if tally.refused:
            log.info("no pair of %d complaints: %s", tally.refused.total(), _counted(tally.refused))
        return made

    return collect


def _counted(counts: Counter[str]) -> str:
    """Most first."""
    return ", ".join(f"{what} ({count})" for what, count in counts.most_common())


def _hand_over(asked: argparse.Namespace, journal: Any, progress: Any) -> Callable[[Any], str]:
    """What judges and releases a staged adapter; it says what became of it."""
    if asked.no_release:
        return lambda row: f"{row.id} is staged"
    from online_align.release import GateJudge, submit  # noqa: PLC0415

    judge = GateJudge(asked.checkpoint)

    def hand_over(row: Any) -> str:
        verdict = submit(journal, row.id, _release(asked), judge=judge)
        progress.judged(passed=verdict.passed)
        log.info("%s %s the gate: %s", row.id, "passed" if verdict.passed else "did not pass", verdict.reason)
        return verdict.reason

    return hand_over


def review_of(asked: argparse.Namespace, journal: Any) -> Callable[[], bool]:
    """What looks at the canary, at what is live, and at what waits for its turn; it says whether there is a canary."""
    if asked.no_release:
        return lambda: False
    from online_align.observations import count_call, remembered  # noqa: PLC0415
    from online_align.release import go_on, review  # noqa: PLC0415
    from online_align.watch import watch  # noqa: PLC0415

    count = remembered(count_call)

    def look() -> bool:
        row = review(journal, _release(asked), count=count)
        if row is not None and row.state != "canary":
            log.info(
                "%s, which was canary, is %s: `duologue-align adapters show %s` says why", row.id, row.state, row.id
            )
        looked = watch(journal, _release(asked), count=count)
        if looked is not None and looked.rolled_back:
            log.warning("%s is taken back: `duologue-align adapters show %s` says why", looked.live, looked.live)
        return go_on(journal, _release(asked)) is not None

    return look


def _release(asked: argparse.Namespace) -> Any:
    from online_align.release import ReleaseSettings  # noqa: PLC0415
    from server.engine import model_name  # noqa: PLC0415

    return ReleaseSettings(data_dir=asked.data_dir, checkpoint=model_name(asked.checkpoint), evidence=asked.evidence)


def _await_journal(asked: argparse.Namespace) -> None:
    """A learner makes no journal: the server does, when it keeps the first call."""
    log.info("waiting for a journal in %s: no call was ever kept there", asked.data_dir)
    while not exists(asked.data_dir, asked.journal_url):
        time.sleep(asked.poll_s)
