"""Who has heard which adapter, and how often they complained, out of the journal.

Everybody with a keyed hash gives one number: the share of complaints among the turns of his first calls in a time, such
as since a canary began. Anonymous callers cannot be told apart and give none. What is a complaint is said by `labels`;
where turns were, by `heard_turns`. It knows no statistics.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec
from sqlalchemy import select

from online_align.bases import Base
from online_align.canary import CanarySettings, Group
from online_align.conversation import Conversation, FrameClock
from online_align.heard_turns import heard_turns
from online_align.labels import Opinion, label
from server.journal import Journal, schema
from server.signals import SignalKind, State

__all__ = [
    "CallCount",
    "CallCounter",
    "Counted",
    "Heard",
    "HeardCall",
    "Observed",
    "count_call",
    "counted_people",
    "heard",
    "observe",
    "remembered",
]

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


class HeardCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that one adapter spoke in from beginning to end."""

    session: str
    user: str
    """Keyed hash; empty for an anonymous caller."""
    started_at: float


class Counted(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A person who counts."""

    at: float
    """When he came to count."""
    user: str
    share: float
    """Of complaints among his first turns."""


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the calls that one adapter spoke in."""

    people: Group = Group()
    calls: Group = Group()
    """Each call for itself, whoever called."""
    turns: int = 0
    complaints: int = 0


def count_call(journal: Journal, session: str, confidence: float) -> CallCount:
    """Count turns and complaints of a call, by its signals. Raises `UnknownSessionError`."""
    about = journal.reader.session(session)
    signals = journal.reader.signals(session)
    lasted_s = max((about.ended_at or about.started_at) - about.started_at, max((s.t1 for s in signals), default=0.0))
    user, model = heard_turns(signals)
    call = Conversation(
        session=session,
        clock=FrameClock(frame_s=1 / about.frame_rate),
        columns=round(lasted_s * about.frame_rate),
        signals=signals,
        user=user,
        model=model,
        hung_up=about.end_reason == "hang_up",
    )
    turns = sum(signal.kind in _OCCASIONS and signal.state is State.FINAL for signal in signals)
    against = [each for each in label(call) if each.opinion is Opinion.COMPLAINT and each.confidence >= confidence]
    return CallCount(turns=turns, complaints=min(turns, len(against)))


def remembered(count: CallCounter) -> CallCounter:
    """The same counter, which asks once for each call: an ended call stays as it is."""
    known: dict[tuple[str, float], CallCount] = {}

    def ask(journal: Journal, session: str, confidence: float) -> CallCount:
        found = known.get((session, confidence)) or count(journal, session, confidence)
        return known.setdefault((session, confidence), found)

    return ask


def observe(
    journal: Journal,
    *,
    canary: str,
    control: str,
    base: Base,
    since: float,
    now: float,
    settings: CanarySettings,
    count: CallCounter = count_call,
) -> Observed:
    """Everything since `since` in calls with `base`. `control` is the live adapter's id; empty for the base model."""
    with_, without = (_calls(journal, adapter, base, since) for adapter in (canary, control))
    mixed = {call.user for call in with_ if call.user} & {call.user for call in without}
    treated = _heard(journal, with_, mixed, now, settings, count)
    untreated = _heard(journal, without, mixed, now, settings, count)
    return Observed(
        control=untreated.people,
        canary=treated.people,
        control_turns=untreated.turns,
        control_complaints=untreated.complaints,
        canary_turns=treated.turns,
        canary_complaints=treated.complaints,
        mixed=len(mixed),
    )


def heard(
    journal: Journal,
    adapter: str,
    *,
    base: Base,
    since: float,
    until: float = math.inf,
    now: float,
    settings: CanarySettings,
    count: CallCounter = count_call,
) -> Heard:
    """Calls from `since` to `until` in which one adapter of `base` spoke, or `base` itself where it is empty."""
    return _heard(journal, _calls(journal, adapter, base, since, until), (), now, settings, count)


def _heard(
    journal: Journal,
    calls: Sequence[HeardCall],
    left_out: Collection[str],
    now: float,
    settings: CanarySettings,
    count: CallCounter,
) -> Heard:
    counted = {call.session: count(journal, call.session, settings.complaint) for call in calls}
    people = counted_people([call for call in calls if call.user not in left_out], counted, now, settings)
    with_turns = [found for found in counted.values() if found.turns]
    return Heard(
        people=Group(shares=tuple(each.share for each in people)),
        calls=Group(shares=tuple(found.complaints / found.turns for found in with_turns)),
        turns=sum(found.turns for found in with_turns),
        complaints=sum(found.complaints for found in with_turns),
    )


def counted_people(
    calls: Iterable[HeardCall], counted: Mapping[str, CallCount], now: float, settings: CanarySettings
) -> list[Counted]:
    """Everybody who counts at `now`, in the order in which they came to. `calls` are in the order of their beginnings,
    and `counted` has what happened in each. A person's share does not change any more once he counts."""
    by_user: dict[str, list[HeardCall]] = defaultdict(list)
    for call in calls:
        if call.user:
            by_user[call.user].append(call)
    return sorted(
        Counted(at=found[0], user=user, share=found[1])
        for user, theirs in by_user.items()
        if (found := _share(theirs, counted, now, settings)) is not None
    )


def _share(
    calls: Iterable[HeardCall], counted: Mapping[str, CallCount], now: float, settings: CanarySettings
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


def _calls(journal: Journal, adapter: str, base: Base, since: float, until: float = math.inf) -> list[HeardCall]:
    """Ended calls with `base` that one adapter spoke in from beginning to end, in order."""
    table, changes = schema.sessions, schema.adapter_changes
    query = select(table.c.id, table.c.user_hash, table.c.started_at, table.c.checkpoint, table.c.base_sha256).where(
        table.c.adapter == adapter,
        table.c.started_at >= since,
        table.c.ended_at.is_not(None),
        table.c.id.not_in(select(changes.c.session_id)),
    )
    if math.isfinite(until):
        query = query.where(table.c.started_at < until)
    with journal.engine.connect() as connection:
        rows = connection.execute(query.order_by(table.c.started_at, table.c.id)).all()
    return [
        HeardCall(session=session, user=user, started_at=started_at)
        for session, user, started_at, checkpoint, sha256 in rows
        if base.is_same(Base(checkpoint=checkpoint, sha256=sha256))
    ]
