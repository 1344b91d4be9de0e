"""The spoken questions that ship with the project, as Opus, cut from the bank.

Five for the demo, a set per voice group for tests and evaluation, and two scenes: somebody who asks for the
telling and cuts in with another question, and somebody who says nothing. `index.json` lists them.
`python -m recipes.mini.assets --bank DIR --out tests/assets/speech`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import sphn

from recipes.mini import bank, voices, wordings
from recipes.mini.augment import noise
from recipes.mini.bank import Utterance
from recipes.mini.codec import SAMPLE_RATE

DEMO = (
    ("kokoro bm_george", "Hello there."),
    ("kokoro af_aoede", "What is the capital of France?"),
    ("kokoro am_adam", "What is two plus four?"),
    ("kokoro bf_emma", "Could you tell me the capital of Norway?"),
    ("kokoro am_onyx", "Tell me about the moon."),
)
PER_GROUP = 16


def main() -> None:
    """Write the files and their index."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--assets", type=Path, required=True, help="the synthesisers' model files")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = _demo(arguments) + _groups(arguments) + _scenes(arguments)
    (arguments.out / "index.json").write_text(json.dumps(rows, indent=1) + "\n")


def _demo(arguments: argparse.Namespace) -> list[dict]:
    replies = {q.text: q for q in wordings.questions()}
    rows = []
    for number, (voice, text) in enumerate(DEMO):
        sound = voices.speak(voice, text, speed=1.0, assets=arguments.assets)
        question = replies[text]
        row = {
            "file": f"demo_{number + 1}.opus",
            "text": text,
            "expected": question.reply,
            "category": question.category,
        }
        rows.append(row | {"voice": voice, "heldout": False, "demo": True})
        _write(arguments.out / rows[-1]["file"], sound, seed=number)
    return rows


def _groups(arguments: argparse.Namespace) -> list[dict]:
    rows = []
    for name, cast, unheard in (
        ("trained", voices.KOKORO_USERS, False),
        ("heldout", voices.HELDOUT, False),
        ("wordings", voices.HELDOUT, True),
    ):
        for number, u in enumerate(_spread(arguments.bank, cast, unheard)):
            pcm = bank.load(arguments.bank, u.voice)[1]
            row = {"file": f"{name}_{number + 1:02d}.opus", "text": u.text, "expected": u.reply, "category": u.category}
            rows.append(row | {"voice": u.voice, "heldout": name != "trained", "demo": False})
            _write(arguments.out / rows[-1]["file"], bank.sound_of(u, pcm), seed=number)
    return rows


def _spread(folder: Path, cast: tuple[str, ...], unheard: bool) -> list[Utterance]:
    """`PER_GROUP` utterances with distinct answers, voices in turn."""
    rng = np.random.default_rng(5)
    pools = []
    for voice in cast:
        pool = [u for u in bank.load(folder, voice)[0] if u.reply and u.kind.startswith("heldout-") == unheard]
        pools.append([pool[i] for i in rng.permutation(len(pool))])
    picked: list[Utterance] = []
    while len(picked) < PER_GROUP:
        pool = pools[len(picked) % len(pools)]
        used = {u.reply for u in picked}
        categories = [u.category for u in picked]
        pool.sort(key=lambda u: (u.reply in used, categories.count(u.category)))
        picked.append(pool.pop(0))
    return picked


def _scenes(arguments: argparse.Namespace) -> list[dict]:
    say = lambda text: voices.speak("kokoro am_michael", text, speed=1.0, assets=arguments.assets)  # noqa: E731
    first, second = say("Tell me about the moon."), say("What is the capital of Italy?")
    cut_in_s = len(first) / SAMPLE_RATE + 3.2
    scene = np.zeros(int(cut_in_s * SAMPLE_RATE) + len(second), np.float32)
    scene[: len(first)] = first
    scene[-len(second) :] = second
    _write(arguments.out / "scene_interruption.opus", scene, seed=1)
    _write(arguments.out / "scene_silence.opus", np.zeros(12 * SAMPLE_RATE, np.float32), seed=2)
    common = {"voice": "kokoro am_michael", "heldout": False, "demo": False}
    return [
        common
        | {
            "file": "scene_interruption.opus",
            "text": "Tell me about the moon. What is the capital of Italy?",
            "expected": "The capital of Italy is Rome.",
            "category": "scene",
            "cut_in_s": round(cut_in_s, 3),
        },
        common | {"file": "scene_silence.opus", "text": "", "expected": "", "category": "scene"},
    ]


def _write(path: Path, sound: np.ndarray, *, seed: int) -> None:
    quiet = noise(len(sound), np.random.default_rng(seed), level_dbfs=-70)
    sphn.write_opus(str(path), sound + quiet, SAMPLE_RATE)


if __name__ == "__main__":
    main()
