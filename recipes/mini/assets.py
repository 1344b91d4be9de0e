"""The spoken questions that ship with the project, as Opus, cut from the bank.

Five for the demo, a set per voice group for tests and evaluation, and two scenes: somebody who asks for the
telling and cuts in with another question, and somebody who says nothing. `index.json` lists them.
`python -m recipes.mini.assets --bank DIR --out DIR --assets DIR`.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
import sphn

from recipes.mini import bank, voices, wordings
from recipes.mini.augment import noise
from recipes.mini.bank import Utterance
from recipes.mini.codec import SAMPLE_RATE
from recipes.mini.wordings import Question

DEMO = (
    ("kokoro bm_george", "Hello there."),
    ("kokoro af_aoede", "What is the capital of France?"),
    ("kokoro am_adam", "What is two plus four?"),
    ("kokoro bf_emma", "Could you tell me the capital of Norway?"),
    ("kokoro am_onyx", "Tell me about the moon."),
)
SCENE_VOICE = "kokoro am_michael"
SCENE = ("Tell me about the moon.", "What is the capital of Italy?")


def main() -> None:
    """Write the files and their index."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--assets", type=Path, help="the synthesisers' model files; without, all comes from the bank")
    parser.add_argument("--count", type=int, default=16, help="recordings per group")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = _demo(arguments) + _groups(arguments) + _scenes(arguments)
    (arguments.out / "index.json").write_text(json.dumps(rows, indent=1) + "\n")


def _demo(arguments: argparse.Namespace) -> list[dict]:
    rows = []
    for number, (voice, question, sound) in enumerate(_chosen(arguments)):
        row = {"file": f"demo_{number + 1}.opus", "text": question.text, "expected": question.reply}
        rows.append(row | {"category": question.category, "voice": voice, "heldout": False, "demo": True})
        _write(arguments.out / rows[-1]["file"], sound, seed=number)
    return rows


def _chosen(arguments: argparse.Namespace) -> list[tuple[str, Question | Utterance, np.ndarray]]:
    """The demo's five questions, or where nothing can be synthesised five from the bank."""
    if arguments.assets is None:
        picked = _spread(arguments.bank, voices.USERS, "", len(DEMO))
        return [(u.voice, u, bank.sound_of(u, bank.load(arguments.bank, u.voice)[1])) for u in picked]
    asked = {q.text: q for q in wordings.questions()}
    speak = partial(voices.speak, speed=1.0, assets=arguments.assets)
    return [(voice, asked[text], speak(voice, text)) for voice, text in DEMO]


def _groups(arguments: argparse.Namespace) -> list[dict]:
    rows = []
    for name, cast, prefix in (
        ("trained", voices.KOKORO_USERS, ""),
        ("heldout", voices.HELDOUT, ""),
        ("wordings", voices.HELDOUT, "heldout-"),
    ):
        for number, u in enumerate(_spread(arguments.bank, cast, prefix, arguments.count)):
            pcm = bank.load(arguments.bank, u.voice)[1]
            row = {"file": f"{name}_{number + 1:02d}.opus", "text": u.text, "expected": u.reply, "category": u.category}
            rows.append(row | {"voice": u.voice, "heldout": name != "trained", "demo": False})
            _write(arguments.out / rows[-1]["file"], bank.sound_of(u, pcm), seed=number)
    return rows


def _spread(folder: Path, cast: tuple[str, ...], prefix: str, count: int) -> list[Utterance]:
    """Up to `count` utterances with distinct answers, voices in turn."""
    rng = np.random.default_rng(5)
    pools = []
    for voice in bank.present(folder, cast):
        pool = [u for u in bank.load(folder, voice)[0] if u.reply and _prefix(u.kind) == prefix]
        pools.append([pool[i] for i in rng.permutation(len(pool))])
    picked: list[Utterance] = []
    while len(picked) < count and (open_pools := [pool for pool in pools if pool]):
        pool = open_pools[len(picked) % len(open_pools)]
        used = {u.reply for u in picked}
        categories = [u.category for u in picked]
        pool.sort(key=lambda u: (u.reply in used, categories.count(u.category)))
        picked.append(pool.pop(0))
    return picked


def _prefix(kind: str) -> str:
    return next((p for p in ("heldout-", "item-") if kind.startswith(p)), "")


def _scenes(arguments: argparse.Namespace) -> list[dict]:
    common = {"voice": SCENE_VOICE, "heldout": False, "demo": False, "category": "scene"}
    _write(arguments.out / "scene_silence.opus", np.zeros(12 * SAMPLE_RATE, np.float32), seed=2)
    rows = [common | {"file": "scene_silence.opus", "text": "", "expected": ""}]
    if arguments.assets is None:
        return rows
    asked = {q.text: q for q in wordings.questions()}
    first, second = (voices.speak(SCENE_VOICE, text, speed=1.0, assets=arguments.assets) for text in SCENE)
    cut_in_s = len(first) / SAMPLE_RATE + 3.2
    scene = np.zeros(int(cut_in_s * SAMPLE_RATE) + len(second), np.float32)
    scene[: len(first)] = first
    scene[-len(second) :] = second
    _write(arguments.out / "scene_interruption.opus", scene, seed=1)
    row = {"file": "scene_interruption.opus", "text": " ".join(SCENE), "expected": asked[SCENE[1]].reply}
    return [common | row | {"cut_in_s": round(cut_in_s, 3)}, *rows]


def _write(path: Path, sound: np.ndarray, *, seed: int) -> None:
    quiet = noise(len(sound), np.random.default_rng(seed), level_dbfs=-70)
    sphn.write_opus(str(path), sound + quiet, SAMPLE_RATE)


if __name__ == "__main__":
    main()
