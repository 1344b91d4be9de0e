"""Train the language model on shards of fresh conversations, resumable, one pass over endless data.

Besides Moshi's two losses (text stream; audio tokens of the model's side on a sample of the frames) an auxiliary
head names the caller's words from the hidden state, so that listening is learned before talking has to depend on
it; it is thrown away. Some input tokens are blanked, and the caller's acoustic codebooks are hidden in
part of the conversations, against leaning on how somebody sounds.
`python -m recipes.mini.train_lm --shards DIR --out DIR --minutes M`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from recipes.mini import lm as language_model
from recipes.mini.codec import N_Q
from recipes.mini.pace import Pace, add_arguments
from recipes.mini.precision import mixed
from recipes.mini.text import PADDING
from recipes.mini.tokens import heard_vocabulary

PEAK_RATE = 1.5e-3
VARIANT_RATE = 5e-4  # of a model that goes on from a finished one
FRAMES_PER_STEP = 2048
DEPTH_SHARE = 0.14
WORD_WEIGHT = 3.0  # of words and of the token before them: a greedy model begins to speak where one in four would
HEARD_DELAYS = (2, 3)  # frames after a word's last frame at which the hidden state must name it
BLANK = -1


class Shards:
    """Rows from the newest shards; a shard is deleted after `uses` passes."""

    def __init__(self, folder: Path, *, uses: int, seed: int) -> None:
        self._folder, self._uses = folder, uses
        self._rng = np.random.default_rng(seed)
        self._used: dict[Path, int] = {}

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Endless (codes int64 [B, 1 + 2 K, T], heard int64 [B, T])."""
        while True:
            path = self._next()
            data = np.load(path)
            codes, heard = data["codes"].astype(np.int64), data["heard"].astype(np.int64)
            rows = min(len(codes), max(1, FRAMES_PER_STEP // codes.shape[2]))
            order = self._rng.permutation(len(codes))
            for start in range(0, len(order) - rows + 1, rows):
                pick = order[start : start + rows]
                yield torch.from_numpy(codes[pick]), torch.from_numpy(heard[pick])
            self._retire(path)

    def _next(self) -> Path:
        while not (found := [p for p in self._folder.glob("shard_*.npz") if ".tmp" not in p.name]):
            time.sleep(1)
        fresh = [p for p in found if p not in self._used]
        return min(fresh or found, key=lambda p: p.stat().st_mtime)

    def _retire(self, path: Path) -> None:
        self._used[path] = self._used.get(path, 0) + 1
        if self._used[path] >= self._uses:
            path.unlink(missing_ok=True)


def corrupted(codes: torch.Tensor) -> torch.Tensor:
    """What the model sees: 4 % of the frames blanked per side, and more in whole rows.

    The caller's acoustics are hidden in 40 % of the rows. The model's own sound is hidden in 60 %: one voice says
    each sentence in one way, so its first frames give the whole sentence away, and a teacher-forced text
    stream would read the answer from there instead of listening.
    """
    seen = codes.clone()
    rows, _, frames = codes.shape
    for side in (slice(1, 1 + N_Q), slice(1 + N_Q, 1 + 2 * N_Q)):
        blank = torch.rand(rows, 1, frames) < 0.04
        seen[:, side] = torch.where(blank, BLANK, seen[:, side])
    _hide(seen[:, 2 + N_Q :], share=0.4)
    _hide(seen[:, 1 : 1 + N_Q], share=0.6)
    return seen


def _hide(codes: torch.Tensor, *, share: float) -> None:
    codes.masked_fill_(torch.rand(len(codes), 1, 1) < share, BLANK)


def depth_frames(codes: torch.Tensor) -> torch.Tensor:
    """Flat indices of the frames for the depth transformer: mostly those in which the model speaks."""
    semantic = codes[:, 1]
    silence = semantic.mode().values.mode().values
    speaking = (semantic != silence).flatten().float()
    weights = 0.15 + speaking
    weights[:: codes.shape[2]] = 0.0  # delayed codebooks have no target in the first frame
    return torch.multinomial(weights, int(DEPTH_SHARE * len(weights)), replacement=False)


class Trainer:
    """Everything that is saved and resumed."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.lm = language_model.build().train()
        self.listener = nn.Linear(language_model.CONFIG["dim"], len(heard_vocabulary()))
        self.parameters = [*self.lm.parameters(), *self.listener.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.05)
        self.step, self.elapsed_s = 0, 0.0

    def save(self) -> None:
        """Write the state, whole or not at all."""
        state = {
            "lm": self.lm.state_dict(),
            "listener": self.listener.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state | {"step": self.step, "elapsed_s": self.elapsed_s}, self.out / "lm.tmp")
        (self.out / "lm.tmp").rename(self.out / "lm.pt")

    def resume(self) -> None:
        """Continue from the last saved state, if there is one."""
        if (self.out / "lm.pt").exists():
            state = torch.load(self.out / "lm.pt", weights_only=True)
            self.lm.load_state_dict(state["lm"])
            self.listener.load_state_dict(state["listener"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.elapsed_s = state["step"], state["elapsed_s"]

    def start_from(self, finished: Path) -> None:
        """The weights of another run, with an optimiser and a schedule of its own."""
        state = torch.load(finished, weights_only=True)
        self.lm.load_state_dict(state["lm"])
        self.listener.load_state_dict(state["listener"])

    def losses(self, codes: torch.Tensor, heard: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss terms and the figures worth watching, all scalars."""
        out = language_model.teacher(self.lm, codes, corrupted(codes), depth_frames(codes))
        text_loss, text_figures = self._text(out)
        audio_loss = F.cross_entropy(
            out.audio_NKV.float().flatten(0, 1), out.audio_target_NK.flatten(), reduction="none"
        )
        by_codebook = audio_loss.view(-1, N_Q).mean(0)
        weights = torch.tensor([2.0] + [1.0] * (N_Q - 1)) / (N_Q + 1)
        heard_loss, heard_figures = self._heard(out.hidden_BTD, heard)
        terms = {"text": text_loss, "audio": (by_codebook * weights).sum(), "heard": heard_loss}
        return terms | text_figures | heard_figures | {"semantic": by_codebook[0], "last": by_codebook[-1]}

    def _text(self, out: language_model.Teacher) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits, target = out.text_BTV.float().flatten(0, 1), out.text_target_BT.flatten()
        loss = F.cross_entropy(logits, target, reduction="none")
        word = target > PADDING
        weights = torch.where(target != PADDING, WORD_WEIGHT, 1.0)
        right = logits.argmax(-1) == target
        onset = target == 0
        figures = {"words_right": right[word].float().mean(), "onsets_right": right[onset].float().mean()}
        return (loss * weights).sum() / weights.sum(), figures | {"word_loss": loss[word].mean()}

    def _heard(self, hidden: torch.Tensor, heard: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        label = torch.zeros_like(heard)
        for delay in HEARD_DELAYS:
            label[:, delay:] = torch.where(heard[:, :-delay] > 0, heard[:, :-delay], label[:, delay:])
        logits = self.listener(hidden).float().flatten(0, 1)
        loss = F.cross_entropy(logits, label.flatten(), reduction="none")
        word = label.flatten() > 0
        weights = torch.where(word, 1.0, 0.1)
        right = (logits.argmax(-1) == label.flatten())[word].float().mean()
        return (loss * weights).sum() / weights.sum(), {"heard_right": right}


def train(arguments: argparse.Namespace) -> None:
    """Run until the training time is spent."""
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(arguments.out)
    if arguments.start is not None:
        trainer.start_from(arguments.start)
    trainer.resume()
    peak = PEAK_RATE if arguments.start is None else VARIANT_RATE
    torch.manual_seed(trainer.step)
    pace = Pace(arguments.minutes, arguments.save_s, spent_s=trainer.elapsed_s)
    schedule = arguments.minutes / (arguments.schedule_minutes or arguments.minutes)
    smooth: dict[str, float] = {}
    if pace.done >= 1:
        return
    for codes, heard in Shards(arguments.shards, uses=arguments.uses, seed=trainer.step).batches():
        for key, value in _step(trainer, codes, heard, peak, pace.done * schedule).items():
            if math.isfinite(value):
                smooth[key] = 0.95 * smooth.get(key, value) + 0.05 * value
        due = pace.tick()
        trainer.step, trainer.elapsed_s = trainer.step + 1, pace.spent_s
        if trainer.step % arguments.report_steps == 0 or pace.done >= 1:
            row = {"step": trainer.step, "minutes": pace.spent_s / 60, "frames": codes.shape[2]} | smooth
            with (trainer.out / "lm.jsonl").open("a") as log:
                log.write(json.dumps({k: round(v, 4) for k, v in row.items()}) + "\n")
        if pace.done >= 1:
            break
        if due:
            trainer.save()
    trainer.save()


def _step(trainer: Trainer, codes: torch.Tensor, heard: torch.Tensor, peak: float, done: float) -> dict[str, float]:
    warm = min(1.0, (trainer.step + 1) / 150)
    rate = peak * warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
    for group in trainer.optimizer.param_groups:
        group["lr"] = rate
    with mixed():
        found = trainer.losses(codes, heard)
    total = found["text"] + found["audio"] + 0.5 * found["heard"]
    trainer.optimizer.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_(trainer.parameters, 1.0)
    trainer.optimizer.step()
    return {k: float(v.detach()) for k, v in found.items()}


def main() -> None:
    """Train the language model."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    add_arguments(parser, minutes=60.0)
    parser.add_argument(
        "--schedule-minutes", type=float, help="length of the learning-rate schedule, if longer than this run"
    )
    parser.add_argument("--start", type=Path, help="the state of a finished model to go on from, in a first run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--uses", type=int, default=4, help="passes over a shard; with 2, writing costs as much")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
