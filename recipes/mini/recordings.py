"""A bank from recordings that ship with the project, so that the recipe runs where nothing can be synthesised.

`python -m recipes.mini.recordings --speech DIR --out DIR`. The demo's recordings stand in for the model's own
voice, and each caller's question is answered by one of them: a toy conversation, with real sound. Nobody aligned these
recordings here: words are spread over the sound by their length, and a letter stands for a phoneme.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import soxr
import sphn

from recipes.mini import bank, voices, wordings
from recipes.mini.align import words_of

__all__ = ["fill", "spread"]

_LETTERS = dict(
    zip(
        "abcdefghijklmnopqrstuvwxyz",
        "AE B K D EH F G HH IH JH K L M N AA P K R S T AH V W Z Y Z".split(),
        strict=True,
    )
)


def fill(speech: Path, out: Path) -> None:
    """Write the bank `out` from `speech` (`index.json` and the files it names)."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [row for row in json.loads((speech / "index.json").read_text()) if row["text"] and "cut_in_s" not in row]
    own = [row for row in rows if row["demo"]]
    for row in own:
        line = {"text": row["text"], "kind": "reply", "reply": "", "category": "reply"}
        _store(out, voices.MODEL_VOICE, line, speech / row["file"])
    kinds = {q.text: q.kind for q in wordings.questions()}
    for place, row in enumerate(row for row in rows if not row["demo"]):
        kind = kinds.get(row["text"], "telling" if row["category"] == "tellings" else "heldout-other")
        line = {"text": row["text"], "kind": kind, "reply": own[place % len(own)]["text"], "category": row["category"]}
        _store(out, row["voice"], line, speech / row["file"])


def spread(text: str, seconds: float) -> tuple[list, list]:
    """Words and phonemes (name, start_s, end_s) of `text`, each letter equally long, over `seconds`."""
    words = words_of(text)
    step = seconds / sum(map(len, words))
    found, phones, at = [], [], 0.0
    for word in words:
        found.append((word, at, at + step * len(word)))
        for letter in word:
            phones.append((_LETTERS.get(letter, "SIL"), at, at + step))
            at += step
    return found, phones


def _store(out: Path, voice: str, line: dict, path: Path) -> None:
    if line["text"] in {row["text"] for row in bank.rows_of(out, voice)}:
        return
    sound, rate = sphn.read_opus(str(path))
    whole = soxr.resample(np.asarray(sound[0], np.float32), rate, voices.SAMPLE_RATE)
    bank.store(out, voice, line, whole, *spread(line["text"], len(whole) / voices.SAMPLE_RATE))


def main() -> None:
    """Fill a bank from recordings."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    fill(arguments.speech, arguments.out)


if __name__ == "__main__":
    main()
