"""Which pairs the next round takes, and which go on waiting: nobody's many may crowd out others or teach everybody.

The gate refuses an adapter of which one person taught too much (`gate_people`); a round that would be refused for that
is not made, the pairs wait until more people have called. It opens no pair and knows no files.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

import msgspec

from online_align.pair_mix import fair_share
from online_align.pair_store import PairSummary

__all__ = ["Waiting", "waiting_of"]


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """What no round has had."""

    ids: list[str]
    """What a round would take now, the oldest first."""
    later: int
    """How many others there are."""


def waiting_of(
    there: Sequence[PairSummary], *, consumed: Collection[str], learned_from: Collection[str], most: int
) -> Waiting:
    """Choose of all pairs `there`, the oldest first. `consumed` are those that some round has had.

    `learned_from` are the calls that the round's parent learned from, which count as what is taken does. Of more than
    `most` pairs everybody's calls are taken in turn.
    """
    known = set(learned_from)
    learned = Counter(each.user_hash for each in there if each.id in consumed and each.session in known)
    calls = _in_turn(each for each in there if each.id not in consumed)
    few = list(itertools.takewhile(lambda call: call.so_far <= most, calls)) or calls[:1]
    taken = fair_share([(call.user, len(call.pairs)) for call in few], learned)
    chosen = {pair for place in taken for pair in few[place].pairs}
    return Waiting(
        ids=[each.id for each in there if each.id in chosen],
        later=sum(len(call.pairs) for call in calls) - len(chosen),
    )


class _Call(msgspec.Struct, frozen=True, kw_only=True):
    """The pairs of one call, which are taken together: lineage is by call."""

    user: str
    pairs: tuple[str, ...]
    so_far: int
    """Pairs of this call and of all before it."""


def _in_turn(pairs: Iterable[PairSummary]) -> list[_Call]:
    """By call: everybody's oldest first, then everybody's second, and so on."""
    by_call: dict[str, list[PairSummary]] = defaultdict(list)
    for each in pairs:
        by_call[each.session].append(each)
    turn: Counter[str] = Counter()
    order = []
    for place, theirs in enumerate(by_call.values()):
        order.append((turn[theirs[0].user_hash], place, theirs))
        turn[theirs[0].user_hash] += 1
    so_far, calls = 0, []
    for _, _, theirs in sorted(order, key=lambda each: each[:2]):
        so_far += len(theirs)
        calls.append(_Call(user=theirs[0].user_hash, pairs=tuple(pair.id for pair in theirs), so_far=so_far))
    return calls
