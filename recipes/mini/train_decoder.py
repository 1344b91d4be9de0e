"""Stage 2 of the codec: a decoder that makes sound from the frozen tokens.

Encoder and codebooks do not change any more. Mostly the model's own voice is trained, standing on the frame grid
after silence exactly as the language model will say it; a share of other voices keeps replays intelligible.
Losses: log-magnitude and spectral convergence at four resolutions and a mel distance (as in Parallel WaveGAN,
Yamamoto et al. 2020), and, if asked for, from `--adversarial-from` minutes on a small multi-resolution spectrogram
discriminator with a hinge loss and feature matching (as in SoundStream, Zeghidour et al. 2021).
`python -m recipes.mini.train_decoder --bank DIR --codec FILE --out DIR --minutes M` resumes.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from moshi.models.compression import MimiModel
from torch import nn
from torch.nn import functional as F

from recipes.mini import bank, codec, voices
from recipes.mini.augment import noise, on_the_way
from recipes.mini.codec import FRAME_SAMPLES
from recipes.mini.pace import Pace, add_arguments
from recipes.mini.precision import mixed
from recipes.mini.spectra import mel_filters
from recipes.mini.tokens import LEAD_FRAMES
from recipes.mini.train_encoder import voice_weights

ROWS = 8
FRAMES = 30
OWN_SHARE = 0.8
JUDGED_ROWS, JUDGED_SAMPLES = 3, 16_000  # the discriminator is the costly part
SIZES = (2048, 1024, 512, 256)


class Pairs:
    """Random (codes, clean sound): quantised vectors are looked up from codes encoded once per utterance."""

    def __init__(self, folder: Path, mimi: MimiModel, *, seed: int, at_least: int, own: str) -> None:
        self._rng = np.random.default_rng(seed)
        self._mimi = mimi
        others = {v: w for v, w in voice_weights(folder, at_least=at_least).items() if v != own}
        self._others = {v: bank.load(folder, v) for v in others}
        self._own = [self._encoded(s) for s in _own_sounds(folder, own)]

    @torch.no_grad()
    def _encoded(self, sound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        whole = sound[: len(sound) // FRAME_SAMPLES * FRAME_SAMPLES]
        return self._mimi.encode(torch.from_numpy(whole)[None, None])[0].numpy(), whole

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """codes int64 [B, K, T], sound float32 [B, 1280 T]."""
        crops = [self._crop() for _ in range(ROWS)]
        codes, sounds = zip(*crops, strict=True)
        return torch.from_numpy(np.stack(codes)), torch.from_numpy(np.stack(sounds))

    def _crop(self) -> tuple[np.ndarray, np.ndarray]:
        rng = self._rng
        own = rng.random() < OWN_SHARE
        codes, sound = self._own[rng.integers(len(self._own))] if own else self._other()
        start = int(rng.integers(LEAD_FRAMES - 14 if own else 0, codes.shape[1] - FRAMES + 1))
        return codes[:, start : start + FRAMES], sound[start * FRAME_SAMPLES : (start + FRAMES) * FRAME_SAMPLES]

    def _other(self) -> tuple[np.ndarray, np.ndarray]:
        rng = self._rng
        utterances, pcm = self._others[list(self._others)[rng.integers(len(self._others))]]
        sound = bank.sound_of(utterances[rng.integers(len(utterances))], pcm)
        sound = np.pad(sound, (int(rng.integers(100, 20_000)), 40_000))
        if rng.random() < 0.3:
            sound = on_the_way(sound, rng) + noise(len(sound), rng, level_dbfs=float(rng.uniform(-75, -50)))
        return self._encoded(sound.astype(np.float32))


def _own_sounds(folder: Path, voice: str) -> list[np.ndarray]:
    """float32 [S] of everything the model's voice says, from silence to silence."""
    utterances, pcm = bank.load(folder, voice)
    return [np.pad(bank.sound_of(u, pcm), (LEAD_FRAMES * FRAME_SAMPLES, 20 * FRAME_SAMPLES)) for u in utterances]


