"""Finds moments of recorded calls for the gate: faults that people complained about, and answers nobody minded.

Only calls that may be learned from and from which the adapter did not learn; a few of each person, so that nobody's
calls decide. What a fault is, is said by `labels`; where it lies, by `faults`. It plays nothing.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Final

import msgspec

from online_align.conversation import Conversation, FrameClock
from online_align.faults import Cut, NoCutError, find_cut
from online_align.good_spans import may_go_on
from online_align.heard_turns import heard_turns
from online_align.labels import Label, Opinion, label
from online_align.pairs import longest_stretch
from online_align.probes.recorded import Moment, still_after
from online_align.records import PairKind
from online_align.transcribe import model_turns
from server.engine import SamplingParams, model_name
from server.engine.adapters import file_sha256
from server.engine.checkpoint import Checkpoint
from server.journal import Columns, Journal, JournalError
from server.journal.reader import SessionRow
from server.signals import Signal, SignalKind

__all__ = ["find_moments"]

_SURE: Final = 0.5
_ANSWER_S: Final = 1.5
"""An answer is waited for so long."""
_SILENCE_S: Final = 2.5
"""And a silence is one after so long."""
_LONGEST_S: Final = 6.0
_LEAST_PAST: Final = 12
_PAST: Final = 125
"""Columns that are dictated at most: 10 s."""
_OPENED: Final = 4
"""Calls that are opened at most for each moment that is wanted."""


def find_moments(
    journal: Journal, checkpoint: Checkpoint, *, learned: Collection[str], most: int = 16, of_one: int = 4
) -> list[Moment]:
    """The newest moments of calls to this model: at most `most` faults and as many answers, `of_one` of each person.

    Anonymous callers are told apart by their calls. `learned` are the calls that the adapter learned from.
    """
    found: list[Moment] = []
    taken: Counter[tuple[str, bool]] = Counter()
    counts = Counter[bool]()
    model, base_sha256 = model_name(checkpoint.name), file_sha256(checkpoint.lm_path)
    calls = [
        about
        for about in journal.reader.sessions(trainable=True)
        if about.ended_at is not None and about.is_of(model, base_sha256) and about.id not in set(learned)
    ]
    for about in calls[: _OPENED * 2 * most]:
        person = about.user_hash or about.id
        for moment in _of_call(journal, checkpoint, about):
            wrong = moment.kind is not None
            if counts[wrong] < most and taken[person, wrong] < of_one:
                taken[person, wrong] += 1
                counts[wrong] += 1
                found.append(moment)
        if min(counts[True], counts[False]) == most:
            break
    return found


def _of_call(journal: Journal, checkpoint: Checkpoint, about: SessionRow) -> Iterator[Moment]:
    try:
        signals, columns = journal.reader.signals(about.id), longest_stretch(journal.reader.columns(about.id))
    except JournalError:
        return
    if columns is None or not signals:
        return
    call = _conversation(checkpoint, about, columns, signals)
    complaints = [each for each in label(call) if each.opinion is Opinion.COMPLAINT]
    cuts = _wrong(call, complaints) if complaints else _right(call)
    for cut, kind in cuts:
        moment = _moment(checkpoint, about, columns, cut, kind)
        if moment is not None:
            yield moment


def _conversation(checkpoint: Checkpoint, about: SessionRow, columns: Columns, signals: list[Signal]) -> Conversation:
    """The call with the turns that signals and its text tell of: nothing is decoded, which takes long."""
    clock = FrameClock(frame_s=1 / about.frame_rate, late_frames=max(checkpoint.lm.delays))
    first = int(columns.ticks_T[0])
    return Conversation(
        session=about.id,
        clock=clock,
        columns=first + len(columns.ticks_T),
        signals=signals,
        user=heard_turns(signals)[0],
        model=model_turns(columns.tokens_TK[:, 0], checkpoint, clock, first=first),
        hung_up=about.end_reason == "hang_up",
    )


def _wrong(call: Conversation, complaints: Sequence[Label]) -> Iterator[tuple[Cut, PairKind | None]]:
    for each in complaints:
        if each.kind is None or not each.kind.about_timing or each.confidence < _SURE:
            continue
        try:
            yield find_cut(call, each), each.kind
        except NoCutError:
            continue


def _right(call: Conversation) -> Iterator[tuple[Cut, PairKind | None]]:
    """Prompt answers of a call in which nobody minded anything, and over which the caller was silent at first."""
    for signal in call.signals:
        prompt = signal.kind is SignalKind.RESPONSE and 0 <= (signal.latency_s or 0.0) <= _ANSWER_S
        if prompt and not may_go_on(signal, call.signals):
            at = call.clock.after_heard(signal.t0)
            again = call.next_user(signal.t0 + 0.1)
            reaction = call.columns if again is None else call.clock.heard_at(again.t0)
            yield Cut(kind=PairKind.NO_RESPONSE, at=at, event=0, quiet=0, start_by=0, reaction=reaction, asked=""), None


def _moment(
    checkpoint: Checkpoint, about: SessionRow, columns: Columns, cut: Cut, kind: PairKind | None
) -> Moment | None:
    """None where too little was kept, or the caller reacted at once."""
    at = cut.at - int(columns.ticks_T[0])
    waits_s = {None: _ANSWER_S, PairKind.NO_RESPONSE: _SILENCE_S}.get(kind)
    length = cut.quiet if waits_s is None else round(waits_s * about.frame_rate)
    known = min(cut.reaction - cut.at, length)
    if at < _LEAST_PAST or at >= len(columns.tokens_TK) or length > _LONGEST_S * about.frame_rate:
        return None
    if length < 2 or (kind is PairKind.NO_RESPONSE and known < length // 2):
        return None
    heard = columns.tokens_TK[at : at + (length if waits_s is None else known), 1 + about.model_codebooks :]
    return Moment(
        session=about.id,
        at_tick=cut.at,
        kind=kind,
        quiet=cut.quiet,
        sampling=msgspec.json.decode(about.sampling, type=SamplingParams),
        past_PK=columns.tokens_TK[max(0, at - _PAST) : at].copy(),
        heard_TU=still_after(heard, length, checkpoint),
    )
