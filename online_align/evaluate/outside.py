"""A look from outside: turns and signals on a recorded conversation of two real people with hand-made turns.

The recording is not ours to ship: half a minute of a telephone call, `sample.wav` and `sample.rttm` of the Python
package `pyannote.audio` 4.0.7, which nothing else here needs. It has one channel. So each person's side is the
recording where the hand-made turns have them speaking, and in overlaps, 2 s of them, both sides hold both voices; echo
is therefore not looked for. Either person plays the user once. The expected signals were written down by hand from the
hand-made turns and the definitions in `server.signals.thresholds`, before the detector had heard the recording.
"""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import soundfile
from numpy.typing import NDArray

from benchmarks.report import Row, compare
from online_align.evaluate.intervals import f1_interval
from online_align.evaluate.material import RATE_HZ
from online_align.evaluate.scenes import Label, Scene
from online_align.evaluate.signals import Score, find_signals, match
from online_align.transcribe import user_turns
from server.errors import DuologueError
from server.signals import DEFAULT, Signal, SignalKind

__all__ = ["EXPECTED", "HandMade", "OutsideError", "add_arguments", "expected_found", "measured_rows", "read_turns"]

Pcm = NDArray[np.float32]

_FRAME_S: Final = 0.08
_TICK_S: Final = 0.01
_SHA256: Final = "c319b4abca767b124e41432d364fd7df006cb26bb79d09326c487d606a134e6e"
_GAP_S: Final = DEFAULT.user_gap_s
_NO_ECHO: Final = msgspec.structs.replace(DEFAULT, echo_share=2.0)


def _label(kind: SignalKind, t0: float, latency_s: float) -> Label:
    return Label(kind=kind, t0=t0, latency_s=None if kind is SignalKind.BARGE_IN else latency_s)


EXPECTED: Final = {
    # The user is who speaks first. Turns of hers: 6.69-7.12, 8.32-14.70 (with rests), 18.05-21.49, 27.85-30.00.
    "speaker90": (
        _label(SignalKind.RESPONSE, 7.12, 0.43),
        _label(SignalKind.BARGE_IN, 8.32, 0.0),
        _label(SignalKind.YIELD, 8.32, 0.03),
        _label(SignalKind.CUT_OFF, 9.92, -4.78),
        _label(SignalKind.RESPONSE, 14.49, -0.21),
        _label(SignalKind.BARGE_IN, 18.05, 0.0),
        _label(SignalKind.YIELD, 18.05, 0.54),
        _label(SignalKind.RESPONSE, 21.49, 0.29),
        _label(SignalKind.BARGE_IN, 27.85, 0.0),
        _label(SignalKind.YIELD, 27.85, 0.65),
    ),
    # The other one. Turns: 7.55-8.35, 9.92-11.03, 14.49-18.59 (with a rest), 21.78-28.50.
    "speaker91": (
        _label(SignalKind.RESPONSE, 8.32, -0.03),
        _label(SignalKind.BARGE_IN, 9.92, 0.0),
        _label(SignalKind.YIELD, 9.92, 0.10),
        _label(SignalKind.RESPONSE, 10.57, -0.46),
        _label(SignalKind.BARGE_IN, 14.49, 0.0),
        _label(SignalKind.YIELD, 14.49, 0.21),
        _label(SignalKind.PAUSE_TAKEOVER, 18.05, -0.54),
        _label(SignalKind.CUT_OFF, 27.85, -0.65),
    ),
}
"""Of each person as the user. A start within 0.2 s of the other's last sound is over them, by definition."""


class OutsideError(DuologueError):
    """The recording is not there, or is another one."""


