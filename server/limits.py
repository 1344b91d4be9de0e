"""How much one address may ask for: calls at once, and bytes in a time, HTTP requests counted as bytes.

A bucket that fills at a steady rate up to a limit, one for each address. It is far above what talking needs, so nobody
who talks ever meets it. It knows addresses and amounts, no requests and no sockets.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from server.addresses import Visitor
from server.errors import TooFastError, TooManyCallsError, TooManyRequestsError

__all__ = ["AddressLimits", "Bucket"]

_BURST_S: Final = 8.0
_REQUEST_BYTES: Final = 4096
"""What answering a request costs us, in bytes received: 125 a second at the default rate."""
_WRONG_TOKEN_BYTES: Final = 65_536
"""A wrong token is dearer: 8 a second."""
_MESSAGE_BYTES: Final = 256
"""What looking at a message costs beyond its own bytes."""
_MOST_ADDRESSES: Final = 10_000


class Bucket:
    """Holds at most `burst` and gains `rate` a second. Starts full."""

    def __init__(self, *, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at = now

    def take(self, amount: float, now: float) -> bool:
        """Take so much if it is there. Returns whether it was; what is not there is not taken."""
        self._fill(now)
        if amount > self._level:
            return False
        self._level -= amount
        return True

    def drain(self, amount: float, now: float) -> None:
        """Take so much, or what there is."""
        self._fill(now)
        self._level = max(0.0, self._level - amount)

    def is_full(self, now: float) -> bool:
        """Whether nothing has been taken for so long that the bucket may be forgotten."""
        self._fill(now)
        return self._level >= self._burst

    def _fill(self, now: float) -> None:
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now


class AddressLimits:
    """What each address has used. Nothing is counted for this machine itself. Lives on the event loop.

    `max_calls` is calls at once, waiting ones included; `bytes_per_s` what may be sent for long, eight times as much
    at once, and at least two of the longest messages.
    """

    def __init__(
        self,
        *,
        max_calls: int,
        bytes_per_s: float,
        max_message_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_calls = max_calls
        self._rate = bytes_per_s
        self._burst = max(_BURST_S * bytes_per_s, 2.0 * max_message_bytes)
        self._clock = clock
        self._calls: dict[str, int] = {}
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def request(self, visitor: Visitor) -> None:
        """Count an HTTP request. Raises `TooManyRequestsError`."""
        if not self._take(visitor, _REQUEST_BYTES):
            raise TooManyRequestsError(self._rate / _REQUEST_BYTES)

    def wrong_token(self, visitor: Visitor) -> None:
        """Count a wrong token, or none where one is needed."""
        if not visitor.local:
            now = self._clock()
            self._bucket(visitor.address, now).drain(_WRONG_TOKEN_BYTES, now)

    def message(self, visitor: Visitor, size: int) -> None:
        """Count a message of `size` bytes. Raises `TooFastError`."""
        if not self._take(visitor, size + _MESSAGE_BYTES):
            raise TooFastError(self._rate)

    @contextmanager
    def call(self, visitor: Visitor) -> Iterator[None]:
        """Count a call for as long as the block lasts. Raises `TooManyCallsError` before it begins."""
        if visitor.local:
            yield
            return
        address = visitor.address
        if self._calls.get(address, 0) >= self._max_calls:
            raise TooManyCallsError(self._max_calls)
        self._calls[address] = self._calls.get(address, 0) + 1
        try:
            yield
        finally:
            self._calls[address] -= 1
            if not self._calls[address]:
                del self._calls[address]

    def _take(self, visitor: Visitor, amount: float) -> bool:
        if visitor.local:
            return True
        now = self._clock()
        return self._bucket(visitor.address, now).take(amount, now)

    def _bucket(self, address: str, now: float) -> Bucket:
        bucket = self._buckets.get(address)
        if bucket is None:
            self._make_room(now)
            bucket = self._buckets[address] = Bucket(rate=self._rate, burst=self._burst, now=now)
        self._buckets.move_to_end(address)
        return bucket

    def _make_room(self, now: float) -> None:
        """Forget the addresses that have been quiet longest: all that are as good as new, and one in any case."""
        while len(self._buckets) >= _MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        while self._buckets and next(iter(self._buckets.values())).is_full(now):
            self._buckets.popitem(last=False)
