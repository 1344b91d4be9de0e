"""The thread that hears both sides of every call: finds signals, and hands to the journal what may be kept.

The tick hands over one step at a time and never waits; when this thread is far behind, whole steps are left out and
counted. Signals go to the client by way of the event loop. It knows sessions and signals, and hands over to the
journal (`keeping`).
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

from server.journal import SessionRecord, TickRecord
from server.keeping import Keeping
from server.metrics import Metrics
from server.protocol import Consent, Feedback, Playback
from server.retention import Retention
from server.session import ModelInfo, Report, Session
from server.signals import Board, CallDetector, RowFrame, Signal
from server.tick import Step

__all__ = ["Listening"]

log = logging.getLogger(__name__)

_MOST_WAITING: Final = 50
"""Frames of every slot that may wait: four seconds of everybody's calls."""
_STOP_S: Final = 10.0
_WORD_START: Final = "▁"
_SILENCE_S: Final = 0.5
"""Neither side has been heard for so long: nobody notices when the adapter changes."""
_FRESH_S: Final = 0.3
"""What was heard longer ago, since this thread is behind, does not tell who is silent now."""


class _Heard(msgspec.Struct, eq=False):
    """A call that is heard."""

    session: Session
    detector: CallDetector
    seed: int
    consent: Consent
    begins_word: Callable[[int], bool]
    """Whether a token begins a word."""
    adapter: str = ""
    """The one that made the latest step; empty for the base model."""
    steps: int = 0
    """Steps taken so far, the left out ones included."""
    frames: int = 0
    """Frames with something out: the journal's ticks."""
    recorded: bool = False


