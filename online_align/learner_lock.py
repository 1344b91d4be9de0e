"""One learner at a time on a journal and a data folder. The lock ends with the process, however it ends."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import Engine, text

from server.errors import DuologueError

__all__ = ["LearnerLockedError", "only_learner"]

_FILE: Final = "learner.lock"
_ADVISORY: Final = 0x00_D0_0107


class LearnerLockedError(DuologueError):
    """Another learner is at work there."""

    def __init__(self, where: str) -> None:
        super().__init__(
            got=f"a second learner on {where}",
            expected="one learner for a journal and its data folder",
            remedy="stop the other one, or wait until it has ended",
        )


@contextlib.contextmanager
def only_learner(engine: Engine, data_dir: Path) -> Iterator[None]:
    """Be the only learner on this journal and in this folder for as long as the block lasts.

    Raises `LearnerLockedError`.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    with _folder_locked(data_dir), _journal_locked(engine):
        yield


@contextlib.contextmanager
def _folder_locked(data_dir: Path) -> Iterator[None]:
    import fcntl  # noqa: PLC0415 - not on Windows, where commands that do not learn may import this package

    descriptor = os.open(data_dir / _FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise LearnerLockedError(str(data_dir)) from problem
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _journal_locked(engine: Engine) -> Iterator[None]:
    """PostgreSQL may be shared by machines; a journal in a file is in the folder."""
    if engine.dialect.name != "postgresql":
        yield
        return
    with engine.connect() as connection:
        if not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _ADVISORY}):
            raise LearnerLockedError(str(engine.url.render_as_string(hide_password=True)))
        connection.commit()
        yield
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _ADVISORY})
        connection.commit()
