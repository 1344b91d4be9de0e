"""What was kept of calls, safely: written in groups by one thread, sealed with a key per call, deletable for good.

`open_journal` gives the parts: a reader for anybody, a writer for one server, removal.
"""

from pathlib import Path

import msgspec
from sqlalchemy import Engine

from server.journal.afterwards import replace_signals
from server.journal.database import connect, exclusive
from server.journal.errors import JournalError, JournalLockedError, KeyGoneError, UnknownSessionError
from server.journal.keys import KeyRing
from server.journal.reader import JournalReader
from server.journal.records import AdapterChange, Columns, SessionRecord, TickRecord
from server.journal.removal import Removal, export
from server.journal.writer import Figures, JournalWriter

__all__ = [
    "AdapterChange",
    "Columns",
    "Figures",
    "Journal",
    "JournalError",
    "JournalLockedError",
    "JournalReader",
    "JournalWriter",
    "KeyGoneError",
    "KeyRing",
    "Removal",
    "SessionRecord",
    "TickRecord",
    "UnknownSessionError",
    "exclusive",
    "export",
    "open_journal",
    "replace_signals",
]


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """An open journal."""

    engine: Engine
    keys: KeyRing
    reader: JournalReader
    removal: Removal


def open_journal(data_dir: Path, url: str | None = None) -> Journal:
    """Open the journal in `data_dir`, or at `url` with its keys in `data_dir`. Raises `JournalError`."""
    engine, keys = connect(data_dir, url), KeyRing(data_dir / "keys")
    return Journal(engine=engine, keys=keys, reader=JournalReader(engine, keys), removal=Removal(engine, keys))
