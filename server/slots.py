"""Who has a slot and who waits for one, first come, first served. Lives on the event loop; knows no engine."""

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from server.errors import FullError, RefusalError

__all__ = ["SlotQueue", "Ticket"]

_ENOUGH_CALLS: Final = 3
"""So many must have ended before their mean is an estimate."""
_NEWEST_WEIGHT: Final = 0.2
_LEAST_LEFT: Final = 0.25
"""A call that has lasted longer than the mean will go on, for all one knows; this share of the mean, let us say."""


class Ticket:
    """A caller's place: waiting, then with a slot. `changed` is set whenever it moves.

    It can be refused at any time, with a slot as well as without.
    """

    def __init__(self) -> None:
        self.slot: int | None = None
        self.refusal: RefusalError | None = None
        self.changed = asyncio.Event()
        self._refused = asyncio.Event()

    def refuse(self, refusal: RefusalError) -> None:
        """Send the caller away. The first refusal is the one that counts."""
        if self.refusal is None:
            self.refusal = refusal
            self._refused.set()

    async def until_refused(self) -> None:
        """Wait, for ever if need be, and raise the refusal."""
        await self._refused.wait()
        assert self.refusal is not None, "it is there before the event is set"
        raise self.refusal


class SlotQueue:
    """Slots `0 .. slots - 1` and at most `max_waiting` callers behind them, in order of arrival.

    Nobody is passed over, and no slot is idle while somebody waits, unless `hold` says that nobody is to be admitted.
    """

    def __init__(self, *, slots: int, max_waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.slots = slots
        self._max_waiting = max_waiting
        self._clock = clock
        self._free = list(range(slots))
        self._waiting: deque[Ticket] = deque()
        self._since: dict[Ticket, float] = {}
        self._held = False
        self._ended_calls = 0
        self._mean_call_s = 0.0

    @property
    def busy(self) -> int:
        """Slots in use."""
        return len(self._since)

    @property
    def waiting(self) -> int:
        """Callers without a slot."""
        return len(self._waiting)

    @property
    def short_of_slots(self) -> bool:
        """Whether the next caller would wait for a slot, and for nothing else."""
        return not self._free and not self._held

    def join(self) -> Ticket:
        """Take a free slot or the last place in the queue. Raises `FullError` when there is neither."""
        ticket = Ticket()
        if self._free and not self._held:
            self._seat(ticket)
        elif len(self._waiting) < self._max_waiting:
            self._waiting.append(ticket)
        else:
            raise FullError(self.busy, self.waiting)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give up a slot or a place in the queue. Doing it twice does nothing more."""
        since = self._since.pop(ticket, None)
        if since is not None and ticket.slot is not None:
            self._learn(self._clock() - since)
            heapq.heappush(self._free, ticket.slot)
        elif ticket in self._waiting:
            self._waiting.remove(ticket)
        else:
            return
        self._seat_waiting()

    def hold(self, held: bool) -> None:
        """Give out no slot while held; afterwards those who waited have theirs first."""
        self._held = held
        self._seat_waiting()

    def position(self, ticket: Ticket) -> int:
        """Place in the queue, from 1."""
        return self._waiting.index(ticket) + 1

    def eta_s(self, position: int) -> float | None:
        """Estimate when this place gets a slot, in seconds, from how long calls have lasted so far.

        None while there is nothing to tell it from: too few calls have ended, or nobody is admitted.
        """
        if self._held or self._ended_calls < _ENOUGH_CALLS or not self._since:
            return None
        now, mean_s = self._clock(), self._mean_call_s
        left = sorted(max(_LEAST_LEFT * mean_s, mean_s - (now - since)) for since in self._since.values())
        rounds, place = divmod(position - 1, self.slots)
        return round(left[min(place, len(left) - 1)] + rounds * mean_s, 1)

    def refuse_waiting(self, refusal: RefusalError) -> None:
        """Send everybody in the queue away."""
        for ticket in self._waiting:
            ticket.refuse(refusal)
        self._waiting.clear()

    def _seat(self, ticket: Ticket) -> None:
        ticket.slot = heapq.heappop(self._free)
        self._since[ticket] = self._clock()
        ticket.changed.set()

    def _seat_waiting(self) -> None:
        while self._free and self._waiting and not self._held:
            self._seat(self._waiting.popleft())
        for ticket in self._waiting:
            ticket.changed.set()

    def _learn(self, call_s: float) -> None:
        self._ended_calls += 1
        weight = max(_NEWEST_WEIGHT, 1 / self._ended_calls)
        self._mean_call_s += weight * (call_s - self._mean_call_s)
