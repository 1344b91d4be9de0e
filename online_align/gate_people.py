"""Whether one person taught everybody: how many pairs are whose, and whom the result pleases.

Nobody may own a large share of what an adapter learned from, and what pleases a person who gave much must not displease
the others. Poisoning needs little: 0.5 % of pairs plant a backdoor (arXiv 2406.12091), so these checks bound what one
person can do and do not prove that nobody did. It knows no model.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from online_align.pair_mix import CROWD, LARGEST_SHARE
from online_align.probes import Agreement
from online_align.verdicts import Check, Outcome

__all__ = ["PeopleLimits", "check_people"]


class PeopleLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one person may be."""

    share: float = LARGEST_SHARE
    """Of the pairs, at most, where there are `people`; anonymous callers are one person together."""
    people: int = CROWD
    """Fewer people are no crowd: their shares say nothing."""
    looked_at: float = 0.10
    """Who gave more than this share is compared with the others."""
    gap: float = 0.30
    """By which his own preferred share may exceed that of others' held-out pairs, while that is below `others`."""
    others: float = 0.60
    least_pairs: int = 8
    """Of others' held-out pairs, for a comparison."""


def check_people(
    trained_by: Sequence[str],
    own: Callable[[str], Agreement],
    others: Callable[[str], Agreement],
    limits: PeopleLimits,
) -> list[Check]:
    """`trained_by` has the user's hash of every pair; `own` and `others` say how his and the others' pairs fare."""
    counts = Counter(trained_by)
    return [_shares(counts, limits), _influence(counts, own, others, limits)]


def _shares(counts: Counter[str], limits: PeopleLimits) -> Check:
    name, total = "largest_share", sum(counts.values())
    limit = f"at most {limits.share:.0%}"
    if len(counts) < limits.people:
        reason = (
            f"It learned from {total} pairs of {len(counts)} people: with fewer than {limits.people} no limit of one "
            "person's share can hold, and whoever gave them decides."
        )
        return Check(name=name, outcome=Outcome.UNKNOWN, reason=reason, limit=limit, figures={"pairs": float(total)})
    user, most = counts.most_common(1)[0]
    says = f"{_who(user)} gave {most} of {total} pairs, {most / total:.0%} (limit {limits.share:.0%})"
    failed = most / total > limits.share
    return Check(
        name=name,
        outcome=Outcome.FAILED if failed else Outcome.PASSED,
        reason=f"One person would teach everybody: {says}." if failed else f"{says[0].upper()}{says[1:]}.",
        value=most / total,
        limit=limit,
        figures={"pairs": float(total), "people": float(len(counts))},
    )


def _influence(
    counts: Counter[str], own: Callable[[str], Agreement], others: Callable[[str], Agreement], limits: PeopleLimits
) -> Check:
    name, total = "influence", sum(counts.values())
    heavy = [user for user, count in counts.most_common() if count > limits.looked_at * total]
    if not heavy:
        reason = f"Nobody gave more than {limits.looked_at:.0%} of its pairs."
        return Check(name=name, outcome=Outcome.PASSED if counts else Outcome.UNKNOWN, reason=reason)
    worst: Check | None = None
    for user in heavy:
        his, theirs = own(user), others(user)
        if his.share is None or theirs.share is None or theirs.pairs < limits.least_pairs:
            continue
        failed = theirs.share < limits.others and his.share - theirs.share > limits.gap
        says = f"{his.share:.0%} of {_who(user)}'s pairs are won and {theirs.share:.0%} of others' held-out ones"
        check = Check(
            name=name,
            outcome=Outcome.FAILED if failed else Outcome.PASSED,
            reason=f"It learned one person's wishes against the others': {says}." if failed else f"{says}.",
            value=his.share - theirs.share,
            limit=f"at most {limits.gap:.0%} unless others win {limits.others:.0%}",
            figures={"own": his.share, "others": theirs.share, "others_pairs": float(theirs.pairs)},
        )
        if worst is None or (failed and worst.outcome is Outcome.PASSED) or (check.value or 0) > (worst.value or 0):
            worst = check
    if worst is None:
        reason = f"{len(heavy)} people gave much of it, and there are too few held-out pairs of others to compare with."
        return Check(name=name, outcome=Outcome.UNKNOWN, reason=reason)
    return worst


def _who(user: str) -> str:
    """A person by the beginning of his keyed hash, which an operator can look up."""
    return f"user {user[:12]}" if user else "anonymous callers together"
