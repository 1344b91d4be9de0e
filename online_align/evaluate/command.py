"""`duologue-align evaluate --suite NAME`: prints one measurement as a table, or as JSON last."""

import argparse
import importlib
from collections.abc import Sequence
from typing import Final

from benchmarks.report import note, publish

__all__ = ["run"]

SUITES: Final = {"signals": "online_align.evaluate.signals"}
"""Every suite's module, which has `measured_rows(rounds, half, checkpoint)`."""


def run(arguments: Sequence[str]) -> int:
    """Measure and print. Returns 0 when every goal is met, else 1."""
    parser = argparse.ArgumentParser(prog="duologue-align evaluate", description="Measure what the project claims.")
    parser.add_argument("--suite", choices=sorted(SUITES), required=True)
    parser.add_argument("--json", action="store_true", help="print one JSON object last instead of a table")
    parser.add_argument("--checkpoint", default="mini", help="mini or a folder (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="how often each scene is played (default: %(default)s)")
    parser.add_argument(
        "--half",
        choices=("tune", "report"),
        default="report",
        help="thresholds were chosen on `tune` (default: report)",
    )
    asked = parser.parse_args(arguments)
    note(f"suite {asked.suite}, half {asked.half}, {asked.rounds} rounds")
    suite = importlib.import_module(SUITES[asked.suite])
    rows = suite.measured_rows(rounds=asked.rounds, half=asked.half, checkpoint=asked.checkpoint)
    publish(f"evaluate {asked.suite}", rows, as_json=asked.json)
    return 0 if all(row.met is not False for row in rows) else 1
