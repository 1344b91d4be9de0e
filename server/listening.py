"""The thread that hears both sides of every call: finds signals, and hands to the journal what may be kept.

The tick hands over one step at a time and never waits; when this thread is far behind, whole steps are left out and
counted. Signals go to the client by way of the event loop. It knows sessions, signals and the journal; the journal is
opened when the first caller permits keeping, so a server without such callers writes nothing.
"""

import contextlib
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Set
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from sqlalchemy.exc import SQLAlchemyError

from server.errors import DuologueError
from server.journal import (
    Journal,
    JournalWriter,
    SessionRecord,
    TickRecord,
    UnknownSessionError,
    exclusive,
    open_journal,
)
from server.journal.writer import Figures
from server.metrics import Metrics
from server.protocol import Consent, Feedback, Playback
from server.session import ModelInfo, Report, Session
from server.signals import Board, CallDetector, RowFrame, Signal
from server.tick import Step

__all__ = ["Listening"]

log = logging.getLogger(__name__)

_MOST_WAITING: Final = 50
"""Steps that may wait: four seconds of everybody's calls."""
_STOP_S: Final = 10.0
_SWEEP_EVERY_S: Final = 3600.0
_DAY_S: Final = 86_400.0
_WORD_START: Final = "▁"
_SILENCE_S: Final = 0.5
"""Neither side has been heard for so long: nobody notices when the adapter changes."""


class _Heard(msgspec.Struct, eq=False):
    """A call that is heard."""

    session: Session
    detector: CallDetector
    seed: int
    consent: Consent
    begins_word: Callable[[int], bool]
    """Whether a token begins a word."""
    steps: int = 0
    """Steps taken so far, the left out ones included."""
    frames: int = 0
    """Frames with something out: the journal's ticks."""
    recorded: bool = False


