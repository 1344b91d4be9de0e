"""How well signals are found: every labelled scene in every condition, against what was written into it.

Thresholds were chosen on the `tune` half; the `report` half has other people, other sentences and other times. A signal
counts as found when one of its kind stands within half a second of its label; each label is found once. Every figure
says how sure it is: `intervals`.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, Literal

import msgspec
import numpy as np

from benchmarks.report import Row, compare
from online_align.evaluate.conditions import Condition, microphone
from online_align.evaluate.intervals import f1_interval, percentile_interval
from online_align.evaluate.material import RATE_HZ, Material, load_material
from online_align.evaluate.scenes import Label, Scene, make_scenes
from server.signals import DEFAULT, Board, RowFrame, Signal, SignalKind, State, Thresholds

__all__ = ["Half", "Score", "add_arguments", "find_signals", "match", "measure", "measured_rows", "rows"]

Half = Literal["tune", "report"]

_FRAME: Final = 1280
_FRAME_S: Final = 0.08
_TOLERANCE_S: Final = 0.5
_SEEDS: Final = {"tune": 11, "report": 43}
"""That of `report` is drawn anew whenever somebody has looked at what was wrong in it: it was 29 up to `duologue-1`."""
_NOISY_PART: Final = 4
_F1_CLEAN: Final = 0.95
_F1_TOLD_APART: Final = 0.9
_F1_NOISY: Final = 0.85
_TIME_ERROR_MS: Final = 160.0
_PERCENTILE: Final = 90

KINDS: Final = (
    SignalKind.BARGE_IN,
    SignalKind.BACKCHANNEL,
    SignalKind.YIELD,
    SignalKind.NO_YIELD,
    SignalKind.CUT_OFF,
    SignalKind.PAUSE_TAKEOVER,
    SignalKind.RESPONSE,
    SignalKind.NO_RESPONSE,
    SignalKind.MONOLOGUE,
    SignalKind.HANG_UP,
)


class Score(msgspec.Struct, kw_only=True):
    """Counts of one kind. Errors are seconds."""

    found: int = 0
    missed: int = 0
    false: int = 0
    errors_s: list[float] = msgspec.field(default_factory=list)

    @property
    def precision(self) -> float:
        """Share of the signals that were right."""
        return self.found / max(1, self.found + self.false)

    @property
    def recall(self) -> float:
        """Share of the labels that were found."""
        return self.found / max(1, self.found + self.missed)

    @property
    def f1(self) -> float:
        """Their harmonic mean."""
        return 2 * self.found / max(1, 2 * self.found + self.missed + self.false)

    def add(self, other: "Score") -> None:
        """Count another's, too."""
        self.found += other.found
        self.missed += other.missed
        self.false += other.false
        self.errors_s += other.errors_s


Scores = dict[Condition, dict[SignalKind, Score]]


