"""Files that are whole or not there, whatever happens: temporary file, fsync, rename, fsync of the folder.

And the folders they lie in, which are nobody else's business.
"""

import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["private_folder", "sync_folder", "write_durably"]


def private_folder(path: Path) -> None:
    """Make a folder, and what is missing above it, that its owner alone may look into. One that is there stays as is.

    Raises `OSError`.
    """
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)


def write_durably(path: Path, write: bytes | Callable[[Path], object]) -> None:
    """Write a file through a temporary neighbour; `write` is its bytes, or writes them to the path it is given.

    Where that fails the neighbour is removed: on a full disk it would take the room of the next try.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        if callable(write):
            write(temporary)
        else:
            temporary.write_bytes(write)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except Exception:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last, where the system can say so."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
