"""How long a stage trains, in processor time, and when it saves.

Processor time, not wall clock: a run beside other work, or stopped for a while, then learns as much as one alone.
"""

from __future__ import annotations

import argparse
import time

__all__ = ["Pace", "add_arguments"]


class Pace:
    """Processor seconds spent by this stage, in all its runs together. `minutes`: the budget."""

    def __init__(self, minutes: float, save_s: float, *, spent_s: float = 0.0) -> None:
        self.minutes, self.spent_s = minutes, spent_s
        self._save_s, self._saved_s = save_s, spent_s
        self._last = time.process_time()

    @property
    def done(self) -> float:
        """Share of the budget that is spent; 1 or more at the end."""
        return self.spent_s / (60 * self.minutes)

    def tick(self) -> bool:
        """Count what was spent since the last tick; says whether it is time to save."""
        now = time.process_time()
        self.spent_s, self._last = self.spent_s + now - self._last, now
        due = self.spent_s - self._saved_s >= self._save_s
        if due:
            self._saved_s = self.spent_s
        return due


def add_arguments(parser: argparse.ArgumentParser, *, minutes: float) -> None:
    """`--minutes` and `--save-s`, as every training stage takes them."""
    parser.add_argument("--minutes", type=float, default=minutes, help="of processor time, all runs together")
    parser.add_argument("--save-s", type=float, default=90.0, help="processor seconds between saves")
    parser.add_argument("--report-steps", type=int, default=100, help="steps between lines of the log")
