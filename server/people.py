"""Whose the calls are: so many of one person at a time, and none of somebody whose token was taken away.

A person is a name in the token file, whichever of their tokens and devices they call with. The anonymous are nobody in
particular: addresses bound them (`limits`). It knows calls and who they are of; no sockets, slots or tokens.
"""

from collections.abc import Callable, Collection

from server.auth import Identity
from server.errors import TakenAwayError, TooManyOfOneError
from server.parking import Call
from server.tokens import Role

__all__ = ["People"]


class People:
    """Says which calls may be. `max_calls` is of one person, `may_call` whether somebody let in still would be."""

    def __init__(self, *, max_calls: int, may_call: Callable[[Identity], bool]) -> None:
        self._max_calls = max_calls
        self._may_call = may_call

    def check(self, who: Identity) -> None:
        """Raise `TakenAwayError` for somebody whose token was taken away since they were let in."""
        if not self._may_call(who):
            raise TakenAwayError

    def make_room(self, who: Identity, calls: Collection[Call], lost: Collection[Call]) -> list[Call]:
        """Give the calls to end so that somebody may have one more: their own lost ones, and no more than need be.

        `calls` are all there are, `lost` those of them that wait for their caller, the longest first. Raises
        `TooManyOfOneError` when that is not enough.
        """
        if not who.user_hash or who.role is Role.ADMIN:
            return []
        too_many = sum(_is_of(call, who) for call in calls) + 1 - self._max_calls
        theirs = [call for call in lost if _is_of(call, who)]
        if too_many > len(theirs):
            raise TooManyOfOneError(self._max_calls)
        return theirs[: max(0, too_many)]

    def gone(self, calls: Collection[Call]) -> list[Call]:
        """Give the calls of those who may not call any more."""
        return [call for call in calls if not self._may_call(call.who)]


def _is_of(call: Call, who: Identity) -> bool:
    return call.who.user_hash == who.user_hash
