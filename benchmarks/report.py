"""What every benchmark prints: rows with a value, the peer's value, their ratio and the goal.

A ratio above 1 is always in our favour. `--json` prints one JSON object as the last line; without it, a table.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal

import msgspec

__all__ = ["BenchmarkReport", "Machine", "Row", "compare", "note", "parser", "publish", "this_machine"]

Better = Literal["lower", "higher"]

_CPU_INFO: Final = Path("/proc/cpuinfo")
_LOAD_BEFORE: Final = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure. `goal` is for `goal_for`: the value itself or its ratio against the peer."""

    name: str
    value: float | None
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    goal: float | None = None
    met: bool | None = None
    remark: str = ""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What the figures were taken on. Names no host."""

    cpu: str
    cores: int
    system: str
    python: str
    torch: str
    moshi: str
    threads: str
    """OMP_NUM_THREADS, or that it was not set."""
    load_before: float | None
    """Programs that wanted a core in the minute before (the load average): above 1, figures are not to be trusted."""


class BenchmarkReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole output of a benchmark."""

    benchmark: str
    machine: Machine
    rows: list[Row]


def compare(
    name: str,
    value: float | None,
    unit: str,
    *,
    better: Better,
    peer: str | None = None,
    peer_value: float | None = None,
    goal: float | None = None,
    goal_for: Literal["value", "ratio"] = "value",
    remark: str = "",
) -> Row:
    """Make a row: the ratio in our favour, and whether the goal is met. A value that is missing meets no goal."""
    ratio = _ratio(value, peer_value, better)
    reached = value if goal_for == "value" else ratio
    return Row(
        name=name,
        value=_rounded(value),
        unit=unit,
        peer=peer,
        peer_value=_rounded(peer_value),
        ratio=_rounded(ratio),
        goal=goal,
        met=None if goal is None else reached is not None and _reaches(reached, goal, better, goal_for),
        remark=remark,
    )


def _ratio(value: float | None, peer_value: float | None, better: Better) -> float | None:
    if value is None or peer_value is None:
        return None
    ours, theirs = (peer_value, value) if better == "lower" else (value, peer_value)
    return ours / theirs if theirs > 0 else None


def _reaches(reached: float, goal: float, better: Better, goal_for: str) -> bool:
    return reached <= goal if better == "lower" and goal_for == "value" else reached >= goal


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def this_machine() -> Machine:
    """Describe where this runs."""
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=version("torch"),
        moshi=version("moshi"),
        threads=os.environ.get("OMP_NUM_THREADS", "not set"),
        load_before=_LOAD_BEFORE,
    )


def _cpu() -> str:
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """Make a parser with what all benchmarks have in common."""
    first_line = (description or "").partition("\n")[0]
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{program}", description=first_line)
    made.add_argument("--json", action="store_true", help="print one JSON object last instead of a table")
    made.add_argument("--checkpoint", default="mini", help="mini or a folder (default: %(default)s)")
    return made


def note(sentence: str) -> None:
    """Tell how it goes, where it does not disturb the JSON."""
    print(sentence, file=sys.stderr, flush=True)


def publish(benchmark: str, rows: Sequence[Row], *, as_json: bool, out: Callable[[str], None] = print) -> None:
    """Print the report."""
    report = BenchmarkReport(benchmark=benchmark, machine=this_machine(), rows=list(rows))
    out(msgspec.json.encode(report).decode() if as_json else _table(report))


def _table(report: BenchmarkReport) -> str:
    machine = report.machine
    place = f"{machine.cpu}, {machine.cores} cores, torch {machine.torch}, OMP_NUM_THREADS {machine.threads}"
    lines = [
        f"{report.benchmark} on {place}; load before: {machine.load_before}",
        f"{'':36}{'value':>12} {'unit':14}{'peer':>12}{'ratio':>8}{'goal':>8}",
    ]
    for row in report.rows:
        met = "" if row.met is None else "met" if row.met else "MISSED"
        ours, theirs = f"{_cell(row.value):>12} {row.unit:14}", f"{_cell(row.peer_value):>12}"
        judged = f"{_cell(row.ratio):>8}{_cell(row.goal):>8} {met:7}{row.remark}"
        lines.append(f"{row.name:36}{ours}{theirs}{judged}".rstrip())
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
