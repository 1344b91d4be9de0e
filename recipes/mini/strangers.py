"""What the model does with recorded people who talk about something else: an out-of-domain check.

Every recording in a folder (any format that faster-whisper's decoder reads, 1 to 6 s long) is played to the model after
half a second of room noise, and it listens for four seconds more. Sensible is to stay silent or to say that it does
not know; anything else it says is an answer to a question that nobody asked.
`python -m recipes.mini.strangers --checkpoint DIR --recordings DIR --count 60 --json FILE`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.mini import evaluate, wordings
from recipes.mini.augment import noise
from recipes.mini.codec import FRAME_SAMPLES, SAMPLE_RATE

TARGET_RMS = 10 ** (-23 / 20)
SHORTEST_S, LONGEST_S = 1.0, 6.0
ROWS = 20


def recordings(folder: Path, count: int) -> list[tuple[str, np.ndarray]]:
    """`count` random recordings of a fitting length: name and float32 [S] at the level callers have in training."""
    from faster_whisper.audio import decode_audio

    paths = sorted(p for p in folder.rglob("*") if p.suffix in (".wav", ".g722", ".ogg", ".opus", ".flac"))
    found: list[tuple[str, np.ndarray]] = []
    for i in np.random.default_rng(7).permutation(len(paths)):
        sound = np.asarray(decode_audio(str(paths[i]), sampling_rate=SAMPLE_RATE), np.float32)
        if SHORTEST_S <= len(sound) / SAMPLE_RATE <= LONGEST_S and len(found) < count:
            rms = float(np.sqrt(np.mean(sound**2) + 1e-12))
            found.append((paths[i].name, np.clip(sound * (TARGET_RMS / rms), -1, 1)))
    return found


@torch.no_grad()
def said(models: tuple[Any, Any, Any], sounds: list[np.ndarray]) -> list[str]:
    """What the model says to each sound, greedily."""
    mimi, lm, tokenizer = models
    rng, answers = np.random.default_rng(1), []
    frames = int((evaluate.LEAD_S + LONGEST_S + 4.0) / 0.08)
    for start in range(0, len(sounds), ROWS):
        group = sounds[start : start + ROWS]
        staged = np.stack([noise(frames * FRAME_SAMPLES, rng, level_dbfs=-65) for _ in group])
        for row, sound in zip(staged, group, strict=True):
            at = int(evaluate.LEAD_S * SAMPLE_RATE)
            row[at : at + len(sound)] += sound
        columns = evaluate.generate(lm, mimi.encode(torch.from_numpy(staged)[:, None]))[:, 0]
        answers += [tokenizer.decode([int(t) for t in text if t not in (0, 3)]).strip() for text in columns]
    return answers


def judged(answer: str) -> str:
    """What an answer is; somebody who pauses may hear twice that the model does not know."""
    if not answer:
        return "silent"
    return "something else" if answer.replace(wordings.UNKNOWN, "").strip() else "does not know"


def main() -> None:
    """Play the recordings and count what came back."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--recordings", type=Path, required=True)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    found = recordings(arguments.recordings, arguments.count)
    if not found:
        parser.error(
            f"no recording of {SHORTEST_S} to {LONGEST_S} s in {arguments.recordings}: name a folder with some"
        )
    answers = said(evaluate.load(arguments.checkpoint), [sound for _, sound in found])
    outcome = Counter(judged(answer) for answer in answers)
    sensible = outcome["silent"] + outcome["does not know"]
    report = {"recordings": len(found), **outcome, "interval": evaluate.interval(sensible, len(found))}
    print(json.dumps(report | {"said": dict(zip((name for name, _ in found), answers, strict=True))}, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
