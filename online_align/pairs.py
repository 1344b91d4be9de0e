"""Preference pairs from kept calls: complaints found, the better side said anew, both written down.

The order is: what happened (`transcribe`), what of it is a complaint (`labels`), where the sides part (`faults`), what
may still be made (`pair_mix`), the better side (`better`), the store. Making a call's pairs again gives the same ids,
so running twice adds nothing. It trains nothing.
"""

import functools
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from online_align.answers import plain_words
from online_align.better import Better, NoBetterError, say_better
from online_align.conversation import Conversation
from online_align.faults import Cut, NoCutError, find_cut
from online_align.judge import Judge, NoMarksError
from online_align.labels import DEFAULT_LIMITS, Label, Limits, Opinion, label
from online_align.pair_mix import DEFAULT_MIX, Mix, Quota, fingerprint, is_heldout
from online_align.pair_store import PairStore
from online_align.records import Evidence, Pair, PairKind, Side
from online_align.regenerate import Regenerator
from online_align.repeats import keep_repeats
from online_align.transcribe import Recogniser, side_pcm, transcribe
from server.engine import SamplingParams, model_name
from server.engine.adapters import file_sha256
from server.engine.checkpoint import Checkpoint
from server.errors import AdapterError
from server.journal import Columns, Journal, JournalError, schema
from server.journal.reader import SessionRow
from server.signals import SignalKind

__all__ = ["DEFAULT_SETTINGS", "PairBuilder", "PairSettings", "Tally", "longest_stretch"]

_HEARD_BEFORE: Final = 50
"""Columns of the caller's sound that tell whether two pairs are the same: four seconds."""


class PairSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What pairs are made from."""

    kinds: tuple[PairKind, ...] = tuple(PairKind)
    min_confidence: float = 0.5
    """Less certain complaints make no pair."""
    per_session: int = 2
    """The first fault of a call, and of the others one less, the surest: those are of a talk that had gone wrong. Also
    where the first one gives no pair."""
    branches: int = 8
    """Fresh samples of a reply, from which the judge takes the best."""
    margin: float = 0.5
    """By so much the better reply's mark must exceed the worse one's, where a judge says what is better."""
    longest_s: float = 12.0
    """Of a side."""
    least_context_s: float = 1.0
    """Before the sides part."""
    limits: Limits = DEFAULT_LIMITS
    mix: Mix = DEFAULT_MIX


DEFAULT_SETTINGS: Final = PairSettings()


class Tally(msgspec.Struct, kw_only=True):
    """What came of it."""

    sessions: int = 0
    """Calls that were looked at."""
    complaints: Counter[str] = msgspec.field(default_factory=Counter)
    """By kind, those that were sure enough."""
    made: Counter[str] = msgspec.field(default_factory=Counter)
    """Pairs by kind."""
    known: int = 0
    """Pairs that were there already."""
    refused: Counter[str] = msgspec.field(default_factory=Counter)
    """Why there is no pair, by reason."""


class PairBuilder:
    """Makes pairs from a journal. One thread at a time.

    `checkpoint` is the model that was called; calls of others are left out. Without a `judge` there are no pairs about
    content; without a `recogniser` nobody knows what callers said, and repeats are not found.
    """

    def __init__(
        self,
        journal: Journal,
        checkpoint: Checkpoint,
        *,
        data_dir: Path,
        settings: PairSettings = DEFAULT_SETTINGS,
        judge: Judge | None = None,
        recogniser: Recogniser | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._journal = journal
        self._checkpoint = checkpoint
        self._data_dir = data_dir
        self._settings = settings
        self._judge = judge
        self._recogniser = recogniser
        self._clock = clock
        self._store = PairStore(journal)
        self._speakers: dict[str, Regenerator] = {}
        self._done: set[str] = set()
        self._crowded: dict[str, int] = {}
        """Calls of which a pair was too many, and how many pairs there were then."""

    def build(self, *, limit: int = 1000, progress: Callable[[str], None] | None = None) -> Tally:
        """Look at the newest `limit` calls that have ended and may be trained on. Raises `JudgeError`.

        A call that was looked at is not looked at again by this builder, unless a pair was too many when there were
        fewer.
        """
        tally = Tally()
        quota = Quota(
            self._settings.mix, ((each.kind, each.user_hash, each.fingerprint) for each in self._store.summaries())
        )
        ids = self._store.ids()
        for about in self._journal.reader.sessions(trainable=True, limit=limit):
            looked = about.id in self._done or self._crowded.get(about.id) == len(ids)
            if about.ended_at is not None and not looked:
                self._session(about, quota, ids, tally)
                if progress is not None:
                    progress(f"{tally.sessions} calls, {tally.made.total()} pairs")
        return tally

    def _session(self, about: SessionRow, quota: Quota, ids: set[str], tally: Tally) -> None:
        tally.sessions += 1
        if not about.is_of(model_name(self._checkpoint.name), self._base_sha256):
            tally.refused["a call of another model"] += 1
            self._done.add(about.id)
            return
        try:
            columns = longest_stretch(self._journal.reader.columns(about.id))
            if columns is None or not (complaints := self._complaints(about, columns)):
                self._done.add(about.id)
                return
        except JournalError:
            tally.refused["a call that cannot be opened"] += 1
            return
        call, found = complaints
        tally.complaints.update(each.kind.value for each in found if each.kind)
        self._make(about, columns, call, found, quota, ids, tally)

    @functools.cached_property
    def _base_sha256(self) -> str:
        return file_sha256(self._checkpoint.lm_path)

    def _complaints(self, about: SessionRow, columns: Columns) -> tuple[Conversation, list[Label]] | None:
        """What happened and the complaints to work on, in order; None where there are none."""
        signals = self._journal.reader.signals(about.id)
        if self._recogniser is None and not signals:
            return None
        call = transcribe(self._checkpoint, about, columns, signals, recogniser=self._recogniser)
        if self._recogniser is not None and not any(each.kind is SignalKind.REPEAT for each in signals):
            repeats = keep_repeats(self._journal, about.id, call.user, recogniser=self._recogniser.name)
            call = msgspec.structs.replace(call, signals=[*signals, *repeats])
        settings = self._settings
        found = [
            each
            for each in label(call, settings.limits)
            if each.opinion is Opinion.COMPLAINT
            and each.kind in settings.kinds
            and each.confidence >= settings.min_confidence
            and (each.kind is not PairKind.CONTENT or self._judge is not None)
        ]
        if not found:
            return None
        first, *others = found
        return call, [first, *sorted(others, key=lambda each: (-each.confidence, each.t0))]

    def _make(
        self,
        about: SessionRow,
        columns: Columns,
        call: Conversation,
        complaints: list[Label],
        quota: Quota,
        ids: set[str],
        tally: Tally,
    ) -> None:
        cuts = {_pair_id(about.id, *each): each for each in self._cuts(call, complaints, tally)}
        known, too_many = cuts.keys() & ids, False
        tally.known += len(known)
        first = complaints[0]
        later = sum(cuts[name][0] is not first for name in known)
        room = self._settings.per_session - len(known)
        for name, (complaint, cut) in cuts.items():
            is_later = complaint is not first
            if room <= 0 or (is_later and later >= self._settings.per_session - 1):
                break
            if name in ids:
                continue
            if why := quota.refuses(cut.kind, about.user_hash):
                tally.refused[why] += 1
                too_many = True
                continue
            try:
                pair = self._pair(name, about, columns, complaint, cut)
            except (NoBetterError, AdapterError, NoMarksError) as problem:
                tally.refused[_why(problem)] += 1
                continue
            if self._add(pair, about, quota, ids, tally):
                room -= 1
                later += is_later
        if too_many:
            self._crowded[about.id] = len(ids)
        else:
            self._done.add(about.id)

    def _cuts(self, call: Conversation, complaints: list[Label], tally: Tally) -> Iterator[tuple[Label, Cut]]:
        """Cuts that can be made, without those that would tell of the same moment twice."""
        seen: set[int] = set()
        for complaint in complaints:
            try:
                cut = find_cut(call, complaint)
            except NoCutError as problem:
                tally.refused[str(problem)] += 1
                continue
            if cut.at not in seen:
                seen.add(cut.at)
                yield complaint, cut

    def _add(self, pair: Pair, about: SessionRow, quota: Quota, ids: set[str], tally: Tally) -> bool:
        first_user = 1 + about.model_codebooks
        heard = pair.context_PK[-_HEARD_BEFORE:, first_user:]
        print_ = fingerprint(pair.kind, heard, pair.chosen.words, pair.rejected.words)
        if quota.knows(print_):
            tally.refused["the same as another"] += 1
            return False
        if not self._store.add([pair], fingerprints={pair.id: print_}):
            tally.refused["deleted meanwhile"] += 1
            return False
        ids.add(pair.id)
        quota.note(pair.kind, pair.user_hash, print_)
        tally.made[pair.kind.value] += 1
        return True

    def _pair(self, name: str, about: SessionRow, columns: Columns, complaint: Label, cut: Cut) -> Pair:
        """Say the better side. Raises `NoBetterError`, `AdapterError` or `JudgeError`."""
        first = int(columns.ticks_T[0])
        if cut.at - first < self._settings.least_context_s * about.frame_rate:
            raise NoBetterError("too little was kept before it")
        sampling = msgspec.json.decode(about.sampling, type=SamplingParams)
        speaker = self._speaker(about.adapter)
        speaker.tell(columns.tokens_TK, sampling=sampling, seed=about.seed)
        better = say_better(
            speaker,
            columns.tokens_TK,
            msgspec.structs.replace(cut, at=cut.at - first, reaction=cut.reaction - first),
            name=name,
            sampling=sampling,
            judge=self._judge,
            branches=self._settings.branches,
            longest=round(self._settings.longest_s * about.frame_rate),
            margin=self._settings.margin,
            hears=None if self._recogniser is None else functools.partial(self._hears, about),
        )
        return self._written(name, about, columns, complaint, cut, better)

    def _hears(self, about: SessionRow, side_TK: NDArray[np.int16], words: str) -> bool:
        """Whether the recogniser hears the model say these words."""
        assert self._recogniser is not None
        said = side_pcm(self._checkpoint, about, side_TK)
        heard = " ".join(word.text for word in self._recogniser.hear(said))
        return plain_words(heard) == plain_words(words)

    def _written(
        self, name: str, about: SessionRow, columns: Columns, complaint: Label, cut: Cut, better: Better
    ) -> Pair:
        until = cut.at - int(columns.ticks_T[0])
        from_ = max(0, until - _context(self._checkpoint))
        return Pair(
            id=name,
            session=about.id,
            user_hash=about.user_hash,
            kind=cut.kind,
            made_at=self._clock(),
            at_tick=cut.at,
            event=cut.event,
            policy=about.adapter,
            heldout=is_heldout(about.user_hash, about.id, self._settings.mix.heldout_share),
            evidence=Evidence(
                rule=complaint.rule,
                signals=complaint.signals,
                confidence=complaint.confidence,
                judge=better.judge,
                scores=better.scores,
            ),
            context_PK=columns.tokens_TK[from_:until].copy(),
            chosen=Side(tokens_TK=better.chosen_TK, words=better.chosen_words),
            rejected=Side(tokens_TK=better.rejected_TK, words=better.rejected_words),
        )

    def _speaker(self, adapter: str) -> Regenerator:
        """What speaks with an adapter; the last one is kept. Raises `AdapterError`."""
        if adapter not in self._speakers:
            self._speakers.clear()
            folder = self._folder(adapter) if adapter else None
            self._speakers[adapter] = Regenerator(self._checkpoint, branches=self._settings.branches, adapter=folder)
        return self._speakers[adapter]

    def _folder(self, adapter: str) -> Path:
        query = select(schema.adapters.c.path).where(schema.adapters.c.id == adapter)
        with self._journal.engine.connect() as connection:
            path: str | None = connection.scalar(query)
        if path is None:
            raise AdapterError(adapter, expected="one that the journal knows", remedy="keep adapters as long as calls")
        return self._data_dir / path


def longest_stretch(columns: Columns) -> Columns | None:
    """The longest part of a call without a gap: detail may have been dropped. None for nothing."""
    if not len(columns.ticks_T):
        return None
    parts = np.split(np.arange(len(columns.ticks_T)), np.flatnonzero(np.diff(columns.ticks_T) != 1) + 1)
    longest = max(parts, key=len)
    part = slice(int(longest[0]), int(longest[-1]) + 1)
    return Columns(ticks_T=columns.ticks_T[part], tokens_TK=columns.tokens_TK[part], logprob_T=columns.logprob_T[part])


def _why(problem: NoBetterError | AdapterError | NoMarksError) -> str:
    """Why there is no pair, in a few words."""
    if isinstance(problem, NoBetterError):
        return problem.reason
    return "its adapter is gone" if isinstance(problem, AdapterError) else "the judge has no marks for it"


def _pair_id(session: str, complaint: Label, cut: Cut) -> str:
    """The same for the same call, rule and place."""
    return hashlib.sha256(f"{session}/{complaint.rule}/{cut.kind.value}/{cut.at}".encode()).hexdigest()[:24]


def _context(checkpoint: Checkpoint) -> int:
    """Columns that the model attends to."""
    return int(checkpoint.lm.transformer.layers[0].self_attn.context)
