"""Voice activity of many callers at once: Silero VAD by ONNX Runtime, or a level rule where that is not installed.

Owns the model file (`silero/`, 1.3 MB, MIT), its hash, and every row's recurrent state. It hears 16 kHz sound in frames
of any length and gives one probability for every whole hop of 32 ms; rows share a call of the network, which halves its
cost. It knows nothing of turns or of the other speaker.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from server.errors import DuologueError

__all__ = ["HOP", "HOP_S", "SAMPLE_RATE_HZ", "Hop", "LevelVad", "SileroVad", "Vad", "VadError", "load_vad"]

log = logging.getLogger(__name__)

SAMPLE_RATE_HZ: Final = 16_000
HOP: Final = 512
"""Samples of one hop."""
HOP_S: Final = HOP / SAMPLE_RATE_HZ

_FILE: Final = Path(__file__).parent / "silero" / "silero_vad_16k_op15.onnx"
_SHA256: Final = "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49"
"""As in silero-vad 6.2.3."""
_CONTEXT: Final = 64
_STATE: Final = 128
_QUIET_HOPS: Final = 8
"""After so many hops below the gate a row's state starts again from nothing."""

Pcm = NDArray[np.float32]


class VadError(DuologueError):
    """A model file that is missing or is not the one whose behaviour was measured."""


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """What was heard in one hop."""

    probability: float
    """Of speech, 0 to 1."""
    level_dbfs: float


class Vad(Protocol):
    """What finds voices."""

    name: str
    """For the signal's record."""

    def open(self, row: int) -> None:
        """Start a row from silence."""

    def hear(self, frames: Mapping[int, Pcm]) -> dict[int, list[Hop]]:
        """Take each row's next samples, float32 at 16 kHz, and give the hops that they complete."""


class _Hops:
    """Cuts every row's sound into hops."""

    def __init__(self) -> None:
        self._rest: dict[int, Pcm] = {}

    def open(self, row: int) -> None:
        self._rest[row] = np.zeros(0, np.float32)

    def cut(self, row: int, frame: Pcm) -> Pcm:
        """Give float32 `[hops, HOP]` and keep what is left."""
        joined = np.concatenate([self._rest[row], frame])
        whole = len(joined) // HOP * HOP
        self._rest[row] = joined[whole:]
        return joined[:whole].reshape(-1, HOP)


def _levels_dbfs(hops: Pcm) -> list[float]:
    levels: list[float] = (10 * np.log10(np.square(hops, dtype=np.float64).mean(axis=1) + 1e-10)).tolist()
    return levels


class SileroVad:
    """Silero VAD 6.2. Rows are opened before they are heard; a row's result does not depend on the others.

    Hops below `gate_dbfs` are silence without being looked at. One thread at a time may call it. Raises `VadError`.
    """

    def __init__(self, rows: int, *, gate_dbfs: float) -> None:
        self.name = "silero-6.2"
        self._run = _session(_model_file())
        self._gate_dbfs = gate_dbfs
        self._hops = _Hops()
        self._state = np.zeros((2, rows, _STATE), np.float32)
        self._context = np.zeros((rows, _CONTEXT), np.float32)
        self._quiet = [0] * rows

    def open(self, row: int) -> None:
        """Start a row from silence."""
        self._hops.open(row)
        self._forget(row)

    def hear(self, frames: Mapping[int, Pcm]) -> dict[int, list[Hop]]:
        """Take each row's next samples and give the hops that they complete."""
        hops = {row: self._hops.cut(row, frame) for row, frame in frames.items()}
        levels = {row: _levels_dbfs(cut) for row, cut in hops.items()}
        found: dict[int, list[Hop]] = {row: [] for row in frames}
        for turn in range(max((len(cut) for cut in hops.values()), default=0)):
            heard = {row: cut[turn] for row, cut in hops.items() if turn < len(cut)}
            loud = [row for row in heard if self._is_loud(row, levels[row][turn])]
            chances = dict(zip(loud, self._probabilities(loud, heard), strict=True))
            for row, hop in heard.items():
                self._context[row] = hop[-_CONTEXT:]
                found[row].append(Hop(probability=chances.get(row, 0.0), level_dbfs=levels[row][turn]))
        return found

    def _is_loud(self, row: int, level_dbfs: float) -> bool:
        if level_dbfs >= self._gate_dbfs:
            self._quiet[row] = 0
            return True
        self._quiet[row] += 1
        if self._quiet[row] == _QUIET_HOPS:
            self._forget(row)
        return self._quiet[row] < _QUIET_HOPS

    def _forget(self, row: int) -> None:
        self._state[:, row] = 0.0
        self._context[row] = 0.0
        self._quiet[row] = _QUIET_HOPS

    def _probabilities(self, rows: list[int], heard: Mapping[int, Pcm]) -> list[float]:
        if not rows:
            return []
        sound = np.concatenate([self._context[rows], np.stack([heard[row] for row in rows])], axis=1)
        chances, state = self._run(sound, self._state[:, rows])
        self._state[:, rows] = state
        given: list[float] = chances[:, 0].tolist()
        return given


class LevelVad:
    """Speech is what is 12 dB above the quietest of the last seconds: for machines without Silero VAD.

    It cannot tell speech from any other sound, so its signals carry its name.
    """

    def __init__(self, *, gate_dbfs: float) -> None:
        self.name = "level"
        self._gate_dbfs = gate_dbfs
        self._hops = _Hops()
        self._floor: dict[int, float] = {}

    def open(self, row: int) -> None:
        """Start a row from silence."""
        self._hops.open(row)
        self._floor[row] = self._gate_dbfs

    def hear(self, frames: Mapping[int, Pcm]) -> dict[int, list[Hop]]:
        """Take each row's next samples and give the hops that they complete."""
        return {
            row: [self._judge(row, level) for level in _levels_dbfs(self._hops.cut(row, frame))]
            for row, frame in frames.items()
        }

    def _judge(self, row: int, level_dbfs: float) -> Hop:
        self._floor[row] = min(max(level_dbfs, self._gate_dbfs - 20), self._floor[row] + 0.05)
        is_speech = level_dbfs > max(self._floor[row] + 12, self._gate_dbfs + 13)
        return Hop(probability=float(is_speech), level_dbfs=level_dbfs)


def load_vad(rows: int, *, gate_dbfs: float) -> Vad:
    """Give Silero VAD, or the level rule and a warning where it cannot be had."""
    try:
        return SileroVad(rows, gate_dbfs=gate_dbfs)
    except VadError as problem:
        log.warning("signals are found by level alone: %s", problem)
        return LevelVad(gate_dbfs=gate_dbfs)


def _model_file() -> Path:
    """Give the file whose behaviour was measured. Raises `VadError` for any other."""
    digest = hashlib.sha256(_FILE.read_bytes()).hexdigest() if _FILE.is_file() else "no such file"
    if digest != _SHA256:
        raise VadError(
            got=f"{_FILE.name} with SHA-256 {digest}", expected=_SHA256, remedy="install duologue again: it is damaged"
        )
    return _FILE


def _session(path: Path) -> Any:
    """Load the network; the result takes sound `[B, 576]` and state `[2, B, 128]`."""
    try:
        import onnxruntime  # noqa: PLC0415 - a fifth of a second, and absent on some machines
    except ImportError as problem:
        raise VadError(got="no onnxruntime", expected="onnxruntime", remedy="install the server extra") from problem
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rate = np.array(SAMPLE_RATE_HZ)
    return lambda sound, state: session.run(None, {"input": sound, "state": state, "sr": rate})
