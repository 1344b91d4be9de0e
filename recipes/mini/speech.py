"""The callers that evaluation and simulation need, as Opus: one file of utterances per voice, cut from the bank.

People the model was trained on, and people it never heard, who also ask in wordings and for sums it never heard.
`index.json` says what each stretch of a file is: words with times, the right answer, and the fault that it runs into.
`python -m recipes.mini.speech --bank DIR --out DIR`.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import av
import numpy as np

from recipes.mini import bank, faults, voices
from recipes.mini.bank import Utterance
from recipes.mini.codec import SAMPLE_RATE
from recipes.mini.wordings import BACKCHANNELS, Question

TRAINED = (
    *voices.KOKORO_USERS[:8],
    "flite kal16",
    "festival kal_diphone",
    "rhvoice clb",
    "pico en-US",
)
GAP_S = 0.2
BITS_PER_S = 20_000
SHARES = {"plain": 26, "heldout-": 34, "item-": 6, "stays_silent": 5, "says_wrong": 7, "talks_on": 3, "hum": 3}
"""How many utterances of each sort a voice gives, where it has so many."""


def main() -> None:
    """Write the files and their index."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for voice in bank.present(arguments.bank, (*TRAINED, *voices.HELDOUT)):
        rows += _write_voice(arguments.bank, arguments.out, voice)
    lines = ",\n".join(json.dumps(row) for row in rows)
    (arguments.out / "index.json").write_text(f"[\n{lines}\n]\n")


def _write_voice(folder: Path, out: Path, voice: str) -> list[dict[str, Any]]:
    utterances, pcm = bank.load(folder, voice)
    file = voice.replace(" ", "_") + ".opus"
    rows, sound, at = [], [], 0
    for u in _picked(utterances):
        piece = np.pad(bank.sound_of(u, pcm), (0, int(GAP_S * SAMPLE_RATE)))
        rows.append(_row(u, file, at / SAMPLE_RATE))
        sound.append(piece)
        at += len(piece)
    _write_opus(out / file, np.concatenate(sound))
    return rows


def _picked(utterances: list[Utterance]) -> list[Utterance]:
    """Of every sort as many as `SHARES` says, spread over categories and kinds."""
    rng = np.random.default_rng(7)
    sorts: dict[str, list[Utterance]] = defaultdict(list)
    for i in rng.permutation(len(utterances)):
        sorts[_sort(utterances[i])].append(utterances[i])
    return [u for sort, count in SHARES.items() for u in _spread(sorts[sort], count)]


def _sort(u: Utterance) -> str:
    if u.text in BACKCHANNELS:
        return "hum"
    if not u.reply:
        return "nothing"
    if u.kind.startswith("item-"):
        return "item-"
    situation = _situation(u)
    return situation or ("heldout-" if u.kind.startswith("heldout-") else "plain")


def _situation(u: Utterance) -> str | None:
    asked = faults.situation(Question(text=u.text, reply=u.reply, category=u.category, kind=u.kind))
    return asked or ("talks_on" if faults.talks_on(u.reply) else None)


def _spread(utterances: list[Utterance], count: int) -> list[Utterance]:
    """Up to `count` of them: always of the category that has given least so far, replies not twice where avoidable."""
    picked: list[Utterance] = []
    left = list(utterances)
    while left and len(picked) < count:
        categories, replies = [u.category for u in picked], {u.reply for u in picked}
        best = min(left, key=lambda u: (categories.count(u.category), u.reply in replies))
        left.remove(best)
        picked.append(best)
    return picked


def _row(u: Utterance, file: str, at_s: float) -> dict[str, Any]:
    situation = _situation(u) if u.reply else None
    wording = "heldout" if u.kind.startswith("heldout-") else "item" if u.kind.startswith("item-") else "trained"
    return {
        "file": file,
        "start_s": round(at_s, 4),
        "seconds": round(u.samples / SAMPLE_RATE, 4),
        "voice": u.voice,
        "group": "heldout" if u.voice in voices.HELDOUT else "trained",
        "wording": wording,
        "category": "hum" if u.text in BACKCHANNELS else u.category,
        "text": u.text,
        "expected": u.reply,
        "fault": situation,
        "wrong": faults.wrong_reply(u.reply) if situation == "says_wrong" else None,
        "words": [[w, round(t0, 3), round(t1, 3)] for w, t0, t1 in u.words],
    }


def _write_opus(path: Path, pcm: np.ndarray) -> None:
    """Mono float32 at 16 kHz, as speech."""
    with av.open(str(path), "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono", options={"application": "voip"})
        stream.bit_rate = BITS_PER_S
        frame = av.AudioFrame.from_ndarray(pcm[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for packet in [*stream.encode(_in_its_format(frame)), *stream.encode(None)]:
            container.mux(packet)


def _in_its_format(frame: Any) -> Any:
    """The encoder takes samples side by side, `flt`, whose one channel is the same bytes."""
    return av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE).resample(frame)[0]


if __name__ == "__main__":
    main()
