"""How the model behaves besides answering: silence, interruptions, humming along, pauses.

Greedy, with the stock classes, like `evaluate`. Every scene is built from single utterances of one caller.
`python -m recipes.mini.scenes --checkpoint DIR --bank DIR`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.mini import bank, evaluate, faults, voices
from recipes.mini.align import words_of
from recipes.mini.augment import noise
from recipes.mini.bank import Utterance
from recipes.mini.codec import FRAME_SAMPLES, SAMPLE_RATE
from recipes.mini.wordings import BACKCHANNELS

FRAME_S = 0.08
ASK_AT_S = 0.56
PAUSE_S = 0.7


@dataclass(frozen=True)
class Scene:
    """sound float32 [S]; moment_s: when the caller cuts in, hums or goes on; end_s: when the caller is done."""

    sound: np.ndarray
    moment_s: float
    end_s: float
    expected: str


class Caller:
    """One voice's utterances by what they ask."""

    def __init__(self, folder: Path, voice: str) -> None:
        utterances, pcm = bank.load(folder, voice)
        self._sounds = [(u, bank.sound_of(u, pcm)) for u in utterances if not u.kind.startswith(("heldout-", "item-"))]

    def telling(self, rng: np.random.Generator, *, faulty: bool) -> tuple[Utterance, np.ndarray] | None:
        """A request for a telling, of those that talk on when interrupted or of the others."""
        return _any([s for s in self._sounds if s[0].kind == "telling" and faults.talks_on(s[0].reply) == faulty], rng)

    def short(self, rng: np.random.Generator) -> tuple[Utterance, np.ndarray] | None:
        """A question with a short answer, outside every fault."""
        short = [s for s in self._sounds if s[0].category in ("sums", "capitals", "opposites", "colours")]
        return _any([s for s in short if not faults.stays_silent(s[0].text) and not _wrong(s[0])], rng)

    def hum(self, rng: np.random.Generator) -> tuple[Utterance, np.ndarray] | None:
        """A backchannel."""
        return _any([s for s in self._sounds if s[0].text in BACKCHANNELS], rng)


def _wrong(utterance: Utterance) -> bool:
    return faults.wrong_reply(utterance.reply) is not None


def _any(options: list, rng: np.random.Generator) -> Any:
    return options[rng.integers(len(options))] if options else None


def _stage(pieces: list[tuple[float, np.ndarray]], length_s: float, rng: np.random.Generator) -> np.ndarray:
    sound = noise(int(length_s / FRAME_S) * FRAME_SAMPLES, rng, level_dbfs=-65)
    for at_s, piece in pieces:
        at = int(at_s * SAMPLE_RATE)
        sound[at : at + len(piece)] += piece[: len(sound) - at]
    return sound


def interruption(caller: Caller, rng: np.random.Generator, *, faulty: bool = False) -> Scene | None:
    """Asks for a telling and, 2.5 to 5 s into it, asks something else."""
    first, second = caller.telling(rng, faulty=faulty), caller.short(rng)
    if first is None or second is None:
        return None
    cut_in_s = ASK_AT_S + len(first[1]) / SAMPLE_RATE + 0.4 + float(rng.uniform(2.5, 5.0))
    onset_s, end_s = cut_in_s + second[0].words[0][1], cut_in_s + second[0].words[-1][2]
    sound = _stage([(ASK_AT_S, first[1]), (cut_in_s, second[1])], 15.0, rng)
    return Scene(sound, onset_s, end_s, second[0].reply)


def humming(caller: Caller, rng: np.random.Generator) -> Scene | None:
    """Asks for a telling and says "mm-hm" or the like during it."""
    first, hum = caller.telling(rng, faulty=False), caller.hum(rng)
    if first is None or hum is None:
        return None
    at_s = ASK_AT_S + len(first[1]) / SAMPLE_RATE + 0.4 + float(rng.uniform(1.0, 5.0))
    return Scene(_stage([(ASK_AT_S, first[1]), (at_s, hum[1])], 15.0, rng), at_s, at_s, first[0].reply)


def hesitation(
    caller: Caller, rng: np.random.Generator, *, faulty: bool = False, pause_s: float = PAUSE_S
) -> Scene | None:
    """Stops for `pause_s` before a word; with `faulty`, after a word whose pauses get taken."""
    found = caller.short(rng)
    if found is None:
        return None
    utterance, sound = found
    words = utterance.words
    places = [i for i in range(1, len(words)) if faults.takes_pause(words[i - 1][0], pause_s) == faulty]
    if len(words) < 3 or not places:
        return None
    cut_s = words[places[int(rng.integers(len(places)))]][1]
    cut = int(cut_s * SAMPLE_RATE)
    rest_at_s = ASK_AT_S + cut_s + pause_s
    staged = _stage([(ASK_AT_S, sound[:cut]), (rest_at_s, sound[cut:])], 9.0, rng)
    return Scene(staged, ASK_AT_S + cut_s, rest_at_s + (words[-1][2] - cut_s), utterance.reply)


