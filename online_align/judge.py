"""What a judge is: it reads an exchange and gives seven marks, and it may know better words.

The axes are those of Wu et al. (arXiv 2506.21463), each from 1 to 5. A judge reads text; timing is judged by clocks,
not by opinions (an LLM misreads it: arXiv 2604.14920), so the two axes about timing count nothing here. Judges are in
`judge_rules` and `judge_endpoint`.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from server.errors import DuologueError

__all__ = ["AXES", "CONTENT_AXES", "Exchange", "Judge", "JudgeError", "Marks", "NoMarksError", "best"]

CONTENT_AXES: Final = ("helpfulness", "safety", "factual_accuracy", "instruction_adherence", "tone")
AXES: Final = (*CONTENT_AXES, "interruption", "unresponsiveness")
"""Higher is better on each: 5 under `interruption` means that nobody was cut off."""


class JudgeError(DuologueError):
    """A judge that cannot judge: unreachable, out of budget, or not to be understood."""


class NoMarksError(JudgeError):
    """A judge that is there and gives this one exchange no marks, however often it is asked. Others may get some."""


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked, and a reply."""

    asked: str
    """Empty where nobody could hear it."""
    reply: str
    before: tuple[str, ...] = ()
    """What was said before, oldest first, each line with its speaker and seconds."""


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    """From 1 to 5 on every axis."""

    axes: dict[str, float]
    reason: str = ""

    @property
    def overall(self) -> float:
        """The mean of the axes about content."""
        return sum(self.axes[axis] for axis in CONTENT_AXES) / len(CONTENT_AXES)


class Judge(Protocol):
    """Gives marks to exchanges."""

    name: str
    """With its version: every pair it chose says so."""

    def marks(self, exchanges: Sequence[Exchange]) -> list[Marks]:
        """Marks of each. Raises `JudgeError`."""

    def better_words(self, exchange: Exchange) -> str | None:
        """What should have been said; None where it does not know. Raises `JudgeError`."""


def best(judge: Judge, exchanges: Sequence[Exchange]) -> tuple[int, list[Marks]]:
    """Place of the best reply, the first among equals, and all marks. Raises `JudgeError`."""
    marks = judge.marks(exchanges)
    return max(range(len(marks)), key=lambda place: (marks[place].overall, -place)), marks
