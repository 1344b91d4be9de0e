"""The bank of utterances: what each voice says, synthesised once, aligned and kept on disk.

`python -m recipes.mini.bank --out DIR --assets DIR --part i/n` fills the folder voice by voice in small
rounds, so that training can start long before it is complete; a second run continues where it stopped.
Each voice has `VOICE.jsonl` (one utterance a line) beside `VOICE.pcm` (int16, 16 kHz, end to end).
`--reuse DIR` takes over what an older bank has of the same sentences.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipes.mini import script, voices

__all__ = ["Utterance", "load", "present", "rows_of", "sound_of", "store"]

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
    utterances = []
    for row in rows_of(bank, voice):
        row["words"] = tuple(tuple(w) for w in row["words"])
        row["phones"] = tuple(tuple(p) for p in row["phones"])
        utterances.append(Utterance(voice=voice, **row))
    return utterances, np.memmap(_stem(bank, voice).with_suffix(".pcm"), dtype=np.int16, mode="r")


def sound_of(utterance: Utterance, pcm: np.ndarray) -> np.ndarray:
    """float32 [samples] of one utterance."""
    return pcm[utterance.offset : utterance.offset + utterance.samples].astype(np.float32) / 32767


def present(bank: Path, names: tuple[str, ...], *, at_least: int = 1) -> list[str]:
    """Those of `names` that have `at_least` utterances in the bank by now."""
    return [name for name in names if len(rows_of(bank, name)) >= at_least]


def rows_of(bank: Path, voice: str) -> list[dict]:
    """The voice's rows as they are stored, without one that is still being written; none where there is no file."""
    path = _stem(bank, voice).with_suffix(".jsonl")
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def store(bank: Path, voice: str, line: dict, sound: np.ndarray, words: list, phones: list) -> None:
    """Append one utterance; its row is written last, so that sound without a row does no harm."""
    stem = _stem(bank, voice)
    with stem.with_suffix(".pcm").open("ab") as raw:
        if raw.tell() % 2:
            raw.write(b"\0")
        offset = raw.tell() // 2
        raw.write((sound * 32767).astype(np.int16).tobytes())
    row = line | {"offset": offset, "samples": len(sound), "words": words, "phones": phones}
    with stem.with_suffix(".jsonl").open("a") as rows:
        rows.write(json.dumps(row) + "\n")


def _stem(bank: Path, voice: str) -> Path:
    return bank / voice.replace(" ", "_")


def _spoken(bank: Path, voice: str) -> set[str]:
    """What the bank has of `voice`, after cutting off a row that a killed run left unfinished."""
    path = _stem(bank, voice).with_suffix(".jsonl")
    if path.exists() and not (whole := path.read_bytes()).endswith(b"\n"):
        path.write_bytes(whole[: whole.rfind(b"\n") + 1])
    return {row["text"] for row in rows_of(bank, voice)}


def _rounds(scripts: dict[str, list[dict]]) -> Iterator[tuple[str, list[dict]]]:
    for start in range(0, max(map(len, scripts.values()), default=0), ROUND):
        for name, lines in scripts.items():
            if part := lines[start : start + ROUND]:
                yield name, part


def _fill(arguments: argparse.Namespace, names: list[str]) -> None:
    """Add every line of the scripts that the bank lacks; those that could not be aligned are tried again."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    scripts = {name: script.lines(name, scale=arguments.scale) for name in names}
    if arguments.own in scripts and arguments.own != voices.MODEL_VOICE:
        scripts[arguments.own] = script.own_lines()
    elif arguments.own in scripts and arguments.voices:
        scripts[arguments.own] = script.own_lines(arguments.voices, scale=arguments.scale)
    spoken = {name: _spoken(arguments.out, name) for name in names}
    for name in names:
        if arguments.reuse and not spoken[name]:
            spoken[name] = _taken_over(arguments.reuse, arguments.out, name)
    for name, lines in _rounds(scripts):
        for line in lines:
            if line["text"] not in spoken[name]:
                _speak(arguments, name, line)


def _taken_over(old: Path, bank: Path, voice: str) -> set[str]:
    """Copy what `old` has of the sentences `voice` may say, as they are asked and answered now."""
    allowed, found = script.allowed(voice), set[str]()
    if not rows_of(old, voice):
        return found
    utterances, pcm = load(old, voice)
    for u in utterances:
        if u.text in allowed and u.text not in found:
            store(bank, voice, allowed[u.text], sound_of(u, pcm), list(u.words), list(u.phones))
            found.add(u.text)
    return found


def _speak(arguments: argparse.Namespace, voice: str, line: dict) -> None:
    """Synthesise, align and store one line; one that the aligner cannot follow is left out."""
    from recipes.mini.align import align

    speed = script.speed(voice, line["text"])
    sound = voices.speak(voice, line["text"], speed=speed, assets=arguments.assets)
    if (aligned := align(line["text"], sound)) is not None:
        store(arguments.out, voice, line, sound, aligned.words, aligned.phones)


def main() -> None:
    """Fill the bank with the share `--part i/n` of the voices (the model's own and the quick ones first)."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--reuse", type=Path, help="an older bank")
    parser.add_argument("--scale", type=float, default=1.0, help="share of each caller's lines that is spoken")
    parser.add_argument("--own", default=voices.MODEL_VOICE, help="whose voice the model has")
    parser.add_argument("--voices", nargs="*", help="callers, if not all")
    arguments = parser.parse_args()
    part, parts = (int(x) for x in arguments.part.split("/"))
    wanted = set(arguments.voices or (*voices.USERS, *voices.HELDOUT)) | {arguments.own}
    everyone = [voices.MODEL_VOICE, *voices.CLASSIC_USERS, *voices.HELDOUT, *voices.KOKORO_USERS]
    quick = [v for v in everyone if v in wanted and not v.startswith("kokoro")]
    slow = [v for v in everyone if v in wanted and v.startswith("kokoro")]
    _fill(arguments, quick[part::parts])
    _fill(arguments, slow[part::parts])


if __name__ == "__main__":
    main()
