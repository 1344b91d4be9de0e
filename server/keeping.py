"""The journal of a running server: opened when the first caller permits keeping, and how it is since.

A server without such callers writes nothing. It knows the journal and the metrics, and no calls; one thread uses it.
"""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from server.errors import DuologueError
from server.journal import Journal, JournalWriter, UnknownSessionError, exclusive, open_journal
from server.journal.writer import Figures
from server.metrics import Metrics

__all__ = ["Keeping"]

log = logging.getLogger(__name__)


class Keeping:
    """Opens and closes the journal. `before` runs ahead of the first call that is kept, and may raise `OSError`."""

    def __init__(
        self, *, data_dir: Path, journal_url: str | None, metrics: Metrics, before: Callable[[], None]
    ) -> None:
        self.problem = ""
        """Why calls are not recorded that should be; empty when all is well."""
        self.writer: JournalWriter | None = None
        """None before anybody has permitted keeping, and while the journal cannot be opened."""
        self._place = (data_dir, journal_url)
        self._metrics = metrics
        self._before = before
        self._closing = contextlib.ExitStack()
        self._told = Figures()

    def open(self) -> JournalWriter | None:
        """Give the writer. A failure is told once and tried again at the next call that may be kept."""
        if self.writer is None:
            try:
                self.writer = self._open()
                self.problem = ""
            except (DuologueError, SQLAlchemyError, OSError) as problem:
                self._closing.close()
                self.problem = f"calls are not recorded: {problem}"
                log.error("%s", self.problem)  # noqa: TRY400 - the sentence says all
        return self.writer

    def look_after(self) -> None:
        """Show how the journal is."""
        if self.writer is None:
            self._metrics.journal_ok.set(not self.problem)
            return
        self.problem = f"the journal cannot be written: {self.writer.problem}" if self.writer.problem else ""
        self._metrics.journal_ok.set(self.writer.healthy)
        self._told = self._metrics.show_journal(self.writer.figures, self._told, self.writer.waiting)

    def close(self) -> None:
        """Write what was handed over, and close. Blocks."""
        with self._closing:
            if self.writer is not None:
                self.writer.stop()

    def _open(self) -> JournalWriter:
        journal = open_journal(*self._place)
        self._closing.callback(journal.engine.dispose)
        self._closing.enter_context(exclusive(journal.engine, self._place[0]))
        journal.removal.finish()
        self._before()
        writer = JournalWriter(journal.engine, journal.keys, on_withdrawn=lambda session: _withdraw(journal, session))
        writer.start()
        return writer


def _withdraw(journal: Journal, session: str) -> None:
    with contextlib.suppress(UnknownSessionError):
        journal.removal.session(session, reason="withdrawn")