class Listening:
    """All calls' ears. `retention_days` of 0 keeps for ever."""

    def __init__(self, *, data_dir: Path, journal_url: str | None, retention_days: float, metrics: Metrics) -> None:
        self.problem = ""
        """Why calls are not recorded that should be; empty when all is well."""
        self.before_keeping: Callable[[], None] = lambda: None
        """What must be written down before anything of a call is. May raise `OSError`."""
        self.before_keeping: Callable[[], None] = lambda: None
        """What must be written down before anything of a call is. May raise `OSError`."""
        self._place = (data_dir, journal_url)
        self._retention_s = retention_days * _DAY_S
        self._metrics = metrics
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._left_out: dict[str, int] = {}
        self._calls: dict[int, _Heard] = {}
        self._writer: JournalWriter | None = None
        self._journal: Journal | None = None
        self._closing = contextlib.ExitStack()
        self._awaited: Callable[[], frozenset[int]] = frozenset
        self._tell_silent: Callable[[Collection[Session]], None] = lambda _sessions: None
        self._told = Figures()
        self._swept_at = 0.0
        self._thread = threading.Thread(target=self._run, name="duologue-listening", daemon=True)

    def start(self, model: ModelInfo, tell: Callable[[Callable[[], None]], None]) -> None:
        """Load what finds voices, and listen. `tell` runs something on the event loop."""
        self._tell = tell
        self._board = Board(model.slots, sample_rate=model.sample_rate, frame_s=model.frame_s)
        self._thread.start()

    def watch_silence(self, awaited: Callable[[], frozenset[int]], tell: Callable[[Collection[Session]], None]) -> None:
        """Tell, from the thread, in which calls among the `awaited` slots nobody has spoken for half a second."""
        self._awaited, self._tell_silent = awaited, tell

    def stop(self) -> None:
        """End after what was handed over; what may be kept is then on the disk. Blocks."""
        self._work.put(None)
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    # Any thread.

    def opened(self, session: Session, slot: int, seed: int) -> None:
        """A call begins in a slot."""
        self._work.put(lambda: self._open(session, slot, seed))

    def heard(self, step: Step) -> None:
        """A step has been made."""
        if self._work.qsize() > _MOST_WAITING:
            self._metrics.listening_skipped.inc(len(step.answers))
            for answer in step.answers:
                self._left_out[answer.session.id] = self._left_out.get(answer.session.id, 0) + 1
        else:
            self._work.put(lambda: self._hear(step))

    def closed(self, session: Session, slot: int, reason: str) -> None:
        """A call in a slot is over."""
        self._work.put(lambda: self._close(session, slot, reason))

    def report(self, session: Session, report: Report) -> None:
        """The client says what it has played, what its user thinks, or what may be done with the call."""
        match report:
            case Playback():
                self._about(session, lambda call: call.detector.played(report.played_ms / 1000))
            case Feedback():
                self._about(session, lambda call: self._give(call, call.detector.feedback(report.value, report.t)))
            case Consent():
                self._about(session, lambda call: self._permit(call, report))

    def _about(self, session: Session, do: Callable[[_Heard], None]) -> None:
        def look() -> None:
            for call in self._calls.values():
                if call.session is session:
                    do(call)
                    return

        self._work.put(look)

    # The rest runs in the thread.

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except Exception:
                log.exception("a step was not listened to")
        with self._closing:
            if self._writer is not None:
                self._writer.stop()

    def _next(self) -> Callable[[], None] | None:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._work.get(timeout=1.0)
            self._look_after()

    def _open(self, session: Session, slot: int, seed: int) -> None:
        begins_word = functools.cache(functools.partial(_is_word_start, session.model))
        call = _Heard(session, self._board.open(slot), seed, Consent(), begins_word)
        self._calls[slot] = call
        self._permit(call, session.consent)

    def _hear(self, step: Step) -> None:
        rows = {answer.slot: answer for answer in step.answers if self._is_heard(answer.slot, answer.session)}
        frames = {}
        for slot, answer in rows.items():
            call = self._calls[slot]
            call.steps += 1
            if self._left_out and (missing := self._left_out.pop(call.session.id, 0)):
                call.detector.skip(missing)
                call.frames += missing
            said = answer.pcm
            frames[slot] = RowFrame(heard=answer.frame.pcm, said=said, word=call.begins_word(answer.token))
        for slot, signals in self._board.hear(frames).items():
            self._give(self._calls[slot], signals)
        self._record(step, [slot for slot, answer in rows.items() if answer.token >= 0])
        self._watch_silence(frames.keys())
        self._look_after()

    def _watch_silence(self, slots: Set[int]) -> None:
        calls = [self._calls[slot] for slot in slots & self._awaited()]
        if silent := [call.session for call in calls if call.detector.silent_s >= _SILENCE_S]:
            self._tell_silent(silent)

    def _is_heard(self, slot: int, session: Session) -> bool:
        call = self._calls.get(slot)
        return call is not None and call.session is session

    def _record(self, step: Step, slots: list[int]) -> None:
        kept = []
        for slot in slots:
            call = self._calls[slot]
            if call.recorded:
                kept.append((slot, call.session.id, call.frames))
            call.frames += 1
        if kept and self._writer is not None:
            which, names, ticks = zip(*kept, strict=True)
            rows = np.array(which)
            record = TickRecord(
                sessions=names, ticks=ticks, tokens_NK=step.tokens_BK[rows], logprob_N=step.logprob_B[rows]
            )
            self._writer.frames(record)

    def _give(self, call: _Heard, signals: list[Signal]) -> None:
        for signal in signals:
            self._metrics.count_signal(signal, call.session.adapter_role)
            if call.recorded and self._writer is not None:
                self._writer.signal(call.session.id, signal)
        if signals:
            self._tell(lambda: call.session.take_signals(signals))

    def _close(self, session: Session, slot: int, reason: str) -> None:
        if not self._is_heard(slot, session):
            return
        call = self._calls.pop(slot)
        self._left_out.pop(session.id, None)
        self._give(call, self._board.close(slot, hung_up=reason == "hang_up"))
        if call.recorded and self._writer is not None:
            self._writer.end(session.id, reason)

    def _permit(self, call: _Heard, consent: Consent) -> None:
        before, call.consent = call.consent, consent
        if consent == before:
            return
        if call.recorded and self._writer is not None:
            if consent.keep:
                self._writer.consent(call.session.id, keep=True, train=consent.train)
            else:
                call.recorded = False
                self._writer.withdraw(call.session.id)
        elif consent.keep and (writer := self._open_writer()) is not None:
            writer.begin(self._describe(call))
            call.recorded = True

    def _describe(self, call: _Heard) -> SessionRecord:
        model = call.session.model
        return SessionRecord(
            id=call.session.id,
            train=call.consent.train,
            checkpoint=model.name,
            adapter=call.session.adapter,
            version=_version(),
            detector=call.detector.version,
            seed=call.seed,
            sampling=msgspec.json.encode(call.session.parameters.sampling).decode(),
            codebooks=model.codebooks,
            model_codebooks=model.model_codebooks,
            frame_rate=model.frame_rate,
            first_tick=call.frames,
        )

    def _open_writer(self) -> JournalWriter | None:
        """Open the journal for the first caller who permits keeping. A failure is told once and tried again."""
        if self._writer is not None:
            return self._writer
        try:
            journal = open_journal(*self._place)
            self._closing.callback(journal.engine.dispose)
            self._closing.enter_context(exclusive(journal.engine, self._place[0]))
            journal.removal.finish()
            self.before_keeping()
            self.before_keeping()
            self._writer = JournalWriter(
                journal.engine, journal.keys, on_withdrawn=lambda session: _withdraw(journal, session)
            )
            self._writer.start()
        except (DuologueError, SQLAlchemyError, OSError) as problem:
            self._closing.close()
            self._writer = None
            self.problem = f"calls are not recorded: {problem}"
            log.error("%s", self.problem)  # noqa: TRY400 - the sentence says all
            return None
        self._journal = journal
        self.problem = ""
        return self._writer

    def _look_after(self) -> None:
        """Show how the journal is, and delete what is too old."""
        writer, journal = self._writer, self._journal
        if writer is None or journal is None:
            self._metrics.journal_ok.set(not self.problem)
            return
        self.problem = f"the journal cannot be written: {writer.problem}" if writer.problem else ""
        self._metrics.journal_ok.set(writer.healthy)
        self._told = self._metrics.show_journal(writer.figures, self._told, writer.waiting)
        now = time.monotonic()
        if self._retention_s and (not self._swept_at or now - self._swept_at > _SWEEP_EVERY_S):
            self._swept_at = now
            with contextlib.suppress(SQLAlchemyError):
                swept = journal.removal.sweep(older_than_s=self._retention_s)
                log.info("the retention time ended for %d calls", len(swept))


def _is_word_start(model: ModelInfo, token: int) -> bool:
    if token < 0 or token in model.silent_tokens:
        return False
    return str(model.tokenizer.id_to_piece(token)).startswith(_WORD_START)


def _withdraw(journal: Journal, session: str) -> None:
    with contextlib.suppress(UnknownSessionError):
        journal.removal.session(session, reason="withdrawn")


def _version() -> str:
    try:
        return version("duologue")
    except PackageNotFoundError:
        return "unknown"
