"""Random crops of augmented speech with phoneme labels, for training the codec.

A crop is a stream in itself: it starts with silence or in the middle of an utterance, and utterances of one
voice follow each other with pauses. Labels are two phonemes a frame, at 0 and 40 ms from the frame's start.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipes.mini import bank
from recipes.mini.align import PHONES
from recipes.mini.augment import noise, on_the_way, resampled
from recipes.mini.codec import FRAME_SAMPLES, SAMPLE_RATE

__all__ = ["Batch", "Crops", "prefetched"]

LABEL_TIMES_S = (0.0, 0.04)
_PHONE_ID = {name: i for i, name in enumerate(PHONES)}


@dataclass(frozen=True)
class Batch:
    """heard, clean: float32 [B, S]; phones: int64 [B, T, L], -100 where unknown."""

    heard: np.ndarray
    clean: np.ndarray
    phones: np.ndarray


class Crops:
    """Endless random crops from the voices in `weights` (name -> how often)."""

    def __init__(
        self, folder: Path, weights: dict[str, float], *, frames: int, seed: int, augment: bool = True
    ) -> None:
        self._voices = {v: bank.load(folder, v) for v in weights}
        self._names = list(weights)
        self._share = np.array([weights[v] for v in self._names]) / sum(weights.values())
        self._samples, self._frames = frames * FRAME_SAMPLES, frames
        self._rng = np.random.default_rng(seed)
        self._augment = augment

    def batch(self, rows: int, *, twins: bool = False) -> Batch:
        """`rows` crops; with `twins` the second half is the first heard again, up to 10 ms later."""
        crops = [self._crop() for _ in range(rows // 2 if twins else rows)]
        if twins:
            crops += [self._heard_again(clean, phones) for _, clean, phones in crops]
        heard, clean, phones = zip(*crops, strict=True)
        return Batch(np.stack(heard), np.stack(clean), np.stack(phones))

    def _crop(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = self._rng
        voice = self._names[rng.choice(len(self._names), p=self._share)]
        factor = float(rng.uniform(0.86, 1.18)) if self._augment and voice != "hibari heart" else 1.0
        clean, phones = self._stream(voice, factor)
        gentle = voice == "hibari heart" and rng.random() < 0.6
        return self._heard(clean, gentle=gentle), clean, phones

    def _heard_again(self, clean: np.ndarray, phones: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        later = int(self._rng.integers(0, 161))
        moved = np.concatenate([np.zeros(later, np.float32), clean])[: len(clean)]
        return self._heard(moved, gentle=False), moved, phones

    def _heard(self, clean: np.ndarray, *, gentle: bool) -> np.ndarray:
        if not self._augment:
            return clean
        rng = self._rng
        heard = on_the_way(clean, rng, strength=0.2 if gentle else 1.0)
        if rng.random() < (0.1 if gentle else 0.75):
            heard = heard + noise(self._samples, rng, level_dbfs=float(rng.uniform(-70, -33)))
        return heard.astype(np.float32)

    def _stream(self, voice: str, factor: float) -> tuple[np.ndarray, np.ndarray]:
        rng, (utterances, pcm) = self._rng, self._voices[voice]
        sound = np.zeros(self._samples, np.float32)
        times = (np.arange(self._frames)[:, None] * 0.08 + np.array(LABEL_TIMES_S)).reshape(-1)
        phones = np.zeros(len(times), np.int64)
        start = int(rng.uniform(-1.2, 0.6) * SAMPLE_RATE)
        while start < self._samples:
            utterance = utterances[rng.integers(len(utterances))]
            spoken = resampled(bank.sound_of(utterance, pcm), factor)
            _paste(sound, spoken, start)
            _label(phones, times - start / SAMPLE_RATE, utterance.phones, factor)
            start += len(spoken) + int(rng.exponential(0.35) * SAMPLE_RATE)
        return sound, phones.reshape(self._frames, len(LABEL_TIMES_S))


def _paste(target: np.ndarray, sound: np.ndarray, start: int) -> None:
    a, b = max(start, 0), min(start + len(sound), len(target))
    if b > a:
        target[a:b] += sound[a - start : b - start]


def _label(phones: np.ndarray, times_s: np.ndarray, spoken: tuple, factor: float) -> None:
    ends = np.array([end for _, _, end in spoken]) / factor
    inside = (times_s >= 0) & (times_s < ends[-1])
    index = np.searchsorted(ends, times_s[inside], side="right")
    phones[inside] = np.array([_PHONE_ID[name] for name, _, _ in spoken])[index]


def prefetched(crops: Crops, rows: int, *, twins: bool = False) -> Iterator[Batch]:
    """Batches made by a thread while the trainer works on the last one."""
    ready: queue.Queue[Batch] = queue.Queue(maxsize=2)

    def produce() -> None:
        while True:
            ready.put(crops.batch(rows, twins=twins))

    threading.Thread(target=produce, daemon=True).start()
    while True:
        yield ready.get()
