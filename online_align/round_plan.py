"""What a round is, and its file: the truth about which pairs have been trained. It trains nothing."""

from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from online_align.figures import Figures
from online_align.good_spans import GoodSpan
from online_align.settings import LearnerSettings
from server.durable import write_durably
from server.errors import DuologueError

__all__ = ["OtherBaseError", "Round", "RoundError", "RoundFiles", "Stage"]


class RoundError(DuologueError):
    """A round that cannot be planned or gone on with."""


class OtherBaseError(RoundError):
    """A round was begun on another base model than the learner has now."""


class Stage(StrEnum):
    """How far a round has come."""

    PLANNED = "planned"
    EXPORTED = "exported"
    STAGED = "staged"
    DONE = "done"
    EMPTY = "empty"
    """Everything it was to learn from has been deleted, or waits for a round on another base model."""


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One round, as its file has it. Pairs are named by their ids."""

    number: int
    made_at: float
    parent: str
    checkpoint: str
    base_sha256: str
    settings: LearnerSettings
    pairs: tuple[str, ...]
    replayed: tuple[str, ...] = ()
    """Pairs of earlier rounds, of which only the chosen sides are learned from, without a preference."""
    good: tuple[GoodSpan, ...] = ()
    """Spans that are learned from in the same way."""
    begun_again: int = 0
    """How often it was planned anew because something was deleted."""
    stage: Stage = Stage.PLANNED
    sha256: str = ""
    """Of the exported weights."""
    trained: Figures | None = None
    outcome: str = ""
    """What became of the adapter, in a sentence."""

    @property
    def adapter(self) -> str:
        """Id of the adapter that it makes."""
        return f"round-{self.number:04d}" + (f"-{self.begun_again}" if self.begun_again else "")

    @property
    def plan(self) -> str:
        """Changes whenever what is trained on changes."""
        return f"{self.adapter} {self.parent} {self.base_sha256}"

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self.stage in (Stage.DONE, Stage.EMPTY)


class RoundFiles:
    """The files of all rounds, `0001.json` and so on in `folder`. Each is whole or not there.

    Of several processes that train one adapter only the first `writes`.
    """

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self._folder, self._writes = folder, writes

    def all(self) -> list[Round]:
        """Every round so far, the oldest first. Raises `RoundError` for a file that cannot be read."""
        return [_read(path) for path in sorted(self._folder.glob("[0-9]*.json"))]

    def consumed(self) -> set[str]:
        """Ids of the pairs that some round has had. Raises `RoundError`."""
        return {pair for each in self.all() for pair in each.pairs}

    def write(self, current: Round, **changes: Any) -> Round:
        """Write a round with changes. Returns it as it is now."""
        changed = msgspec.structs.replace(current, **changes)
        if self._writes:
            text = msgspec.json.format(msgspec.json.encode(changed), indent=1)
            write_durably(self._folder / f"{changed.number:04d}.json", text)
        return changed


def _read(path: Path) -> Round:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Round)
    except msgspec.MsgspecError as problem:
        raise RoundError(
            got=f"{path.name}, which is no round ({problem})",
            expected="a file that a learner of this version wrote",
            remedy="put it back from a backup: without it its pairs would be trained again",
        ) from problem
