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
    "rollbacks": "online_align.evaluate.rollbacks",
    "signals": "online_align.evaluate.signals",
}
"""Every suite's module, which has `add_arguments(parser)` and `measured_rows(arguments)`."""


def run(arguments: Sequence[str]) -> int:
    """Measure and print. Returns 0 when every goal is met, else 1; 2 when it could not be measured."""
    parser = _parser()
    if (named := _named_suite(arguments)) in SUITES:
        importlib.import_module(SUITES[named]).add_arguments(parser)
    asked = parser.parse_args(arguments)
    suite = importlib.import_module(SUITES[asked.suite])
    note(f"suite {asked.suite} on {asked.checkpoint}")
    try:
        rows = suite.measured_rows(asked)
    except DuologueError as problem:
        print(f"duologue-align: {problem}", file=sys.stderr)
        return 2
    publish(f"evaluate {asked.suite}", rows, as_json=asked.json)
    return 0 if all(row.met is not False for row in rows) else 1


def _named_suite(arguments: Sequence[str]) -> str:
    """The word after `--suite`, whatever it is; empty where there is none."""
    which = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    which.add_argument("--suite", default="")
    try:
        return str(which.parse_known_args(arguments)[0].suite)
    except argparse.ArgumentError:
        return ""


def _parser() -> argparse.ArgumentParser:
    """What all suites have in common; the named suite adds its own."""
    parser = argparse.ArgumentParser(
        prog="duologue-align evaluate",
        description="Measure what the project claims. Each suite has settings of its own: --suite NAME --help.",
    )
    parser.add_argument("--suite", choices=sorted(SUITES), required=True)
    parser.add_argument("--json", action="store_true", help="print one JSON object last instead of a table")
    parser.add_argument("--checkpoint", default="mini", help="mini or a folder (default: %(default)s)")
    return parser
