"""The thread that writes: takes what the call's threads hand over and makes it durable in groups.

Whoever hands over never waits. The queue is bounded: when the disk falls behind, frames are dropped first, signals only
at twice the depth, and both are counted; beginnings and ends are never dropped. What failed to commit was not
acknowledged: it is counted as lost, `problem` says why, and the next group tries again with what is new.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
from sqlalchemy import Engine, select, update
from sqlalchemy.exc import SQLAlchemyError

from server.journal import schema
from server.journal.batch import Batch
from server.journal.errors import JournalError
from server.journal.keys import KeyRing, SessionKey
from server.journal.records import NumberedSignal, SessionRecord, TickRecord, pack, signal_row
from server.journal.transactions import writing
from server.signals import Signal

__all__ = ["Figures", "JournalWriter"]

log = logging.getLogger(__name__)

_STOP_S: Final = 10.0
_CHUNK_FRAMES: Final = 6
"""Frames in a row, 0.48 s: with the commit every 0.2 s nothing older than 0.7 s is not yet durable."""


class Figures(msgspec.Struct, kw_only=True):
    """What became of what was handed over."""

    durable_frames: int = 0
    durable_signals: int = 0
    dropped_frames: int = 0
    """Not taken: the queue was full."""
    dropped_signals: int = 0
    lost_frames: int = 0
    """Taken, and then the commit failed."""
    lost_signals: int = 0
    commits: int = 0
    failed_commits: int = 0
    commit_s: float = 0.0
    """What the last commit took."""


class _Consent(msgspec.Struct, frozen=True):
    session: str
    keep: bool
    train: bool


class _End(msgspec.Struct, frozen=True):
    session: str
    reason: str


class _Recording(msgspec.Struct, eq=False):
    """A call that is being written."""

    key: SessionKey
    started_at: float
    consents: int = 1
    first_tick: int = 0
    count: int = 0
    tokens: bytearray = msgspec.field(default_factory=bytearray)
    logprobs: bytearray = msgspec.field(default_factory=bytearray)


class _Withdrawal(msgspec.Struct, frozen=True):
    session: str


class _Adapter(msgspec.Struct, frozen=True):
    session: str
    step: int
    adapter: str


_Item = TickRecord | NumberedSignal | SessionRecord | _Consent | _Adapter | _End | _Withdrawal


class JournalWriter:
    """Records calls. `start` it, hand things over, `stop` it. One per journal: see `database.exclusive`."""

    def __init__(
        self,
        engine: Engine,
        keys: KeyRing,
        *,
        commit_s: float = 0.2,
        most_waiting: int = 256,
        on_withdrawn: Callable[[str], object] = lambda _session: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.figures = Figures()
        self.problem = ""
        """Why the last commit failed; empty when it did not."""
        self._engine = engine
        self._keys = keys
        self._commit_s = commit_s
        self._most_waiting = most_waiting
        self._on_withdrawn = on_withdrawn
        self._clock = clock
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._recordings: dict[str, _Recording] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="duologue-journal", daemon=True)

    @property
    def healthy(self) -> bool:
        """Whether the last commit came through and the thread lives."""
        return not self.problem

    @property
    def waiting(self) -> int:
        """Hand-overs in the queue."""
        return self._queue.qsize()

    def start(self) -> None:
        """Mark calls that a crash left open, then write."""
        self._mark_crashed()
        self._thread.start()

    def stop(self) -> None:
        """Write what was handed over, and end. Blocks."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    # Any thread.

    def begin(self, session: SessionRecord) -> None:
        """A call that may be kept begins. Raises `JournalError` when it may not: nothing of it may get here."""
        if not session.keep:
            raise JournalError(
                got=f"session {session.id} without permission to keep it",
                expected="permission first",
                remedy="hand nothing over before the caller agrees",
            )
        self._queue.put(session)

    def frames(self, tick: TickRecord) -> None:
        """Frames of calls that have begun; of others they are ignored."""
        if self._queue.qsize() >= self._most_waiting:
            self.figures.dropped_frames += len(tick.sessions)
        else:
            self._queue.put(tick)

    def signal(self, session: str, signal: Signal) -> None:
        """A signal or a revision of one."""
        if self._queue.qsize() >= 2 * self._most_waiting:
            self.figures.dropped_signals += 1
        else:
            self._queue.put(NumberedSignal(session=session, signal=signal))

    def consent(self, session: str, *, keep: bool, train: bool) -> None:
        """What the caller permits has changed. Without `keep` nothing more is recorded; what is there stays."""
        self._queue.put(_Consent(session, keep, train))

    def adapter(self, session: str, step: int, adapter: str) -> None:
        """From this step of the call on, counted from 0, it speaks with this adapter; empty for the base model."""
        self._queue.put(_Adapter(session, step, adapter))

    def withdraw(self, session: str) -> None:
        """The caller takes permission back: nothing more is recorded, and `on_withdrawn` runs in the thread."""
        self._queue.put(_Withdrawal(session))

    def end(self, session: str, reason: str) -> None:
        """The call is over."""
        self._queue.put(_End(session, reason))

    # The rest runs in the thread.

    def _run(self) -> None:
        while not self._stopping.wait(self._commit_s):
            self._write()
        self._write(last=True)

    def _write(self, *, last: bool = False) -> None:
        batch = Batch()
        withdrawn: list[str] = []
        try:
            for item in self._waiting():
                if isinstance(item, _Withdrawal):
                    self._recordings.pop(item.session, None)
                    withdrawn.append(item.session)
                else:
                    self._take(item, batch)
            if last:
                for session, recording in self._recordings.items():
                    self._flush(session, recording, batch)
            if batch:
                self._commit(batch)
            for session in withdrawn:
                self._on_withdrawn(session)
        except (SQLAlchemyError, OSError, JournalError) as problem:
            self._fail(batch, problem)

    def _waiting(self) -> Iterator[_Item]:
        with contextlib.suppress(queue.Empty):
            for _ in range(self._queue.qsize()):
                yield self._queue.get_nowait()

    def _take(self, item: _Item, batch: Batch) -> None:
        match item:
            case TickRecord():
                self._take_tick(item, batch)
            case NumberedSignal(session=session) if session in self._recordings:
                batch.signals.append(signal_row(session, item.signal))
            case SessionRecord():
                self._begin(item, batch)
            case _Consent(session=session) if session in self._recordings:
                self._consent(item, batch)
            case _Adapter(session=session) if session in self._recordings:
                batch.adapters.append({"session_id": session, "step": item.step, "adapter_id": item.adapter})
            case _End(session=session) if session in self._recordings:
                recording = self._recordings.pop(session)
                self._flush(session, recording, batch)
                ended_at = max(self._clock(), recording.started_at)  # the clock may have gone back
                batch.changes.append((session, {"ended_at": ended_at, "end_reason": item.reason}))

    def _begin(self, session: SessionRecord, batch: Batch) -> None:
        self._recordings[session.id] = _Recording(self._keys.create(session.id), session.started_at)
        batch.sessions.append({**msgspec.structs.asdict(session), "ended_at": None, "end_reason": ""})
        batch.consents.append(
            {"session_id": session.id, "number": 0, "at": self._clock(), "keep": True, "train": session.train}
        )

    def _consent(self, change: _Consent, batch: Batch) -> None:
        recording = self._recordings[change.session]
        row = {"session_id": change.session, "number": recording.consents, "at": self._clock()}
        batch.consents.append({**row, "keep": change.keep, "train": change.train})
        batch.changes.append((change.session, {"keep": change.keep, "train": change.train}))
        recording.consents += 1
        if not change.keep:
            del self._recordings[change.session]

    def _take_tick(self, tick: TickRecord, batch: Batch) -> None:
        tokens = tick.tokens_NK.astype("<i2").tobytes()
        logprobs = tick.logprob_N.astype("<f4").tobytes()
        size = tick.tokens_NK.shape[1] * 2
        for row, (session, number) in enumerate(zip(tick.sessions, tick.ticks, strict=True)):
            recording = self._recordings.get(session)
            if recording is None:
                continue
            if recording.count and number != recording.first_tick + recording.count:
                self._flush(session, recording, batch)
            if not recording.count:
                recording.first_tick = number
            recording.tokens += tokens[row * size : row * size + size]
            recording.logprobs += logprobs[row * 4 : row * 4 + 4]
            recording.count += 1
            if recording.count >= _CHUNK_FRAMES:
                self._flush(session, recording, batch)

    def _flush(self, session: str, recording: _Recording, batch: Batch) -> None:
        if not recording.count:
            return
        plain = pack(bytes(recording.tokens), bytes(recording.logprobs))
        sealed = recording.key.seal(f"frames/{recording.first_tick}", plain)
        batch.frames.append((session, recording.first_tick, recording.count, sealed))
        recording.count = 0
        recording.tokens.clear()
        recording.logprobs.clear()

    def _commit(self, batch: Batch) -> None:
        began = time.monotonic()
        with writing(self._engine) as connection:
            if gone := batch.buried(connection):
                batch.without(gone)
                for session in gone:
                    self._recordings.pop(session, None)
            batch.write(connection)
        self.figures.commit_s = time.monotonic() - began
        self.figures.commits += 1
        self.figures.durable_frames += batch.frame_count
        self.figures.durable_signals += len(batch.signals)
        if self.problem:
            log.warning("the journal is written again; lost so far: %d frames", self.figures.lost_frames)
            self.problem = ""

    def _fail(self, batch: Batch, problem: Exception) -> None:
        """Nothing of the batch is durable. Calls whose beginning is in it are given up: their rows have no head."""
        self.figures.failed_commits += 1
        self.figures.lost_frames += batch.frame_count
        self.figures.lost_signals += len(batch.signals)
        if not self.problem:
            log.error("the journal cannot be written: %s", type(problem).__name__)
        self.problem = f"{type(problem).__name__}: {problem.__cause__ or problem}"[:200]
        for row in batch.sessions:
            self._recordings.pop(row["id"], None)
        # A connection whose fsync failed may say later that all is well: never ask the same one again.
        with contextlib.suppress(SQLAlchemyError):
            self._engine.dispose()

    def _mark_crashed(self) -> None:
        with self._engine.begin() as connection:
            for session in connection.scalars(select(schema.sessions.c.id).where(schema.sessions.c.ended_at.is_(None))):
                connection.execute(
                    update(schema.sessions)
                    .where(schema.sessions.c.id == session)
                    .values(ended_at=schema.sessions.c.started_at, end_reason="crashed")
                )
