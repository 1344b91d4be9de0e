"""What is live goes on being watched: when people complain more than before, it is taken back without anybody's word.

The canary has heard hundreds of turns; being live is where the thousands are. Everybody hears the live adapter, so it
is compared with what would speak if it were taken back: with those who heard that while the adapter was canary, whose
figures the verdict keeps, or, where there was no canary over people, with the calls before it went live. The test is
the canary's (`canary`), and only its "harm" counts here. It trains nothing and knows no server.
"""

import time
from typing import Any, Final

import msgspec

from online_align.bases import base_of
from online_align.canary import CanarySettings, Decision, Group, Reading, read
from online_align.observations import CallCounter, Heard, Observed, count_call, heard
from online_align.release import ReleaseSettings
from server.journal import Journal
from server.journal.registry import AdapterRegistry, AdapterRow, AdapterState, VerdictStage

__all__ = ["Watched", "watch"]

_WITHDRAWN: Final = "It learned from a call that has been deleted since."


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """One look at what is live."""

    live: str
    before: str
    """What it is compared with and would be live again; empty for the base model."""
    since: float
    """Calls that began then or later are looked at."""
    reading: Reading
    by_calls: bool
    """Each call counts for itself, because there are no people to tell apart."""
    rolled_back: bool = False


def watch(
    journal: Journal,
    settings: ReleaseSettings | None = None,
    *,
    now: float | None = None,
    count: CallCounter = count_call,
) -> Watched | None:
    """Look at the live adapter, as often as one likes, and take it back when people complain more. None for none.

    Everybody counts once in a time of `canary.longest_s`, after which the test begins anew: what was good in its first
    fortnight may be bad in the third. Raises `JournalError`.
    """
    wanted = settings or ReleaseSettings()
    registry = AdapterRegistry(journal.engine)
    row = registry.live()
    if row is None:
        return None
    at = time.time() if now is None else now
    before = registry.predecessor(row.id)
    since = _window(row.changed_at, at, wanted.canary)
    live = heard(journal, row.id, base=base_of(row), since=since, now=at, settings=wanted.canary, count=count)
    name = before.id if before else ""
    by_calls = wanted.evidence != "users"
    control = _control(journal, row, name, wanted.canary, count, by_calls=by_calls)
    reading = read(control, live.calls if by_calls else live.people, wanted.canary)
    looked = Watched(live=row.id, before=name, since=since, reading=reading, by_calls=by_calls)
    if not row.withdrawn and reading.decision is not Decision.HARM:
        return looked
    reason = _WITHDRAWN if row.withdrawn else _sentence(looked)
    figures = {"about": {"by": "watch"}, "watched": msgspec.to_builtins(looked)}
    registry.roll_back(row.id, reason=reason, figures=msgspec.json.encode(figures).decode(), expected=AdapterState.LIVE)
    return msgspec.structs.replace(looked, rolled_back=True)


def _window(live_since: float, now: float, settings: CanarySettings) -> float:
    """When the present one of the times of `longest_s` since it went live began."""
    return live_since + max(0.0, now - live_since) // settings.longest_s * settings.longest_s


def _control(
    journal: Journal, row: AdapterRow, before: str, settings: CanarySettings, count: CallCounter, *, by_calls: bool
) -> Group:
    """Those who heard what spoke before: as the canary's verdict has them, or the calls before it went live."""
    if not by_calls:
        kept = _canarys_control(AdapterRegistry(journal.engine), row.id)
        if len(kept.shares) >= settings.least_users:
            return kept
    since = row.changed_at - settings.longest_s
    found: Heard = heard(
        journal, before, base=base_of(row), since=since, until=row.changed_at, now=row.changed_at, settings=settings,
        count=count,
    )  # fmt: skip
    return found.calls if by_calls else found.people


def _canarys_control(registry: AdapterRegistry, adapter: str) -> Group:
    """The control group of the verdict that made it live; nobody where that was somebody's word."""
    said = [each for each in registry.verdicts(adapter) if each.stage is VerdictStage.CANARY and each.passed]
    figures: dict[str, Any] = msgspec.json.decode(said[-1].figures) if said else {}
    observed = figures.get("observed")
    return Group() if observed is None else msgspec.convert(observed, Observed).control


def _sentence(looked: Watched) -> str:
    reading = looked.reading
    what = "calls" if looked.by_calls else "people"
    weak = " Whose calls they were is not known, so this is weak evidence." if looked.by_calls else ""
    other = looked.before or "the base model"
    return (
        f"After it went live {reading.canary or 0:.1%} of the turns of {reading.canary_users} {what} brought a "
        f"complaint, and {reading.control or 0:.1%} of {reading.control_users} {what} with {other}: people complain "
        f"more (difference {reading.low or 0:+.1%} to {reading.high or 0:+.1%}, p {reading.p:.3g}).{weak}"
    )
