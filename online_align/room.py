"""A disk that is full, or a folder that cannot be written: said in a sentence, and nothing half-written stays."""

import contextlib
from collections.abc import Iterator

from safetensors import SafetensorError
from sqlalchemy.exc import OperationalError

from server.errors import DuologueError

__all__ = ["StorageError", "storing"]


class StorageError(DuologueError):
    """Something could not be read or written. What was being made is where it was, and can be gone on with."""


@contextlib.contextmanager
def storing() -> Iterator[None]:
    """Raises `StorageError` where the block fails for a file or a database."""
    try:
        yield
    except (OSError, SafetensorError, OperationalError) as problem:
        first = str(problem).partition("\n")[0]
        raise StorageError(
            got=f"{type(problem).__name__}: {first}",
            expected="a data folder that can be written, with room for an adapter",
            remedy="make room, or look at the folder's permissions; the round goes on from where it is",
        ) from problem
