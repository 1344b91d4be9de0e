"""The thread that deletes what is older than the retention time, once an hour, whether anybody calls or not.

It opens the journal itself, and only where there is one: a server that keeps nothing writes nothing. It knows no calls.
"""

import logging
import threading
from pathlib import Path
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from server.errors import DuologueError
from server.journal import open_journal
from server.journal.database import exists

__all__ = ["Retention"]

log = logging.getLogger(__name__)

_EVERY_S: Final = 3600.0
_STOP_S: Final = 5.0
_DAY_S: Final = 86_400.0


class Retention:
    """Keeps calls for so many days; 0 keeps them for ever and starts no thread."""

    def __init__(self, *, data_dir: Path, journal_url: str | None, days: float, every_s: float = _EVERY_S) -> None:
        self._place = (data_dir, journal_url)
        self._older_than_s = days * _DAY_S
        self._every_s = every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="duologue-retention", daemon=True)

    def start(self) -> None:
        """Sweep now and then every hour."""
        if self._older_than_s:
            self._thread.start()

    def stop(self) -> None:
        """End, after the call that is just being deleted at the latest. Blocks."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        while True:
            try:
                self._sweep()
            except (DuologueError, SQLAlchemyError, OSError) as problem:
                log.warning("old calls could not be deleted, they will be: %s", type(problem).__name__)
            if self._stopping.wait(self._every_s):
                return

    def _sweep(self) -> None:
        if not exists(*self._place):
            return
        journal = open_journal(*self._place)
        try:
            swept = journal.removal.sweep(older_than_s=self._older_than_s, until=self._stopping.is_set)
        finally:
            journal.engine.dispose()
        if swept:
            log.info("the retention time ended for %d calls", len(swept))
