"""What a GPU really does: kernels, the recorded step against the `moshi` package's modules, and swaps under load.

    python -m benchmarks.gpu --out gpu.json

Where `kernels.roofline` says "modelled", this says "measured": run it once on the card in question and keep the file.
It takes ten minutes at most (`--minutes`). Each part is a process of its own with a limit of its own, and the file is
written anew after every part: what fails, hangs or is killed costs its own part and no other, and stands in the file as
that. The most telling parts come first. The model is `random-7b` (Moshi's real sizes with random weights, which needs
no download and costs what the real one costs), the embedded one, a folder or `hf:owner/name`. Without a GPU there is
nothing to measure, and it says so.

Exit status: 0 when every part ran, 1 when one did not, 2 without a GPU.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final, Literal

import msgspec
import torch

from benchmarks.gpu_parts import Device, arguments
from benchmarks.report import BenchmarkReport, Row, note, publish, this_machine
from kernels import dialect

__all__ = ["GpuReport", "Part", "main", "plan", "run_part"]

_FAILED: Final = 1
_NO_GPU: Final = 2
_SHORTEST_S: Final = 20.0
"""A part with less time than this is not begun: importing and loading take as long."""
_LIMIT_S: Final = {"device": 60.0, "check": 150.0, "kernels": 120.0, "ticks": 120.0, "swaps": 120.0}
_LINES_KEPT: Final = 4


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one part."""

    name: str
    status: Literal["ok", "failed", "timed out", "skipped"]
    seconds: float
    rows: int
    """Figures that it gave, whatever became of it."""
    problem: str = ""


class GpuReport(BenchmarkReport, frozen=True, kw_only=True):
    """The whole output."""

    device: Device | None
    parts: list[Part]


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    row: Row | None = None
    device: Device | None = None


class _Found(msgspec.Struct, kw_only=True):
    """What the parts have given so far. A figure that comes again replaces the one before."""

    rows: dict[str, Row]
    parts: list[Part]
    device: Device | None = None

    def report(self) -> GpuReport:
        return GpuReport(
            benchmark="gpu", machine=this_machine(), rows=list(self.rows.values()), device=self.device, parts=self.parts
        )


def main(given: Sequence[str] | None = None) -> int:
    """Measure, write and print. Returns the exit status."""
    options = _parser().parse_args(given)
    if not torch.cuda.is_available() and not dialect.INTERPRETED:
        note(
            "no GPU was found: expected one that this torch can use (torch "
            f"{torch.__version__}, built for CUDA {torch.version.cuda or 'not at all'}); run this on the machine whose "
            "figures are wanted, with torch's CUDA build. `python -m kernels.roofline` models figures without a GPU."
        )
        return _NO_GPU
    found = _Found(rows={}, parts=[])
    ends = time.monotonic() + 60 * options.minutes
    for name, rows in plan(options.rows, options.parts):
        part = run_part(name, rows, options, found, limit_s=min(_LIMIT_S[name], ends - time.monotonic()))
        found.parts.append(part)
        note(f"{part.name}: {part.status}, {part.rows} figures in {part.seconds:.0f} s. {part.problem}".rstrip(". "))
        _write(options.out, found.report())
    report = found.report()
    if options.json:
        print(msgspec.json.encode(report).decode())
    else:
        publish("gpu", report.rows, as_json=False)
    return 0 if all(part.status == "ok" for part in report.parts) else _FAILED


def plan(rows: Sequence[int], parts: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Which parts at which widths, the most telling first."""
    middle = rows[len(rows) // 2]
    others = [each for each in rows if each not in (rows[0], middle)]
    ticks = [rows[0], *([middle] if middle != rows[0] else [])]
    steps = [("device", 1), ("check", 2), *(("ticks", each) for each in ticks), ("swaps", middle), ("kernels", 1)]
    steps += [("ticks", each) for each in others]
    return ((name, width) for name, width in steps if name in parts)


def run_part(name: str, rows: int, options: argparse.Namespace, found: _Found, *, limit_s: float) -> Part:
    """Run one part in a process of its own for at most `limit_s` seconds, and take its figures as they come."""
    called = f"{name} of {rows} rows" if name in {"ticks", "swaps"} else name
    if limit_s < _SHORTEST_S:
        return Part(name=called, status="skipped", seconds=0.0, rows=0, problem="no time was left for it")
    began, before = time.monotonic(), len(found.rows)
    out_of_time = threading.Event()
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(_command(name, rows, options), stdout=subprocess.PIPE, stderr=errors, text=True) as child,
    ):

        def stop() -> None:
            out_of_time.set()
            child.kill()

        timer = threading.Timer(limit_s, stop)
        timer.start()
        try:
            assert child.stdout is not None
            for line in child.stdout:
                _take(line, found)
            status = child.wait()
        finally:
            timer.cancel()
            child.kill()
        seconds, taken = time.monotonic() - began, len(found.rows) - before
        if out_of_time.is_set():
            problem = f"stopped after {limit_s:.0f} s"
            return Part(name=called, status="timed out", seconds=seconds, rows=taken, problem=problem)
        if status:
            problem = f"exit status {status}: {_last_words(errors)}"
            return Part(name=called, status="failed", seconds=seconds, rows=taken, problem=problem)
    return Part(name=called, status="ok", seconds=seconds, rows=taken)


def _last_words(errors: IO[str]) -> str:
    errors.seek(0)
    lines = [line.strip() for line in errors if line.strip()]
    return " | ".join(lines[-_LINES_KEPT:])


def _take(line: str, found: _Found) -> None:
    """Anything else that a library prints is not ours."""
    try:
        made = msgspec.json.decode(line, type=_Line)
    except msgspec.MsgspecError:
        return
    if made.row is not None:
        found.rows[made.row.name] = made.row
    found.device = made.device or found.device


def _command(name: str, rows: int, options: argparse.Namespace) -> list[str]:
    command = [sys.executable, "-u", "-m", "benchmarks.gpu_parts", name, "--rows", str(rows)]
    command += ["--checkpoint", options.checkpoint, "--widths", *map(str, options.rows)]
    command += ["--ages", *map(str, options.ages), "--age", str(options.age), "--ticks", str(options.ticks)]
    return [*command, "--swaps", str(options.swaps), "--measure-s", str(options.measure_s)]


def _write(out: Path, report: GpuReport) -> None:
    """The file is whole at any moment."""
    new = out.with_name(out.name + ".new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    new.replace(out)


def _parser() -> argparse.ArgumentParser:
    first_line = (__doc__ or "").partition("\n")[0]
    parser = arguments(argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=first_line))
    parser.add_argument("--json", action="store_true", help="print one JSON object last instead of a table")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="written after every part (%(default)s)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 32, 64], metavar="N", help="callers in a tick")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="longest for all parts (%(default)s)")
    parser.add_argument("--parts", nargs="+", choices=sorted(_LIMIT_S), default=sorted(_LIMIT_S), help="which parts")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
