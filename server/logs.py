"""The log on its way to standard error, without anybody waiting for it.

Whoever reads standard error may be a full disk or a stopped terminal. A thread of its own writes; what it cannot get
rid of in time is dropped and counted, so that neither the event loop nor the tick ever stands still for a line.
"""

import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Final

__all__ = ["LogThread"]

_MOST_LINES: Final = 1000
_PARTING_S: Final = 1.0


class LogThread(logging.Handler):
    """Formats lines where they are logged and writes them to a file descriptor in a thread of its own.

    It writes to the descriptor itself: a daemon thread that held Python's lock on `sys.stderr` would keep the program
    from ending. `on_dropped` is called in the logging thread for every line that finds no room.
    """

    def __init__(self, descriptor: int | None = None, *, on_dropped: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.on_dropped = on_dropped
        self._descriptor = sys.stderr.fileno() if descriptor is None else descriptor
        self._lines: queue.Queue[bytes | None] = queue.Queue(_MOST_LINES)
        self._thread = threading.Thread(target=self._write, name="duologue-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record's line, or drop it. Never blocks."""
        try:
            self._lines.put_nowait((self.format(record) + "\n").encode(errors="backslashreplace"))
        except queue.Full:
            self.on_dropped()

    def close(self) -> None:
        """Write what is there, if that is possible within a second."""
        try:
            self._lines.put(None, timeout=_PARTING_S)
        except queue.Full:
            pass
        else:
            self._thread.join(_PARTING_S)
        super().close()

    def _write(self) -> None:
        try:
            while (line := self._lines.get()) is not None:
                while line:
                    line = line[os.write(self._descriptor, line) :]
        except OSError:
            return  # nobody reads any more; what follows is dropped
