"""`duologue-align evaluate --suite NAME`: prints one measurement as a table, or as JSON last."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final

from benchmarks.report import note, publish
from server.errors import DuologueError

__all__ = ["run"]

SUITES: Final = {
    "mini": "online_align.evaluate.mini",
    "outside": "online_align.evaluate.outside",
    "signals": "online_align.evaluate.signals",
}
"""Every suite's module, which has `add_arguments(parser)` and `measured_rows(arguments)`."""


def run(arguments: Sequence[str]) -> int:
    """Measure and print. Returns 0 when every goal is met, else 1; 2 when it could not be measured."""
    which = _parser(add_help=False)
    named = which.parse_known_args([each for each in arguments if each not in ("-h", "--help")])[0]
    suite = importlib.import_module(SUITES[named.suite])
    parser = _parser(add_help=True)
    suite.add_arguments(parser)
    asked = parser.parse_args(arguments)
    note(f"suite {asked.suite} on {asked.checkpoint}")
    try:
        rows = suite.measured_rows(asked)
    except DuologueError as problem:
        print(f"duologue-align: {problem}", file=sys.stderr)
        return 2
    publish(f"evaluate {asked.suite}", rows, as_json=asked.json)
    return 0 if all(row.met is not False for row in rows) else 1


def _parser(*, add_help: bool) -> argparse.ArgumentParser:
    """What all suites have in common; the named suite adds its own."""
    parser = argparse.ArgumentParser(
        prog="duologue-align evaluate",
        description="Measure what the project claims. Each suite has settings of its own: --suite NAME --help.",
        add_help=add_help,
    )
    parser.add_argument("--suite", choices=sorted(SUITES), required=True)
    parser.add_argument("--json", action="store_true", help="print one JSON object last instead of a table")
    parser.add_argument("--checkpoint", default="mini", help="mini or a folder (default: %(default)s)")
    return parser