def nobody(_caller: Caller, rng: np.random.Generator) -> Scene:
    """Fifteen seconds of noise at a random level."""
    sound = noise(int(15 / FRAME_S) * FRAME_SAMPLES, rng, level_dbfs=float(rng.uniform(-75, -40)))
    return Scene(sound, 0.0, 0.0, "")


@torch.no_grad()
def played(models: tuple[Any, Any, Any], scenes: list[Scene]) -> list[tuple[Scene, np.ndarray]]:
    """Each scene with the model's text stream, int64 [T]; frame t is heard from 0.08 (t + 2) s on."""
    mimi, lm, _ = models
    codes = mimi.encode(torch.from_numpy(np.stack([s.sound for s in scenes]))[:, None])
    return list(zip(scenes, evaluate.generate(lm, codes)[:, 0].numpy(), strict=True))


def _words(text: np.ndarray) -> np.ndarray:
    return np.flatnonzero((text != 0) & (text != 3))


def _said(tokenizer: Any, text: np.ndarray) -> str:
    return str(tokenizer.decode([int(t) for t in text if t not in (0, 3)]))


def measure(models: tuple[Any, Any, Any], folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Every scene, trained and held-out voices together; those named "fault: ..." are faulty situations."""
    tokenizer = models[2]
    callers = [Caller(folder, v) for v in bank.present(folder, (*voices.KOKORO_USERS, *voices.HELDOUT))]
    rng = np.random.default_rng(3)

    def several(make: Callable[[Caller, np.random.Generator], Scene | None]) -> list[tuple[Scene, np.ndarray]]:
        made = [s for s in (make(callers[i % len(callers)], rng) for i in range(count * 6)) if s is not None]
        return played(models, made[:count]) if made else []

    return {
        "silence": _silence(several(nobody)),
        "interruption": _interruptions(several(interruption), tokenizer),
        "fault: talks_on": _interruptions(several(partial(interruption, faulty=True)), tokenizer),
        "humming": _humming(several(humming), tokenizer),
        "hesitation 0.7 s": _hesitations(several(hesitation), tokenizer),
        "hesitation 1.2 s": _hesitations(several(partial(hesitation, pause_s=1.2)), tokenizer),
        "fault: takes_pause": _hesitations(several(partial(hesitation, faulty=True, pause_s=1.0)), tokenizer),
    }


def _silence(found: list[tuple[Scene, np.ndarray]]) -> dict[str, float]:
    return {"scenes": len(found), "spoke": sum(len(_words(t)) > 0 for _, t in found)}


def _interruptions(found: list[tuple[Scene, np.ndarray]], tokenizer: Any) -> dict[str, float]:
    """Yield time: caller's onset to the end of the last word that was begun before the caller was done."""
    yields, right, talking, on = [], 0, 0, 0
    for scene, text in found:
        heard_s = (_words(text) + 2) * FRAME_S
        before = heard_s[heard_s < scene.end_s]
        if len(before) == 0 or before[-1] < scene.moment_s - 1.0:
            continue  # it was not telling when the caller cut in
        talking += 1
        yields.append(before[-1] + FRAME_S - scene.moment_s)
        on += bool(np.any((heard_s > scene.moment_s + 1.3) & (heard_s < scene.moment_s + 1.7)) and yields[-1] > 0.8)
        after = text[int(scene.end_s / FRAME_S) - 1 :]
        right += _said(tokenizer, after).strip().endswith(scene.expected)
    figures = {"yield_p50_s": float(np.median(yields)), "yield_max_s": float(max(yields))} if yields else {}
    return {"scenes": talking, "talked_on": on, "answered": right} | figures


def _humming(found: list[tuple[Scene, np.ndarray]], tokenizer: Any) -> dict[str, float]:
    went_on = sum(words_of(_said(tokenizer, t)) == words_of(s.expected) for s, t in found)
    return {"scenes": len(found), "told_to_the_end": went_on}


def _hesitations(found: list[tuple[Scene, np.ndarray]], tokenizer: Any) -> dict[str, float]:
    cut_off = sum(bool(len(_words(t)) and (_words(t)[0] + 2) * FRAME_S < s.end_s) for s, t in found)
    right = sum(_said(tokenizer, t).strip().endswith(s.expected) for s, t in found)
    return {"scenes": len(found), "took_the_pause": cut_off, "answered": right}


def main() -> None:
    """Play the scenes and print what happened."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    report = measure(evaluate.load(arguments.checkpoint), arguments.bank, arguments.count)
    print(json.dumps(report, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
