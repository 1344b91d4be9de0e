"""Who has heard which adapter, and how often they complained: the canary's two groups, out of the journal.

Everybody with a keyed hash gives one number: the share of complaints among the turns of his first calls since the
canary began. Anonymous callers cannot be told apart and give none. What is a complaint is said by `labels`. It knows no
statistics.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

import msgspec
from sqlalchemy import select

from online_align.canary import CanarySettings, Group
from online_align.conversation import Conversation, FrameClock
from online_align.labels import Opinion, label
from server.journal import Journal, schema
from server.signals import SignalKind, State

__all__ = ["CallCount", "CallCounter", "Observed", "count_call", "observe"]

_OCCASIONS = (
    SignalKind.RESPONSE,
    SignalKind.NO_RESPONSE,
    SignalKind.CUT_OFF,
    SignalKind.PAUSE_TAKEOVER,
    SignalKind.BARGE_IN,
)
"""Occasions on which the model could do right or wrong: a turn each."""


class CallCount(msgspec.Struct, frozen=True, kw_only=True):
    """One call."""

    turns: int
    complaints: int
    """Not more than turns."""


CallCounter = Callable[[Journal, str, float], CallCount]
"""From a session and the least confidence of a complaint to what happened in it."""


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What is known since the canary began."""

    control: Group = Group()
    canary: Group = Group()
    control_turns: int = 0
    """Of all calls, those of anonymous callers and of people who do not count yet among them."""
    control_complaints: int = 0
    canary_turns: int = 0
    canary_complaints: int = 0
    mixed: int = 0
    """People who have heard both, and give no number."""


class _Call(msgspec.Struct, frozen=True, kw_only=True):
    session: str
    user: str
    started_at: float
    canary: bool


def count_call(journal: Journal, session: str, confidence: float) -> CallCount:
    """Count turns and complaints of a call, by its signals. Raises `UnknownSessionError`."""
    about = journal.reader.session(session)
    signals = journal.reader.signals(session)
    call = Conversation(
        session=session,
        clock=FrameClock(frame_s=1 / about.frame_rate),
        columns=0,
        signals=signals,
        hung_up=any(signal.kind is SignalKind.HANG_UP for signal in signals),
    )
    turns = sum(signal.kind in _OCCASIONS and signal.state is State.FINAL for signal in signals)
    against = [each for each in label(call) if each.opinion is Opinion.COMPLAINT and each.confidence >= confidence]
    return CallCount(turns=turns, complaints=min(turns, len(against)))


def observe(
    journal: Journal,
    *,
    canary: str,
    control: str,
    since: float,
    now: float,
    settings: CanarySettings,
    count: CallCounter = count_call,
) -> Observed:
    """Everything since `since`. `control` is the live adapter's id; empty for the base model."""
    calls = [*_calls(journal, canary, since, canary=True), *_calls(journal, control, since, canary=False)]
    by_user: dict[str, list[_Call]] = defaultdict(list)
    totals = {True: [0, 0], False: [0, 0]}
    counted: dict[str, CallCount] = {}
    for call in sorted(calls, key=lambda each: (each.started_at, each.session)):
        counted[call.session] = found = count(journal, call.session, settings.complaint)
        totals[call.canary][0] += found.turns
        totals[call.canary][1] += found.complaints
        if call.user:
            by_user[call.user].append(call)
    mixed = {user for user, theirs in by_user.items() if len({call.canary for call in theirs}) > 1}
    ready: dict[bool, list[tuple[float, str, float]]] = {True: [], False: []}
    for user, theirs in by_user.items():
        found_share = _share(theirs, counted, now, settings) if user not in mixed else None
        if found_share is not None:
            ready[theirs[0].canary].append((found_share[0], user, found_share[1]))
    return Observed(
        control=Group(shares=tuple(share for _, _, share in sorted(ready[False]))),
        canary=Group(shares=tuple(share for _, _, share in sorted(ready[True]))),
        control_turns=totals[False][0],
        control_complaints=totals[False][1],
        canary_turns=totals[True][0],
        canary_complaints=totals[True][1],
        mixed=len(mixed),
    )


def _share(
    calls: Iterable[_Call], counted: dict[str, CallCount], now: float, settings: CanarySettings
) -> tuple[float, float] | None:
    """When a person came to count, and the share of complaints; None when not yet."""
    turns = complaints = 0
    first = None
    for call in calls:
        found = counted[call.session]
        if not found.turns:
            continue
        first = call.started_at if first is None else first
        if call.started_at - first > settings.settle_s:
            break
        turns, complaints = turns + found.turns, complaints + found.complaints
        if turns >= settings.turns:
            return call.started_at, complaints / turns
    if first is None or now - first < settings.settle_s:
        return None
    return first + settings.settle_s, complaints / turns


def _calls(journal: Journal, adapter: str, since: float, *, canary: bool) -> list[_Call]:
    """Ended calls that one adapter spoke from beginning to end."""
    table, changes = schema.sessions, schema.adapter_changes
    query = select(table.c.id, table.c.user_hash, table.c.started_at).where(
        table.c.adapter == adapter,
        table.c.started_at >= since,
        table.c.ended_at.is_not(None),
        table.c.id.not_in(select(changes.c.session_id)),
    )
    with journal.engine.connect() as connection:
        rows = connection.execute(query).all()
    return [_Call(session=row[0], user=row[1], started_at=row[2], canary=canary) for row in rows]
