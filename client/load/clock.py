"""An event loop that knows how late it is: the difference between a slow server and a slow load generator.

Bytes that lie in the kernel while this program is busy, or while the system lets another program run, look like a
late server. `LateLoop` bounds that time for every event it hands out.
"""

import asyncio
import os
import selectors
import time
from typing import Any, Final

__all__ = ["LateLoop"]

_RUN_QUEUE: Final = "/proc/thread-self/schedstat"


class LateLoop(asyncio.SelectorEventLoop):
    """A selector loop with one more question: how long may the event in hand have waited for us?"""

    def __init__(self) -> None:
        self._watch = _Watch()
        super().__init__(self._watch)

    def late_s(self) -> float:
        """Bound the seconds between the moment that bytes could have been read and now, in their callback."""
        return time.monotonic() - self._watch.could_read_at


class _Watch(selectors.DefaultSelector):
    """Notes, for every batch of events, the earliest moment that they can have been there unread."""

    def __init__(self) -> None:
        super().__init__()
        self.could_read_at = self._looked_at = time.monotonic()
        self._run_queue = _RunQueue()

    def select(self, timeout: float | None = None) -> Any:
        """Look first without waiting: what is there already may have come at any time since the last look."""
        ready = super().select(0)
        if ready or timeout == 0:
            self.could_read_at = self._looked_at
        else:
            waited_s = self._run_queue.wait_s()
            ready = super().select(timeout)
            # Woken by the event itself; only the system can have let it wait, for another program's turn.
            self.could_read_at = time.monotonic() - (self._run_queue.wait_s() - waited_s)
        self._looked_at = time.monotonic()
        return ready

    def close(self) -> None:
        """Close the file of the run queue, too."""
        self._run_queue.close()
        super().close()


class _RunQueue:
    """How long this thread has been ready to run while another had the core; 0 where the system does not tell."""

    def __init__(self) -> None:
        try:
            self._file = os.open(_RUN_QUEUE, os.O_RDONLY)
        except OSError:
            self._file = -1

    def wait_s(self) -> float:
        return int(os.pread(self._file, 64, 0).split()[1]) / 1e9 if self._file >= 0 else 0.0

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