def measure(
    *,
    half: Half = "report",
    rounds: int = 26,
    checkpoint: str = "mini",
    conditions: Iterable[Condition] = Condition,
    material: Material | None = None,
) -> Scores:
    """Play all scenes and count: `rounds` times in the clean, a quarter of that in each of the noisy conditions."""
    seed = _SEEDS[half]
    there = _half(material or load_material(checkpoint=checkpoint), half)
    everything = make_scenes(there, seed=seed, rounds=rounds)
    some = everything[: -(-rounds // _NOISY_PART) * len(everything) // rounds]
    scores: Scores = {}
    for condition in conditions:
        scenes = everything if condition is Condition.CLEAN else some
        heard = [microphone(scene, condition, there.questions, seed=seed) for scene in scenes]
        found = find_signals(scenes, heard)
        scores[condition] = {kind: Score() for kind in KINDS}
        for scene, signals in zip(scenes, found, strict=True):
            for kind, score in match(scene.labels, signals).items():
                scores[condition][kind].add(score)
    return scores


def _half(material: Material, half: Half) -> Material:
    """Every second sentence: the halves share none. They share the model, which has one voice and few tellings."""
    first = 0 if half == "tune" else 1
    return Material(
        questions=material.questions[first::2],
        backchannels=material.backchannels[first::2],
        interruptions=material.interruptions[first::2],
        replies=material.replies,
    )


def find_signals(
    scenes: Sequence[Scene], heard: Sequence[np.ndarray], *, thresholds: Thresholds = DEFAULT
) -> list[list[Signal]]:
    """Run the detector over all scenes at once, frame by frame. Returns each scene's last word on every signal."""
    board = Board(len(scenes), sample_rate=RATE_HZ, frame_s=_FRAME_S, thresholds=thresholds)
    latest: list[dict[int, Signal]] = [{} for _ in scenes]
    for row in range(len(scenes)):
        board.open(row)
    for index in range(max(len(pcm) for pcm in heard) // _FRAME):
        frames = {row: _frame(scene, heard[row], index) for row, scene in enumerate(scenes)}
        given = board.hear({row: frame for row, frame in frames.items() if frame is not None})
        for row, signals in given.items():
            latest[row].update({signal.id: signal for signal in signals})
    for row, scene in enumerate(scenes):
        latest[row].update({signal.id: signal for signal in board.close(row, hung_up=scene.hangs_up)})
    return [[each for each in row.values() if each.state is not State.WITHDRAWN] for row in latest]


def _frame(scene: Scene, heard: np.ndarray, index: int) -> RowFrame | None:
    start = index * _FRAME
    if start + _FRAME > len(heard):
        return None
    begins = start / RATE_HZ
    return RowFrame(
        heard=heard[start : start + _FRAME],
        said=scene.model[start : start + _FRAME],
        word=any(begins <= t < begins + _FRAME_S for t in scene.words_s),
    )


def match(labels: Sequence[Label], signals: Sequence[Signal]) -> dict[SignalKind, Score]:
    """Pair labels with signals of their kind, nearest first, and count what is left over."""
    scores: dict[SignalKind, Score] = defaultdict(Score)
    left = [signal for signal in signals if signal.kind in KINDS]
    for label in labels:
        near = [each for each in left if each.kind is label.kind and abs(each.t0 - label.t0) <= _TOLERANCE_S]
        if not near:
            scores[label.kind].missed += 1
            continue
        best = min(near, key=lambda each: abs(each.t0 - label.t0))
        left.remove(best)
        scores[label.kind].found += 1
        scores[label.kind].errors_s.append(_error_s(label, best))
    for kind, count in Counter(signal.kind for signal in left).items():
        scores[kind].false += count
    return dict(scores)


def _error_s(label: Label, signal: Signal) -> float:
    """The larger error of its time and of its latency."""
    latency = 0.0
    if label.latency_s is not None and signal.latency_s is not None:
        latency = abs(signal.latency_s - label.latency_s)
    return max(abs(signal.t0 - label.t0), latency)


def rows(scores: Scores) -> list[Row]:
    """What the command prints."""
    made = []
    for kind in KINDS:
        clean = scores[Condition.CLEAN][kind]
        noisy = Score()
        for condition in Condition:
            if condition is not Condition.CLEAN and condition in scores:
                noisy.add(scores[condition][kind])
        goal = _F1_TOLD_APART if kind is SignalKind.BACKCHANNEL else _F1_CLEAN
        made += [
            _f1_row(f"{kind}_f1_clean", clean, goal),
            _f1_row(f"{kind}_f1_noisy", noisy, _F1_NOISY),
            _error_row(f"{kind}_time_error_ms", clean.errors_s),
        ]
    made += [_f1_row(f"all_f1_{condition}", _together(kinds.values()), None) for condition, kinds in scores.items()]
    echo = [scores[condition][SignalKind.BARGE_IN] for condition in scores if condition.startswith("echo")]
    made.append(
        compare("echo_made_barge_ins", float(sum(each.false for each in echo)), "signals", better="lower", goal=0.0)
    )
    return made


def _together(scores: Iterable[Score]) -> Score:
    total = Score()
    for score in scores:
        total.add(score)
    return total


def _f1_row(name: str, score: Score, goal: float | None) -> Row:
    low, high = f1_interval(score.found, score.missed, score.false)
    remark = (
        f"95 % interval {low:.3f} to {high:.3f}; precision {score.precision:.3f}, recall {score.recall:.3f}, "
        f"{score.found + score.missed} labels"
    )
    return compare(name, score.f1, "F1", better="higher", goal=goal, remark=remark)


def _error_row(name: str, errors_s: Sequence[float]) -> Row:
    if not errors_s:
        return compare(name, None, "ms", better="lower", goal=_TIME_ERROR_MS, remark="nothing was found")
    errors_ms = [1000 * error for error in errors_s]
    low, high = percentile_interval(errors_ms, _PERCENTILE)
    return compare(
        name,
        float(np.percentile(errors_ms, _PERCENTILE)),
        "ms",
        better="lower",
        goal=_TIME_ERROR_MS,
        remark=f"90th percentile of {len(errors_ms)}, clean; 95 % interval {low:.0f} to {high:.0f}",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen for this suite."""
    parser.add_argument("--rounds", type=int, default=26, help="how often each scene is played (default: %(default)s)")
    parser.add_argument(
        "--half",
        choices=("tune", "report"),
        default="report",
        help="thresholds were chosen on `tune` (default: report)",
    )


def measured_rows(asked: argparse.Namespace) -> list[Row]:
    """Measure all conditions and give the rows of the report."""
    return rows(measure(half=asked.half, rounds=asked.rounds, checkpoint=asked.checkpoint))