class Distance(nn.Module):
    """How far two sounds are apart at four resolutions."""

    def __init__(self) -> None:
        super().__init__()
        for size in SIZES:
            self.register_buffer(
                f"mel_{size}", mel_filters(size // 2 + 1, {2048: 80, 1024: 80, 512: 64, 256: 32}[size])
            )

    def forward(self, made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Scalar distance of float32 [B, S] and [B, S]."""
        total = torch.zeros(())
        for size in SIZES:
            a, b = _magnitude(made, size), _magnitude(real, size)
            logs = (torch.log(a + 1e-3) - torch.log(b + 1e-3)).abs().mean()
            convergence = torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b).clamp(min=1e-3)
            filters = getattr(self, f"mel_{size}")
            mels = (torch.log(filters @ a + 1e-2) - torch.log(filters @ b + 1e-2)).abs().mean()
            total = total + logs + convergence + 2 * mels
        return total / len(SIZES)


def _spectrum(sound: torch.Tensor, size: int) -> torch.Tensor:
    return torch.stft(sound, size, size // 4, window=torch.hann_window(size), return_complex=True)


def _magnitude(sound: torch.Tensor, size: int) -> torch.Tensor:
    found = _spectrum(sound, size)
    return (found.real**2 + found.imag**2 + 1e-9).sqrt()


class Discriminator(nn.Module):
    """Judges complex spectrograms at three resolutions, patch by patch."""

    def __init__(self, sizes: tuple[int, ...] = (1024, 512, 256), width: int = 16) -> None:
        super().__init__()
        self.sizes = sizes
        self.towers = nn.ModuleList(_Tower(width) for _ in sizes)

    def forward(self, sound: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Scores and the hidden layers, over all resolutions."""
        scores, hidden = [], []
        for size, tower in zip(self.sizes, self.towers, strict=True):
            found = _spectrum(sound, size) / math.sqrt(size)
            x = torch.stack([found.real, found.imag], 1).transpose(2, 3)
            score, layers = tower(x)
            scores.append(score)
            hidden += layers
        return scores, hidden


class _Tower(nn.Module):
    """One resolution of the discriminator."""

    def __init__(self, width: int) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        layers = [norm(nn.Conv2d(2, width, (3, 9), padding=(1, 4)))]
        layers += [norm(nn.Conv2d(width, width, (3, 9), stride=(1, 2), padding=(1, 4))) for _ in range(3)]
        self.layers = nn.ModuleList(layers)
        self.score = norm(nn.Conv2d(width, 1, (3, 3), padding=(1, 1)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        hidden = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            hidden.append(x)
        return self.score(x), hidden


class Trainer:
    """Everything that is saved and resumed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.out: Path = arguments.out
        self.mimi = codec.load_weights(codec.build(), arguments.codec)
        trained = ("decoder", "upsample", "quantizer.rvq_first.output_proj", "quantizer.rvq_rest.output_proj")
        self.parameters = [p for n, p in self.mimi.named_parameters() if n.startswith(trained)]
        self.distance, self.judge = Distance(), Discriminator()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, betas=(0.8, 0.98), weight_decay=0.0)
        self.judge_optimizer = torch.optim.AdamW(self.judge.parameters(), lr=4e-4, betas=(0.8, 0.98))
        self.step, self.elapsed_s = 0, 0.0

    def save(self) -> None:
        """Write the state, whole or not at all."""
        parts = ("mimi", "judge", "optimizer", "judge_optimizer")
        state = {name: getattr(self, name).state_dict() for name in parts}
        torch.save(state | {"step": self.step, "elapsed_s": self.elapsed_s}, self.out / "decoder.tmp")
        (self.out / "decoder.tmp").rename(self.out / "decoder.pt")

    def resume(self) -> bool:
        """Continue from the last saved state; says whether there was one."""
        if not (self.out / "decoder.pt").exists():
            return False
        state = torch.load(self.out / "decoder.pt", weights_only=True)
        for name in ("mimi", "judge", "optimizer", "judge_optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        return True

    def start_from(self, finished: Path) -> None:
        """The weights of another run, with optimisers and a schedule of its own."""
        state = torch.load(finished, weights_only=True)
        self.mimi.load_state_dict(state["mimi"])
        self.judge.load_state_dict(state["judge"])

    def sound(self, codes: torch.Tensor) -> torch.Tensor:
        """float32 [B, S] of codes int64 [B, K, T], with gradients into the decoder alone."""
        quantizer = self.mimi.quantizer
        with torch.no_grad():
            semantic = _looked_up(quantizer.rvq_first, codes[:, :1])
            acoustic = _looked_up(quantizer.rvq_rest, codes[:, 1:])
        return codec.synthesise(self.mimi, semantic, acoustic)

    def update(self, codes: torch.Tensor, real: torch.Tensor, *, adversarial: bool) -> dict[str, float]:
        """One step on a batch; gives the loss terms."""
        with mixed():
            made = self.sound(codes)
        made = made.float()[:, : real.shape[1]]
        figures = {}
        apart = self.distance(made, real)
        loss = apart
        if adversarial:
            rows = torch.randperm(len(made))[:JUDGED_ROWS]
            start = int(torch.randint(made.shape[1] - JUDGED_SAMPLES, ()))
            judged = slice(start, start + JUDGED_SAMPLES)
            figures["judge"] = self._train_judge(made[rows, judged].detach(), real[rows, judged])
            fooled, alike = self._against_judge(made[rows, judged], real[rows, judged])
            loss = loss + 0.15 * fooled + 0.6 * alike
            figures |= {"fooled": float(fooled.detach()), "alike": float(alike.detach())}
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 5.0)
        self.optimizer.step()
        return figures | {"distance": float(apart.detach())}

    def _train_judge(self, made: torch.Tensor, real: torch.Tensor) -> float:
        with mixed():
            real_scores, _ = self.judge(real)
            made_scores, _ = self.judge(made)
        margins = [F.relu(1 - s.float()).mean() for s in real_scores] + [
            F.relu(1 + s.float()).mean() for s in made_scores
        ]
        loss = torch.stack(margins).sum()
        self.judge_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.judge_optimizer.step()
        return float(loss.detach())

    def _against_judge(self, made: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.judge.requires_grad_(False)
        with mixed():
            scores, hidden = self.judge(made)
            with torch.no_grad():
                _, wanted = self.judge(real)
        self.judge.requires_grad_(True)
        fooled = torch.stack([(-s.float()).mean() for s in scores]).mean()
        return fooled, torch.stack([_apart(a, b) for a, b in zip(hidden, wanted, strict=True)]).mean()


def _apart(made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    return (made.float() - real.float()).abs().mean() / real.float().abs().mean().clamp(min=1e-3)


def _looked_up(branch: Any, codes_BKT: torch.Tensor) -> torch.Tensor:
    return torch.stack([layer.decode(codes_BKT[:, k]) for k, layer in enumerate(branch.vq.layers)]).sum(0)


def train(arguments: argparse.Namespace) -> None:
    """Run until the training time is spent."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(arguments)
    resumed = trainer.resume()
    pairs = Pairs(arguments.bank, trainer.mimi, seed=trainer.step, at_least=arguments.at_least, own=arguments.own)
    if not resumed and arguments.start is not None:
        trainer.start_from(arguments.start)
    elif not resumed:
        codec.scale_to_unit(trainer.mimi, pairs.batch()[1], decoder=True)
        with torch.no_grad():  # the last convolution should start at the loudness of speech
            trainer.mimi.decoder.model[-1].conv.conv.weight.mul_(0.05)
    pace = Pace(arguments.minutes, arguments.save_s, spent_s=trainer.elapsed_s)
    while pace.done < 1:
        _rates(trainer, pace.done)
        figures = trainer.update(*pairs.batch(), adversarial=pace.spent_s / 60 > arguments.adversarial_from)
        due = pace.tick()
        trainer.step, trainer.elapsed_s = trainer.step + 1, pace.spent_s
        if trainer.step % arguments.report_steps == 0 or pace.done >= 1:
            row = {"step": trainer.step, "minutes": pace.spent_s / 60} | figures
            with (trainer.out / "decoder.jsonl").open("a") as log:
                log.write(json.dumps({k: round(v, 4) for k, v in row.items()}) + "\n")
        if due:
            trainer.save()
    trainer.save()


def _rates(trainer: Trainer, done: float) -> None:
    shape = min(1.0, (trainer.step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1.5e-3 * shape


def main() -> None:
    """Train the decoder on frozen tokens."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--codec", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    add_arguments(parser, minutes=60.0)
    parser.add_argument("--own", default=voices.MODEL_VOICE, help="whose voice the model has")
    parser.add_argument("--at-least", type=int, default=20, help="utterances below which a voice is left out")
    parser.add_argument("--start", type=Path, help="the state of a finished decoder to go on from, in a first run")
    parser.add_argument("--adversarial-from", type=float, default=math.inf)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
