"""The learner's step against a plain full-logit DPO step: same model, pairs, loss, rank, threads and dtype.

Each side runs in a process of its own, one after the other, in turns, on the same pairs. Speed is the pairs of all
timed steps over the processor seconds they took (wall seconds too, in the remark). Memory is the highest resident size
during steps above that before the first one. The peer gets as many pairs at once as is best for it (`--peer-pairs`);
the learner runs with its defaults. Pairs have lengths as calls have: 10 to 40 s of past, sides of 2 to 6 s. The learner
keeps references with the pairs, so a step has none to make; a pair's first training must make them once, and the row
`pairs_per_s_with_references` counts that too.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks.report import Row, compare, note, parser, publish
from benchmarks.servers import checkpoint_folder

if TYPE_CHECKING:
    from online_align.records import Pair

__all__ = ["main"]

_GOAL: Final = 3.0
_RANK: Final = 16
_BETA: Final = 0.1


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What one process measured."""

    pairs: int
    processor_s: float
    wall_s: float
    reference_s: float
    """Processor seconds of making the references of these pairs once; 0 where every step makes them."""
    peak_mb: float
    """Above the resident size before the first step."""
    scores: list[float]
    """Log-probabilities of the first pairs' sides before any step: both processes must agree."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser("learner", __doc__)
    options.add_argument("--pairs", type=int, default=16, metavar="N", help="of a step (%(default)s)")
    options.add_argument("--steps", type=int, default=2, metavar="N", help="timed in each trial (%(default)s)")
    options.add_argument("--trials", type=int, default=2, metavar="N", help="of each side, in turns (%(default)s)")
    options.add_argument("--peer-pairs", type=int, default=1, metavar="N", help="at once, of the peer (%(default)s)")
    options.add_argument("--threads", type=int, default=1, metavar="N", help="of both sides (%(default)s)")
    options.add_argument("--frames", type=int, nargs=4, default=[125, 500, 25, 75], metavar="N", help="past and sides")
    options.add_argument("--side", choices=("ours", "peer"), help="measure this one alone, and print its trial")
    given = options.parse_args(arguments)
    if given.side:
        print(msgspec.json.encode(_trial(given)).decode())
        return
    trials: dict[str, list[Trial]] = {"ours": [], "peer": []}
    for number in range(given.trials):
        for side in ("ours", "peer") if number % 2 else ("peer", "ours"):
            trials[side].append(_in_a_process(side, given))
            note(f"{side}: {_speed(trials[side][-1]):.3g} pairs/s, {trials[side][-1].peak_mb:.0f} MB above resident")
    publish("learner", _rows(trials["ours"], trials["peer"]), as_json=given.json)


def _rows(ours: Sequence[Trial], peer: Sequence[Trial]) -> list[Row]:
    speed, peer_speed = (max(_speed(trial) for trial in side) for side in (ours, peer))
    memory, peer_memory = (min(trial.peak_mb for trial in side) for side in (ours, peer))
    wall = [max(trial.pairs / trial.wall_s for trial in side) for side in (ours, peer)]
    apart = max(abs(a - b) for a, b in zip(ours[0].scores, peer[0].scores, strict=True))
    return [
        compare(
            "pairs_per_s_vs_peer", speed, "pairs/s", better="higher", peer="plain DPO", peer_value=peer_speed,
            goal=_GOAL, goal_for="ratio",
            remark=f"by processor seconds; by the clock {wall[0]:.3g} against {wall[1]:.3g}; best trial of each side",
        ),
        compare(
            "pairs_per_s_with_references", max(trial.pairs / (trial.processor_s + trial.reference_s) for trial in ours),
            "pairs/s", better="higher", peer="plain DPO", peer_value=peer_speed, remark="each pair for the first time",
        ),
        compare(
            "peak_memory_vs_peer", memory, "MB", better="lower", peer="plain DPO", peer_value=peer_memory,
            goal=_GOAL, goal_for="ratio", remark="above resident size; least of the trials of each side",
        ),
        compare("scores_apart", apart, "nats", better="lower", goal=0.01, remark="sums over a side, the same pairs"),
    ]  # fmt: skip


def _speed(trial: Trial) -> float:
    return trial.pairs / trial.processor_s


def _in_a_process(side: str, given: argparse.Namespace) -> Trial:
    names = ("pairs", "steps", "peer_pairs", "threads", "checkpoint")
    flags = [f"--{name.replace('_', '-')}={getattr(given, name)}" for name in names]
    flags += ["--frames", *map(str, given.frames)]
    threads = str(given.threads)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.learner", "--side", side, *flags],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": threads},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"the process of {side} ended with {done.returncode}: {done.stderr[-2000:]}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Trial)


def _trial(given: argparse.Namespace) -> Trial:
    import torch  # noqa: PLC0415 - the process that only compares needs none

    from benchmarks.random_pairs import random_pairs  # noqa: PLC0415

    torch.set_num_threads(given.threads)
    folder = checkpoint_folder(given.checkpoint)
    pairs = random_pairs(given.pairs, folder, frames=given.frames)
    step, refer, score = (_ours if given.side == "ours" else _peer)(given, folder, pairs)
    scores = score()
    before = _reset_peak_mb()
    step()  # optimiser state and the allocator's pools come with the first step
    spent, began = time.process_time(), time.perf_counter()
    for _ in range(given.steps):
        step()
    spent, wall = time.process_time() - spent, time.perf_counter() - began
    peak = _peak_mb() - before
    referring = time.process_time()
    refer()
    referring = time.process_time() - referring
    return Trial(
        pairs=len(pairs) * given.steps,
        processor_s=spent,
        wall_s=wall,
        reference_s=referring * given.steps,
        peak_mb=peak,
        scores=scores,
    )


Side = tuple[Callable[[], object], Callable[[], object], Callable[[], list[float]]]
"""One step of the optimiser over all pairs, making the pairs' references, and the scores to compare."""


