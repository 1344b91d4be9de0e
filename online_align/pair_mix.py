"""Which pairs may be learned from together: the mix of kinds, how much one caller may teach, who is held out.

It counts; it opens no pair. The shares are those that Wu et al. (arXiv 2506.21463) end with: with silence pairs
unchecked, their model spoke four times as much.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from online_align.records import PairKind

__all__ = ["CROWD", "DEFAULT_MIX", "LARGEST_SHARE", "Mix", "Quota", "fair_share", "fingerprint", "is_heldout"]

LARGEST_SHARE: Final = 0.25
"""Of the pairs that an adapter learned from, one person's at most: the gate refuses more, a round takes no more."""
CROWD: Final = 5
"""Where fewer people taught, no limit of one's share can hold."""

_PART: Final = 2.0**-32


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """Limits on what is made."""

    timing_share: float = 0.27
    """Of all pairs, that may be about timing alone. Pairs about content are never too many."""
    kind_share: float = 0.135
    """Of all pairs, that one kind of timing may have."""
    free: int = 100
    """So many of each kind of timing are taken whatever the shares: without content pairs there would be none."""
    per_user: int = 200
    """Pairs of one caller that are taken whatever his share; anonymous callers are one."""
    user_share: float = 0.1
    """Beyond that, share of all pairs that one caller may have."""
    heldout_share: float = 0.049
    """Of callers, kept for validation: 13,953 of 283,740 in the paper."""


DEFAULT_MIX: Final = Mix()


class Quota:
    """What may still be added to what there is."""

    def __init__(self, mix: Mix, known: Iterable[tuple[PairKind, str, str]] = ()) -> None:
        """`known`: of each pair its kind, its caller and its fingerprint."""
        self._mix = mix
        self._kinds: Counter[PairKind] = Counter()
        self._users: Counter[str] = Counter()
        self._prints: set[str] = set()
        for kind, user_hash, print_ in known:
            self.note(kind, user_hash, print_)

    def refuses(self, kind: PairKind, user_hash: str) -> str:
        """Why one more pair of this kind and caller is too many; empty when it is not."""
        total = self._kinds.total() + 1
        if kind.about_timing and self._kinds[kind] + 1 > self._mix.free:
            timing = sum(count for each, count in self._kinds.items() if each.about_timing) + 1
            if timing > self._mix.timing_share * total or self._kinds[kind] + 1 > self._mix.kind_share * total:
                return "enough of its kind"
        if self._users[user_hash] + 1 > max(self._mix.per_user, self._mix.user_share * total):
            return "enough of this caller"
        return ""

    def knows(self, print_: str) -> bool:
        """Whether another pair teaches the same."""
        return print_ in self._prints

    def note(self, kind: PairKind, user_hash: str, print_: str) -> None:
        """Count a pair that was added."""
        self._kinds[kind] += 1
        self._users[user_hash] += 1
        if print_:
            self._prints.add(print_)


def fair_share(
    calls: Sequence[tuple[str, int]],
    learned: Counter[str] | None = None,
    *,
    share: float = LARGEST_SHARE,
    people: int = CROWD,
) -> list[int]:
    """Which of `calls` may be learned from at once, so that nobody gave more than `share` of all the pairs.

    `calls` are callers and how many pairs their call made, the oldest first; `learned` counts the pairs that have been
    learned from already, by caller. The rest waits until others have called. Fewer `people` than that are no crowd, and
    all may be taken. Returns places in `calls`, in order.
    """
    before = learned or Counter()
    offered = before + Counter()
    for user, pairs in calls:
        offered[user] += pairs
    if len(offered) < people:
        return list(range(len(calls)))
    total = offered.total()
    # Whoever has too much is cut down to the share, which makes the whole smaller and with it the share: until it fits.
    while True:
        kept, all_pairs = _taken(calls, before, most=int(share * total))
        if all_pairs >= total:
            return kept
        total = all_pairs


def _taken(calls: Sequence[tuple[str, int]], before: Counter[str], *, most: int) -> tuple[list[int], int]:
    """Calls in order as far as everybody stays within `most`, and how many pairs there are then."""
    taken, kept = Counter(before), []
    for place, (user, pairs) in enumerate(calls):
        if taken[user] + pairs <= most:
            taken[user] += pairs
            kept.append(place)
    return kept, taken.total()


def is_heldout(user_hash: str, session: str, share: float) -> bool:
    """Whether pairs of this caller, or of this call of somebody anonymous, are kept for validation. Always the same."""
    owner = f"user/{user_hash}" if user_hash else f"session/{session}"
    part = int.from_bytes(hashlib.sha256(f"heldout/{owner}".encode()).digest()[:4], "big") * _PART
    return part < share


def fingerprint(kind: PairKind, heard_TU: NDArray[np.int16], chosen: str, rejected: str) -> str:
    """Equal for pairs in which the same sound of the caller has the same two replies; tells nothing about either.

    `heard_TU` is what the model heard before the sides part.
    """
    digest = hashlib.sha256(f"{kind.value}\0{chosen}\0{rejected}\0".encode())
    digest.update(np.ascontiguousarray(heard_TU, "<i2").tobytes())
    return digest.hexdigest()[:32]
