"""What can be heard in the tokens: three small probes of a frozen codec, each a few minutes, before any long training.

- `phones`: a small network names the phonemes of each frame from the first codebook alone.
- `words`: a small recurrent network names each word of the caller's two frames after its end, from all tokens.
- `question`: of everything one can ask, the question is taken whose words that network heard; right is what has the
  same answer. Trained on few utterances it names far fewer than the language model does: it compares codecs, no more.
- `changed_by_*`: the share of first tokens in speech that a 10 ms shift, 20 dB noise or 6 dB less level change.

All are trained on the trained voices and measured on the held-out ones, undisturbed.
`python -m recipes.mini.probes --bank DIR --codec FILE --json FILE`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from moshi.models.compression import MimiModel
from torch import nn
from torch.nn import functional as F

from recipes.mini import bank, codec, voices, wordings
from recipes.mini.align import PHONES, words_of
from recipes.mini.augment import noise, on_the_way, resampled
from recipes.mini.codec import FRAME_SAMPLES, SAMPLE_RATE
from recipes.mini.tokens import heard_vocabulary

LEAD_S, FRAMES = 0.3, 48
TIMES_S = (0.0, 0.04)
WIDTH = 192
HEARD_AFTER = 2


@dataclass(frozen=True)
class Heard:
    """Utterances as tokens: codes int64 [N, K, T]; phones int64 [N, T, 2], 0 outside speech; words int64 [N, T]."""

    codes: torch.Tensor
    phones: torch.Tensor
    words: torch.Tensor  # the word that ended `HEARD_AFTER` frames before, 0: none
    replies: list[str]
    voices: list[str]


def heard(folder: Path, mimi: MimiModel, names: tuple[str, ...], count: int, *, disturbed: bool, seed: int) -> Heard:
    """Random questions of `names`, each once, encoded."""
    rng = np.random.default_rng(seed)
    loaded = {v: bank.load(folder, v) for v in bank.present(folder, names, at_least=5)}
    asked = {
        v: [u for u in us if u.reply and "-" not in u.kind and u.samples < 48_000] for v, (us, _) in loaded.items()
    }
    share = max(1, count // len(asked))
    picked = [us[i] for us in asked.values() for i in rng.permutation(len(us))[:share]]
    vocabulary = {word: i for i, word in enumerate(heard_vocabulary())}
    staged = (_staged(u, loaded[u.voice][1], rng, disturbed, vocabulary) for u in picked)
    sounds, phones, words = zip(*staged, strict=True)
    codes = [_encode(mimi, np.stack(sounds[i : i + 16])) for i in range(0, len(sounds), 16)]
    return Heard(
        torch.cat(codes),
        torch.from_numpy(np.stack(phones)),
        torch.from_numpy(np.stack(words)),
        [u.reply for u in picked],
        [u.voice for u in picked],
    )


def _staged(
    u: bank.Utterance, pcm: np.ndarray, rng: np.random.Generator, disturbed: bool, vocabulary: dict[str, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    factor = float(rng.uniform(0.88, 1.15)) if disturbed else 1.0
    sound = resampled(bank.sound_of(u, pcm), factor)
    start_s = LEAD_S + float(rng.uniform(0, 0.08))
    start = int(start_s * SAMPLE_RATE)
    whole = np.zeros(FRAMES * FRAME_SAMPLES, np.float32)
    whole[start : start + len(sound)] = sound[: len(whole) - start]
    if disturbed:
        whole = on_the_way(whole, rng)
    whole = whole + noise(len(whole), rng, level_dbfs=float(rng.uniform(-70, -40)) if disturbed else -70)
    times = np.arange(FRAMES)[:, None] * 0.08 + np.array(TIMES_S) - start_s
    ends = np.array([b for _, _, b in u.phones]) / factor
    names = np.array([PHONES.index(name) for name, _, _ in u.phones])
    inside = (times >= 0) & (times < ends[-1])
    labels = np.zeros(times.shape, np.int64)
    labels[inside] = names[np.searchsorted(ends, times[inside], side="right")]
    words = np.zeros(FRAMES, np.int64)
    for word, _, end_s in u.words:
        frame = int((start_s + end_s / factor) / 0.08) + HEARD_AFTER
        words[min(frame, FRAMES - 1)] = vocabulary.get(word, 0)
    return whole.astype(np.float32), labels, words


@torch.no_grad()
def _encode(mimi: MimiModel, sounds: np.ndarray) -> torch.Tensor:
    return mimi.encode(torch.from_numpy(sounds)[:, None])


class Listener(nn.Module):
    """Tokens to the caller's words and to phonemes."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(codec.BINS + 1, WIDTH) for _ in range(codec.N_Q))
        self.run = nn.GRU(WIDTH, WIDTH, num_layers=2, batch_first=True, dropout=0.2)
        self.words = nn.Linear(WIDTH, words)
        self.near = nn.Sequential(nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.GELU(), nn.Dropout(0.2))
        self.phones = nn.Linear(WIDTH, len(TIMES_S) * len(PHONES))

    def forward(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 [N, K, T] -> words' logits [N, T, W]; and from the first token alone phonemes' [N, T, 2, P]."""
        drop = torch.rand(len(codes), codes.shape[1], codes.shape[2]) < (0.1 if self.training else 0.0)
        codes = codes.masked_fill(drop, codec.BINS)
        first = self.tables[0](codes[:, 0])
        summed = first + sum(table(codes[:, k + 1]) for k, table in enumerate(list(self.tables)[1:]))
        hidden, _ = self.run(summed)
        near = self.near(first.transpose(1, 2)).transpose(1, 2)
        return self.words(hidden), self.phones(near).view(*near.shape[:2], len(TIMES_S), len(PHONES))


def train(listener: Listener, data: Heard, *, epochs: int) -> None:
    """Fit on `data`."""
    optimizer = torch.optim.AdamW(listener.parameters(), lr=2e-3, weight_decay=0.01)
    steps = epochs * (len(data.codes) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=max(2, steps))
    for step in range(steps):
        pick = torch.randint(len(data.codes), (64,))
        words, phones = listener(data.codes[pick])
        wanted = data.words[pick].flatten()
        loss = F.cross_entropy(words.flatten(0, 1), wanted, reduction="none")
        weights = torch.where(wanted > 0, 1.0, 0.1)
        loss = (loss * weights).sum() / weights.sum()
        loss = loss + F.cross_entropy(phones.flatten(0, 2), data.phones[pick].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(listener.parameters(), 1.0)
        optimizer.step()
        if step < steps - 1:
            schedule.step()


@torch.no_grad()
def measure(listener: Listener, data: Heard) -> dict[str, float]:
    """Shares of questions, words and phonemes (in speech) named right, over all, and questions per voice."""
    listener.eval()
    words, phones = listener(data.codes)
    chances = words.log_softmax(-1).amax(1).clamp(max=-1e-4)  # [N, W]: was this word heard at all
    asked, bags = _askable()
    absent = torch.log1p(-chances.exp())
    chosen = ((chances - absent) @ bags.T).argmax(1)
    right = np.array([asked[i] == r for i, r in zip(chosen.tolist(), data.replies, strict=True)])
    spoken, voiced = data.words > 0, data.phones != 0
    return {
        "questions": len(right),
        "question": float(right.mean()),
        "words": float((words.argmax(-1) == data.words)[spoken].float().mean()),
        "phones": float((phones.argmax(-1) == data.phones)[voiced].float().mean()),
    } | {v: float(right[[u == v for u in data.voices]].mean()) for v in sorted(set(data.voices))}


def _askable() -> tuple[list[str], torch.Tensor]:
    """The answers to everything one can ask, and the words of each question, float32 [Q, W]."""
    vocabulary = {word: i for i, word in enumerate(heard_vocabulary())}
    asked = wordings.questions()
    bags = torch.zeros(len(asked), len(vocabulary))
    for row, question in enumerate(asked):
        bags[row, [vocabulary[w] for w in words_of(question.text)]] = 1.0
    return [q.reply for q in asked], bags


@torch.no_grad()
def stability(mimi: MimiModel, folder: Path) -> dict[str, float]:
    """How many first tokens in held-out speech a small change of the sound changes."""
    rng = np.random.default_rng(1)
    loaded = [bank.load(folder, v) for v in bank.present(folder, voices.HELDOUT)]
    staged = [_staged(us[i], pcm, rng, False, {}) for us, pcm in loaded for i in rng.permutation(len(us))[:16]]
    sound = torch.from_numpy(np.stack([s for s, _, _ in staged]))
    voiced = torch.from_numpy(np.stack([(p != 0).all(-1) for _, p, _ in staged]))
    level = sound.pow(2).mean(1, keepdim=True).sqrt() * 0.1
    others = {
        "shift": F.pad(sound, (160, 0))[:, :-160],
        "noise": sound + level * torch.randn_like(sound),
        "quiet": sound * 0.5,
    }
    base = mimi.encode(sound[:, None])[:, 0]
    changed = {k: mimi.encode(s[:, None])[:, 0] != base for k, s in others.items()}
    return {f"changed_by_{k}": float(c[voiced].float().mean()) for k, c in changed.items()}


def main() -> None:
    """Probe a codec and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--codec", type=Path, required=True)
    parser.add_argument("--utterances", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    mimi = codec.load_weights(codec.build(), arguments.codec)
    trained = heard(arguments.bank, mimi, voices.USERS, arguments.utterances, disturbed=True, seed=1)
    unheard = heard(arguments.bank, mimi, voices.HELDOUT, arguments.utterances // 8, disturbed=False, seed=2)
    listener = Listener(len(heard_vocabulary()))
    train(listener, trained, epochs=arguments.epochs)
    report = measure(listener, unheard) | stability(mimi, arguments.bank)
    print(json.dumps(report, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