def _ours(given: argparse.Namespace, folder: Path, pairs: "list[Pair]") -> Side:
    import torch  # noqa: PLC0415

    from online_align.batches import batches, pack  # noqa: PLC0415
    from online_align.learner import Pass, reference_of  # noqa: PLC0415
    from online_align.policy import Policy  # noqa: PLC0415
    from online_align.settings import LearnerSettings  # noqa: PLC0415
    from server.engine.checkpoint import load_checkpoint  # noqa: PLC0415

    checkpoint = load_checkpoint(folder, device=torch.device("cpu"), dtype=torch.float32)
    policy = Policy(checkpoint, rank=_RANK)
    settings = LearnerSettings(loss="dpo", beta=_BETA, learning_rate=1e-4, batch=given.pairs, rank=_RANK)

    def refer() -> "list[Pair]":
        return reference_of(policy, settings, pairs, name="", base_sha256="")

    ready = refer()

    def step() -> None:
        Pass(policy, settings, ready).run()

    def score() -> list[float]:
        found: dict[str, list[float]] = {}
        rows = [pack(pair, policy.grid) for pair in pairs[:2]]
        for batch in batches(rows, policy.grid, torch.device("cpu"), positions=1):
            sums = policy(batch).detach().sum(2)[0].tolist()
            found[batch.pairs[0].id] = sums
        return [found[pair.id][side] for side in range(2) for pair in pairs[:2]]

    return step, refer, score


def _peer(given: argparse.Namespace, folder: Path, pairs: "list[Pair]") -> Side:
    from benchmarks.plain_dpo import PlainDpo  # noqa: PLC0415

    plain = PlainDpo(folder, rank=_RANK, scaling=2.0, beta=_BETA)
    return lambda: plain.step(pairs, given.peer_pairs), lambda: None, lambda: plain.ratios(pairs[:2]).tolist()


def _reset_peak_mb() -> float:
    """Resident size now, which becomes the highest so far. Linux alone can say."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mb("VmRSS")


def _peak_mb() -> float:
    return _status_mb("VmHWM")


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(value) / 1024


if __name__ == "__main__":
    main()
