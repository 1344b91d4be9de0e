"""What a judge of adapters says: checks with numbers, limits and a sentence each, and what follows from all of them.

It knows no adapter and no database beyond the row that a verdict becomes.
"""

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from server.journal.registry import VerdictRow, VerdictStage

__all__ = ["Check", "Outcome", "Verdict", "conclude"]


class Outcome(StrEnum):
    """What a check came to."""

    PASSED = "passed"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """There was not enough to tell by."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    name: str
    outcome: Outcome
    reason: str
    """One sentence for a person."""
    value: float | None = None
    """With the adapter."""
    base: float | None = None
    """Without it, where that was measured."""
    limit: str = ""
    """What the value has to keep to, in words."""
    figures: dict[str, float | None] = {}
    """More numbers it rests on."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """All checks of one adapter."""

    passed: bool
    reason: str
    checks: tuple[Check, ...]
    about: dict[str, str | float | None] = {}
    """By what it was judged: version of the gate, hash of the probes, seconds it took."""

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that stand in the way."""
        return tuple(check for check in self.checks if check.outcome is Outcome.FAILED)

    def check(self, name: str) -> Check:
        """The check of that name. Raises `KeyError`."""
        return {check.name: check for check in self.checks}[name]

    def row(self, adapter_id: str, stage: VerdictStage) -> VerdictRow:
        """What the journal keeps of it."""
        figures = msgspec.json.encode({"about": self.about, "checks": self.checks}).decode()
        return VerdictRow(adapter_id=adapter_id, stage=stage, passed=self.passed, reason=self.reason, figures=figures)


def conclude(
    checks: Iterable[Check], *, must_know: Iterable[str] = (), about: dict[str, str | float | None] | None = None
) -> Verdict:
    """Passed when no check failed and none of `must_know` is unknown."""
    found, needed = tuple(checks), set(must_know)
    against = [c for c in found if c.outcome is Outcome.FAILED or (c.outcome is Outcome.UNKNOWN and c.name in needed)]
    unknown = [check.name for check in found if check.outcome is Outcome.UNKNOWN and check not in against]
    if against:
        reason = " ".join(check.reason for check in against)
    else:
        reason = f"All {len(found) - len(unknown)} checks passed"
        reason += f"; not enough to tell: {', '.join(unknown)}." if unknown else "."
    return Verdict(passed=not against, reason=reason, checks=found, about=about or {})