class Listening:
    """All calls' ears. `retention_days` of 0 keeps for ever."""

    def __init__(self, *, data_dir: Path, journal_url: str | None, retention_days: float, metrics: Metrics) -> None:
        self.before_keeping: Callable[[], None] = lambda: None
        """What must be written down before anything of a call is. May raise `OSError`."""
        self._keeping = Keeping(
            data_dir=data_dir, journal_url=journal_url, metrics=metrics, before=self._before_keeping
        )
        self._retention = Retention(data_dir=data_dir, journal_url=journal_url, days=retention_days)
        self._metrics = metrics
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._given = self._taken = 0
        """Frames so far, by the tick thread and by this one."""
        self._left_out: dict[str, int] = {}
        self._calls: dict[int, _Heard] = {}
        self._awaited: Callable[[], frozenset[int]] = frozenset
        self._tell_silent: Callable[[Collection[Session]], None] = lambda _sessions: None
        self._thread = threading.Thread(target=self._run, name="duologue-listening", daemon=True)

    def start(self, model: ModelInfo, tell: Callable[[Callable[[], None]], None]) -> None:
        """Load what finds voices, and listen. `tell` runs something on the event loop."""
        self._tell = tell
        self._most_waiting = _MOST_WAITING * model.slots
        self._board = Board(model.slots, sample_rate=model.sample_rate, frame_s=model.frame_s)
        self._thread.start()
        self._retention.start()

    @property
    def problem(self) -> str:
        """Why calls are not recorded that should be; empty when all is well."""
        return self._keeping.problem

    def watch_silence(self, awaited: Callable[[], frozenset[int]], tell: Callable[[Collection[Session]], None]) -> None:
        """Tell, from the thread, in which calls among the `awaited` slots nobody has spoken for half a second."""
        self._awaited, self._tell_silent = awaited, tell

    def stop(self) -> None:
        """End after what was handed over; what may be kept is then on the disk. Blocks."""
        self._work.put(None)
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
        self._retention.stop()

    # Any thread.

    def opened(self, session: Session, slot: int, seed: int) -> None:
        """A call begins in a slot."""
        adapter = session.adapter
        self._work.put(lambda: self._open(session, slot, seed, adapter))

    def heard(self, step: Step) -> None:
        """A step has been made."""
        if self._given - self._taken >= self._most_waiting:
            self._metrics.listening_skipped.inc(len(step.answers))
            for answer in step.answers:
                self._left_out[answer.session.id] = self._left_out.get(answer.session.id, 0) + 1
        else:
            self._given += len(step.answers)
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

    def _before_keeping(self) -> None:
        self.before_keeping()

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except Exception:
                log.exception("a step was not listened to")
        self._keeping.close()

    def _next(self) -> Callable[[], None] | None:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._work.get(timeout=1.0)
            self._keeping.look_after()

    def _open(self, session: Session, slot: int, seed: int, adapter: str) -> None:
        begins_word = functools.cache(functools.partial(_is_word_start, session.model))
        call = _Heard(session, self._board.open(slot), seed, Consent(), begins_word, adapter)
        self._calls[slot] = call
        self._permit(call, session.consent)

    def _hear(self, step: Step) -> None:
        self._taken += len(step.answers)
        rows = {answer.slot: answer for answer in step.answers if self._is_heard(answer.slot, answer.session)}
        frames = {}
        for slot, answer in rows.items():
            call = self._calls[slot]
            if self._left_out and (missing := self._left_out.pop(call.session.id, 0)):
                call.detector.skip(missing)
                call.frames += missing
                call.steps += missing
            self._note_adapter(call, answer.adapter)
            call.steps += 1
            said = answer.pcm
            frames[slot] = RowFrame(heard=answer.frame.pcm, said=said, word=call.begins_word(answer.token))
        for slot, signals in self._board.hear(frames).items():
            self._give(self._calls[slot], signals)
        self._record(step, [slot for slot, answer in rows.items() if answer.token >= 0])
        if time.monotonic() - step.stepped_at < _FRESH_S:
            self._watch_silence(frames.keys())
        self._keeping.look_after()

    def _note_adapter(self, call: _Heard, adapter: str) -> None:
        """A step was made, the next one of its call. Note when another adapter made it than the one before."""
        if adapter == call.adapter:
            return
        call.adapter = adapter
        if call.recorded and self._keeping.writer is not None:
            self._keeping.writer.adapter(call.session.id, call.steps, adapter)

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
        if kept and self._keeping.writer is not None:
            which, names, ticks = zip(*kept, strict=True)
            rows = np.array(which)
            record = TickRecord(
                sessions=names, ticks=ticks, tokens_NK=step.tokens_BK[rows], logprob_N=step.logprob_B[rows]
            )
            self._keeping.writer.frames(record)

    def _give(self, call: _Heard, signals: list[Signal]) -> None:
        for signal in signals:
            self._metrics.count_signal(signal, call.session.adapter_role)
            if call.recorded and self._keeping.writer is not None:
                self._keeping.writer.signal(call.session.id, signal)
        if signals:
            self._tell(lambda: call.session.take_signals(signals))

    def _close(self, session: Session, slot: int, reason: str) -> None:
        if not self._is_heard(slot, session):
            return
        call = self._calls.pop(slot)
        self._left_out.pop(session.id, None)
        self._give(call, self._board.close(slot, hung_up=reason == "hang_up"))
        if call.recorded and self._keeping.writer is not None:
            self._keeping.writer.end(session.id, reason)

    def _permit(self, call: _Heard, consent: Consent) -> None:
        before, call.consent = call.consent, consent
        if consent == before:
            return
        writer = self._keeping.writer
        if call.recorded and writer is not None:
            if consent.keep:
                writer.consent(call.session.id, keep=True, train=consent.train)
            else:
                call.recorded = False
                writer.withdraw(call.session.id)
        elif consent.keep and (writer := self._keeping.open()) is not None:
            writer.begin(self._describe(call))
            call.recorded = True

    def _describe(self, call: _Heard) -> SessionRecord:
        model = call.session.model
        return SessionRecord(
            id=call.session.id,
            user_hash=call.session.user_hash,
            train=call.consent.train,
            checkpoint=model.name,
            base_sha256=model.base_sha256,
            cache_dtype=model.cache_dtype,
            adapter=call.adapter,
            version=_version(),
            detector=call.detector.version,
            seed=call.seed,
            sampling=msgspec.json.encode(call.session.parameters.sampling).decode(),
            codebooks=model.codebooks,
            model_codebooks=model.model_codebooks,
            frame_rate=model.frame_rate,
            first_tick=call.frames,
        )


def _is_word_start(model: ModelInfo, token: int) -> bool:
    if token < 0 or token in model.silent_tokens:
        return False
    return str(model.tokenizer.id_to_piece(token)).startswith(_WORD_START)


def _version() -> str:
    try:
        return version("duologue")
    except PackageNotFoundError:
        return "unknown"