class HandMade(msgspec.Struct, frozen=True, kw_only=True):
    """One hand-made turn. Seconds."""

    speaker: str
    t0: float
    t1: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this suite needs."""
    parser.add_argument(
        "--recording",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="with sample.wav and sample.rttm of the package pyannote.audio 4.0.7 (pyannote/audio/sample in its wheel)",
    )


def measured_rows(asked: argparse.Namespace) -> list[Row]:
    """Compare turns and signals. Raises `OutsideError`."""
    pcm, turns = _read(asked.recording)
    rows = _turn_rows(pcm, turns)
    both = Score()
    for speaker, labels in EXPECTED.items():
        score = Score()
        for each in match(labels, expected_found(pcm, turns, speaker)).values():
            score.add(each)
        rows.append(_signal_row(f"signals_f1_user_{speaker}", score))
        both.add(score)
    rows.append(_signal_row("signals_f1", both))
    errors_ms = [1000 * error for error in both.errors_s]
    rows.append(compare("signals_time_error_ms", float(np.median(errors_ms)), "ms", better="lower", remark="median"))
    return rows


def expected_found(pcm: Pcm, turns: Sequence[HandMade], user: str) -> list[Signal]:
    """What the detector finds with one of the two as the user and the other in place of the model."""
    sides = [_side(pcm, [turn for turn in turns if (turn.speaker == user) is mine]) for mine in (True, False)]
    scene = Scene(name=user, user=sides[0], model=sides[1], words_s=(), labels=EXPECTED[user])
    return find_signals([scene], [scene.user], thresholds=_NO_ECHO)[0]


def read_turns(path: Path) -> list[HandMade]:
    """Turns of an RTTM file: SPEAKER file channel start length <NA> <NA> name ..."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return [HandMade(speaker=line[7], t0=float(line[3]), t1=float(line[3]) + float(line[4])) for line in lines if line]


def _read(folder: Path) -> tuple[Pcm, list[HandMade]]:
    sound, written = folder / "sample.wav", folder / "sample.rttm"
    digest = hashlib.sha256(sound.read_bytes()).hexdigest() if sound.is_file() and written.is_file() else "nothing"
    if digest != _SHA256:
        raise OutsideError(
            got=f"{digest} in {folder}",
            expected=f"sample.wav with SHA-256 {_SHA256} and sample.rttm",
            remedy="take the folder pyannote/audio/sample out of the wheel of pyannote.audio 4.0.7",
        )
    pcm, rate = soundfile.read(sound, dtype="float32")
    assert rate == RATE_HZ, "the hash says so"
    return pcm, read_turns(written)


def _side(pcm: Pcm, turns: Sequence[HandMade]) -> Pcm:
    kept = np.zeros_like(pcm)
    for turn in turns:
        span = slice(round(turn.t0 * RATE_HZ), round(turn.t1 * RATE_HZ))
        kept[span] = pcm[span]
    return kept


def _turn_rows(pcm: Pcm, turns: Sequence[HandMade]) -> list[Row]:
    """Who speaks at all, in the recording that nothing was cut out of; and where each one's turns begin and end."""
    spans = [(turn.t0, turn.t1) for turn in user_turns(pcm, frame_s=_FRAME_S)]
    told, found = _marked(_joined([(turn.t0, turn.t1) for turn in turns]), pcm), _marked(spans, pcm)
    agreement = float((told == found).mean())
    rows = [compare("speech_agreement", agreement, "share", better="higher", remark="of 10 ms steps, whole recording")]
    starts, ends, missed = [], [], 0
    for speaker in EXPECTED:
        mine = [turn for turn in turns if turn.speaker == speaker]
        heard = user_turns(_side(pcm, mine), frame_s=_FRAME_S)
        for t0, t1 in _joined([(turn.t0, turn.t1) for turn in mine]):
            near = [turn for turn in heard if turn.t0 < t1 and turn.t1 > t0]
            if near:
                starts.append(1000 * abs(near[0].t0 - t0))
                ends.append(1000 * abs(near[-1].t1 - t1))
            else:
                missed += 1
    remark = f"median of {len(starts)} turns; {missed} missed"
    for name, errors in (("turn_start_error_ms", starts), ("turn_end_error_ms", ends)):
        rows.append(
            compare(name, float(np.median(errors)), "ms", better="lower", remark=f"{remark}; {max(errors):.0f} at most")
        )
    return rows


def _joined(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Turns with rests of up to 0.6 s in them, as the detector takes them."""
    joined: list[tuple[float, float]] = []
    for t0, t1 in sorted(spans):
        if joined and t0 - joined[-1][1] <= _GAP_S:
            joined[-1] = joined[-1][0], max(t1, joined[-1][1])
        else:
            joined.append((t0, t1))
    return joined


def _marked(spans: Sequence[tuple[float, float]], pcm: Pcm) -> NDArray[np.bool_]:
    times = np.arange(len(pcm) // round(_TICK_S * RATE_HZ)) * _TICK_S
    marked: NDArray[np.bool_] = np.any([(times >= t0) & (times < t1) for t0, t1 in spans], axis=0)
    return marked


def _signal_row(name: str, score: Score) -> Row:
    low, high = f1_interval(score.found, score.missed, score.false)
    remark = f"95 % interval {low:.2f} to {high:.2f}; {score.found} found, {score.missed} missed, {score.false} others"
    return compare(name, score.f1, "F1", better="higher", remark=remark)
