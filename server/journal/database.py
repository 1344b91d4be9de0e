"""Opens the journal's database, brings its schema up to date, and lets one server record at a time.

SQLite unless an URL says otherwise: write-ahead log, `synchronous=FULL` (a commit is on disk when it returns),
`secure_delete` (deleted rows are overwritten). It knows nothing of what is in the tables.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from server.durable import private_folder
from server.journal.errors import JournalError, JournalLockedError

__all__ = ["connect", "exclusive", "exists", "purge", "upgrade"]

_FILE: Final = "journal.sqlite"
_LOCK: Final = "journal.lock"
_ADVISORY: Final = 0x00_D0_0106
_BUSY_MS: Final = 10_000
_UPGRADING: Final = threading.Lock()
"""Alembic's context is one for the whole process."""
_PRAGMAS: Final = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "secure_delete=ON",
    f"busy_timeout={_BUSY_MS}",
)


def connect(data_dir: Path, url: str | None = None) -> Engine:
    """Open the database at `url`, by default a file in `data_dir`. Raises `JournalError`."""
    try:
        if url is None:
            private_folder(data_dir)
        engine = create_engine(_parsed(url) if url else f"sqlite:///{data_dir / _FILE}")
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _set_pragmas)
        upgrade(engine)
    except (SQLAlchemyError, CommandError, OSError, ImportError) as problem:
        raise JournalError(
            got=f"a journal that cannot be opened ({problem})",
            expected="a writable folder, or the URL of a database",
            remedy="correct data_dir or journal_url",
        ) from problem
    return engine


def _parsed(url: str) -> URL:
    """Take a URL apart. Its mistakes are not quoted: they may be a part of the password."""
    try:
        return make_url(url)
    except ValueError as problem:
        raise JournalError(
            got="a database's URL whose port is no number",
            expected="postgresql+psycopg://USER:PASSWORD@HOST/NAME",
            remedy="write @, : and / in the password as %40, %3A and %2F",
        ) from problem


def exists(data_dir: Path, url: str | None = None) -> bool:
    """Whether there is a journal to open: one at `url` always counts as there."""
    return url is not None or (data_dir / _FILE).exists()


def _set_pragmas(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def upgrade(engine: Engine) -> None:
    """Bring the schema to the newest version, in one transaction."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    with _UPGRADING, engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextlib.contextmanager
def exclusive(engine: Engine, data_dir: Path) -> Iterator[None]:
    """Be the only one who records, for as long as the block lasts. Raises `JournalLockedError`.

    The lock ends with the process, however it ends.
    """
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            if not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _ADVISORY}):
                raise JournalLockedError(str(engine.url.render_as_string(hide_password=True)))
            connection.commit()
            yield
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _ADVISORY})
            connection.commit()
        return
    with _locked(data_dir / _LOCK):
        yield


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl  # noqa: PLC0415 - not on Windows, where a client may import this package

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as problem:
        raise JournalLockedError(str(path.parent)) from problem
    finally:
        os.close(descriptor)


def purge(engine: Engine) -> None:
    """Make sure that what was deleted is in no file any more: the write-ahead log is written back and emptied."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        else:
            connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("VACUUM frames")
