"""The bank of utterances: what each voice says, synthesised once, aligned and kept on disk.

`python -m recipes.mini.bank --out DIR --assets DIR --part i/n` fills the folder voice by voice in small
rounds, so that training can start long before it is complete; a second run continues where it stopped.
Each voice has `VOICE.jsonl` (one utterance a line) beside `VOICE.pcm` (int16, 16 kHz, end to end).
"""

from __future__ import annotations

import argparse
import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipes.mini import voices, wordings
from recipes.mini.align import align

__all__ = ["Utterance", "load", "sound_of"]

ROUND = 12


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One spoken sentence in the bank. Times in seconds, `offset` and `samples` in 16 kHz samples."""

    voice: str
    text: str
    kind: str
    reply: str
    category: str
    offset: int
    samples: int
    words: tuple[tuple[str, float, float], ...]
    phones: tuple[tuple[str, float, float], ...]


def load(bank: Path, voice: str) -> tuple[list[Utterance], np.ndarray]:
    """Utterances of `voice` and its sound as a read-only int16 memory map."""
    stem = bank / voice.replace(" ", "_")
    utterances = []
    for line in stem.with_suffix(".jsonl").read_text().splitlines():
        row = json.loads(line)
        row["words"] = tuple(tuple(w) for w in row["words"])
        row["phones"] = tuple(tuple(p) for p in row["phones"])
        utterances.append(Utterance(voice=voice, **row))
    return utterances, np.memmap(stem.with_suffix(".pcm"), dtype=np.int16, mode="r")


def sound_of(utterance: Utterance, pcm: np.ndarray) -> np.ndarray:
    """float32 [samples] of one utterance."""
    return pcm[utterance.offset : utterance.offset + utterance.samples].astype(np.float32) / 32767


def _script(voice: str) -> list[dict]:
    """What `voice` says, in a fixed random order in which every part of the domain comes early."""
    rng = random.Random(zlib.crc32(voice.encode()))
    if voice == voices.MODEL_VOICE:
        own = [{"text": r, "kind": "reply", "reply": "", "category": "reply"} for r in wordings.replies()]
        return own + [_filler(t) for t in wordings.phonetic_filler()]
    held = voice in voices.HELDOUT
    asked = [q.__dict__ for q in wordings.questions()]
    rng.shuffle(asked)
    telling = [line for line in asked if line["category"] == "tellings"]  # few, and needed in every voice
    lines = [_filler(t) for t in wordings.BACKCHANNELS] + telling
    lines += _balanced([line for line in asked if line not in telling])
    if held:
        unheard = [q.__dict__ | {"kind": f"heldout-{q.kind}"} for q in wordings.questions(heldout_wordings=True)]
        rng.shuffle(unheard)
        return [line for pair in zip(lines[:100], _balanced(unheard)[:100], strict=False) for line in pair]
    filler = [_filler(t) for t in wordings.phonetic_filler() if t not in wordings.BACKCHANNELS]
    rng.shuffle(filler)
    mixed = []
    for i, line in enumerate(lines):
        mixed.append(line)
        if i % 3 == 2 and filler:
            mixed.append(filler.pop())
    return mixed


def _filler(text: str) -> dict:
    return {"text": text, "kind": "filler", "reply": "", "category": "filler"}


def _balanced(asked: list[dict]) -> list[dict]:
    """Each distinct reply once per wave, so that a short script already covers the whole domain."""
    waves: dict[str, list[dict]] = {}
    for line in asked:
        waves.setdefault(line["reply"], []).append(line)
    ordered, depth = [], 0
    while any(depth < len(w) for w in waves.values()):
        ordered += [w[depth] for w in waves.values() if depth < len(w)]
        depth += 1
    return ordered


def _limit(voice: str) -> int:
    return {"hibari": 10_000, "kokoro": 420}.get(voice.split(maxsplit=1)[0], 700)


def _rounds(names: list[str]) -> Iterator[tuple[str, list[dict]]]:
    scripts = {name: _script(name)[: _limit(name)] for name in names}
    for start in range(0, max(len(s) for s in scripts.values()), ROUND):
        for name in names:
            if lines := scripts[name][start : start + ROUND]:
                yield name, lines


def _fill(bank: Path, assets: Path, names: list[str]) -> None:
    """Add every line of the scripts that the bank lacks; those that could not be aligned are tried again."""
    bank.mkdir(parents=True, exist_ok=True)
    spoken = {name: _spoken(bank, name) for name in names}
    for name, lines in _rounds(names):
        for line in lines:
            if line["text"] not in spoken[name]:
                _append(bank, assets, name, line)


def _spoken(bank: Path, voice: str) -> set[str]:
    """What the bank has of `voice`, after cutting off a row that a killed run left unfinished."""
    rows = (bank / voice.replace(" ", "_")).with_suffix(".jsonl")
    if not rows.exists():
        return set()
    whole = rows.read_bytes()
    if not whole.endswith(b"\n"):
        rows.write_bytes(whole[: whole.rfind(b"\n") + 1])
    return {json.loads(row)["text"] for row in rows.read_text().splitlines()}


def _append(bank: Path, assets: Path, voice: str, line: dict) -> None:
    """Synthesise, align and store one line; its row is written last, so that sound without a row does no harm."""
    rng = random.Random(zlib.crc32(f"{voice}{line['text']}".encode()))
    speed = 1.0 if voice == voices.MODEL_VOICE else rng.uniform(0.9, 1.15)
    sound = voices.speak(voice, line["text"], speed=speed, assets=assets)
    if (aligned := align(line["text"], sound)) is None:
        return
    stem = bank / voice.replace(" ", "_")
    with stem.with_suffix(".pcm").open("ab") as raw:
        if raw.tell() % 2:
            raw.write(b"\0")
        offset = raw.tell() // 2
        raw.write((sound * 32767).astype(np.int16).tobytes())
    row = line | {"offset": offset, "samples": len(sound), "words": aligned.words, "phones": aligned.phones}
    with stem.with_suffix(".jsonl").open("a") as rows:
        rows.write(json.dumps(row) + "\n")


def main() -> None:
    """Fill the bank with the share `--part i/n` of the voices (the model's own and the classic ones first)."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--part", default="0/1")
    arguments = parser.parse_args()
    part, parts = (int(x) for x in arguments.part.split("/"))
    slow = [*voices.KOKORO_USERS, *voices.HELDOUT[:2]]
    quick = [voices.MODEL_VOICE, *voices.CLASSIC_USERS, *voices.HELDOUT[2:]]
    _fill(arguments.out, arguments.assets, quick[part::parts])
    _fill(arguments.out, arguments.assets, slow[part::parts])


if __name__ == "__main__":
    main()
