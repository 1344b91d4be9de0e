"""What an adapter's row and a verdict are, which moves between states there are, and what a name and a path may be.

It knows no SQL and no files' contents.
"""

import re
import secrets
import time
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from server.journal.errors import JournalError

__all__ = [
    "BY_SERVER",
    "MOVES",
    "NEEDS",
    "SPEAKING",
    "AdapterRow",
    "AdapterState",
    "RegistryError",
    "VerdictRow",
    "VerdictStage",
    "check_row",
    "folder_of",
    "named_state",
    "refused",
]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class AdapterState(StrEnum):
    """How far an adapter has come."""

    STAGED = "staged"
    CANARY = "canary"
    LIVE = "live"
    RETIRED = "retired"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"


class VerdictStage(StrEnum):
    """Who judged."""

    GATE = "gate"
    CANARY = "canary"


MOVES: Final[dict[AdapterState, frozenset[AdapterState]]] = {
    AdapterState.STAGED: frozenset({AdapterState.CANARY, AdapterState.REJECTED}),
    AdapterState.CANARY: frozenset({AdapterState.LIVE, AdapterState.REJECTED, AdapterState.ROLLED_BACK}),
    AdapterState.LIVE: frozenset({AdapterState.RETIRED, AdapterState.ROLLED_BACK}),
    AdapterState.RETIRED: frozenset({AdapterState.LIVE}),
    AdapterState.REJECTED: frozenset(),
    AdapterState.ROLLED_BACK: frozenset(),
}
SPEAKING: Final = (AdapterState.CANARY, AdapterState.LIVE)
BY_SERVER: Final = '{"by": "server"}'
"""Figures of the verdict of a server that cannot use an adapter's files."""
NEEDS: Final = {AdapterState.CANARY: VerdictStage.GATE, AdapterState.LIVE: VerdictStage.CANARY}


class RegistryError(JournalError):
    """An adapter that is not there, cannot be entered, or may not move so."""


class AdapterRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `adapters`, where each field is described."""

    id: str
    state: AdapterState = AdapterState.STAGED
    made_at: float = msgspec.field(default_factory=time.time)
    changed_at: float = 0.0
    parent: str = ""
    checkpoint: str
    path: str
    """Folder, relative to the data folder, with `/` between its parts."""
    sha256: str
    manifest: str = "{}"
    withdrawn: bool = False


class VerdictRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `verdicts`, where each field is described. `figures` is JSON."""

    id: str = msgspec.field(default_factory=lambda: secrets.token_hex(12))
    adapter_id: str
    stage: VerdictStage
    at: float = msgspec.field(default_factory=time.time)
    passed: bool
    reason: str
    figures: str = "{}"


def folder_of(data_dir: Path, row: AdapterRow) -> Path:
    """Where an adapter's files are. Raises `RegistryError` for a path that leads out of `data_dir`, links included."""
    root = data_dir.resolve()
    folder = (root / row.path).resolve()
    if not _is_inside(row.path) or not folder.is_relative_to(root) or folder == root:
        raise refused(f"path {row.path!r} of adapter {row.id!r}", "a folder in the data folder", "stage it again")
    return folder


def check_row(row: AdapterRow) -> None:
    """Whether a row may be entered. Raises `RegistryError`."""
    if not _NAME.fullmatch(row.id) or ".." in row.id:
        raise refused(f"id {row.id[:80]!r}", "up to 64 letters, digits, . _ and -, and no ..", "name it otherwise")
    if not _is_inside(row.path):
        raise refused(f"path {row.path[:80]!r}", "a folder below the data folder", "put it in adapters/ID there")
    if not _SHA256.fullmatch(row.sha256):
        raise refused(f"sha256 {row.sha256[:80]!r}", "64 hexadecimal digits", "give that of lora.safetensors")
    if row.state is not AdapterState.STAGED:
        raise refused(f"a new adapter that is {row.state}", "one that is staged", "move it afterwards")


def _is_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    odd = "\\" in path or "\0" in path or ":" in path or ".." in parts
    return bool(parts) and not path.startswith("/") and not odd


def named_state(name: AdapterState | str) -> AdapterState:
    """The state of that name. Raises `RegistryError`."""
    try:
        return AdapterState(name)
    except ValueError as problem:
        raise refused(f"state {name!r}", f"one of {', '.join(AdapterState)}", "correct it") from problem


def refused(got: str, expected: str, remedy: str) -> RegistryError:
    """The error to raise."""
    return RegistryError(got=got, expected=expected, remedy=remedy)
