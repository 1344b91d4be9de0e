"""Stage 1 of the codec: an encoder whose tokens can be listened to.

Trains encoder, encoder transformer and both branch projections, without the decoder. The semantic branch
names the phonemes of the frame (two of them) whatever the voice, room or noise; both branches together tell the
clean frame's spectrum. In the last part the semantic codebook is learned with straight-through gradients.
Ends by fitting the acoustic codebooks with k-means: from then on the tokens are final.
`python -m recipes.mini.train_encoder --bank DIR --out DIR --minutes M` resumes where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from recipes.mini import bank, codec, voices
from recipes.mini.align import PHONES
from recipes.mini.crops import LABEL_TIMES_S, Batch, Crops, prefetched
from recipes.mini.pace import Pace, add_arguments
from recipes.mini.precision import mixed
from recipes.mini.spectra import FrameSpectra
from recipes.mini.vq import StraightThrough, kmeans, residual_kmeans, write_codebook

FRAMES = 40
ROWS = 8
VQ_FROM = 0.62  # share of the time after which the semantic branch is quantised
BRANCH_NOISE = 0.3


class Heads(nn.Module):
    """What the branches must tell: phonemes from the semantic one, the spectrum from both."""

    def __init__(self, spectrum_size: int) -> None:
        super().__init__()
        self.phones = nn.Linear(codec.CODE_DIMENSION, len(LABEL_TIMES_S) * len(PHONES))
        self.spectrum = nn.Sequential(nn.Linear(codec.LATENT, 384), nn.GELU(), nn.Linear(384, spectrum_size))


@dataclass
class Losses:
    """Terms of one step, each a scalar."""

    phones: torch.Tensor
    spectrum: torch.Tensor
    size: torch.Tensor
    commitment: torch.Tensor
    twins: torch.Tensor  # distance between two hearings of the same sound, in the semantic branch
    accuracy: float

    def total(self) -> torch.Tensor:
        """What is minimised."""
        return self.phones + self.spectrum + 0.01 * self.size + 0.25 * self.commitment + 0.5 * self.twins


def voice_weights(folder: Path, *, at_least: int) -> dict[str, float]:
    """Training voices with enough utterances so far, the model's own and the natural ones more often."""
    share = (
        {voices.MODEL_VOICE: 2.5} | dict.fromkeys(voices.KOKORO_USERS, 1.0) | dict.fromkeys(voices.CLASSIC_USERS, 0.7)
    )
    return {v: share[v] for v in bank.present(folder, tuple(share), at_least=at_least)}


class Trainer:
    """Everything that is saved and resumed."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.mimi = codec.build().train()
        self.spectra = FrameSpectra()
        self.heads = Heads(self.spectra.size)
        self.quantiser: StraightThrough | None = None
        encoder = [p for n, p in self.mimi.named_parameters() if not n.startswith(("decoder", "upsample"))]
        self.parameters = [*encoder, *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
        self.step, self.elapsed_s = 0, 0.0

    def save(self) -> None:
        """Write the state, whole or not at all."""
        state = {
            "mimi": self.mimi.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "centroids": self.quantiser.centroids if self.quantiser else None,
            "step": self.step,
            "elapsed_s": self.elapsed_s,
        }
        torch.save(state, self.out / "encoder.tmp")
        (self.out / "encoder.tmp").rename(self.out / "encoder.pt")

    def resume(self) -> None:
        """Continue from the last saved state, if there is one."""
        if not (self.out / "encoder.pt").exists():
            return
        state = torch.load(self.out / "encoder.pt", weights_only=True)
        self.mimi.load_state_dict(state["mimi"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        if state["centroids"] is not None:
            self.quantiser = StraightThrough(state["centroids"])

    def losses(self, heard: torch.Tensor, clean: torch.Tensor, phones: torch.Tensor) -> Losses:
        """All terms for sounds float32 [B, S] and phonemes [B, T, L]; with a codebook the second half is twins."""
        semantic, acoustic = (b.float() for b in codec.branches(self.mimi, heard))
        size = semantic.pow(2).mean() + acoustic.pow(2).mean()
        commitment = twins = torch.zeros(())
        if self.quantiser is not None:
            first, again = semantic.chunk(2)
            twins = (first - again).pow(2).mean()
            semantic, _, commitment = self.quantiser(semantic)
        else:
            semantic = semantic + BRANCH_NOISE * torch.randn_like(semantic)
        acoustic = acoustic + BRANCH_NOISE * torch.randn_like(acoustic)
        logits = self.heads.phones(semantic.transpose(1, 2)).view(*phones.shape, len(PHONES))
        named = F.cross_entropy(logits.flatten(0, 2), phones.flatten(), label_smoothing=0.05)
        voiced = phones != 0
        accuracy = float((logits.argmax(-1) == phones)[voiced].float().mean())
        told = self.heads.spectrum(self._mixed(semantic, acoustic))
        spectrum = (told - self.spectra(clean)).abs().mean()
        return Losses(named, spectrum, size, commitment, twins, accuracy)

    def _mixed(self, semantic: torch.Tensor, acoustic: torch.Tensor) -> torch.Tensor:
        quantizer = self.mimi.quantizer
        return (quantizer.rvq_first.output_proj(semantic) + quantizer.rvq_rest.output_proj(acoustic)).transpose(1, 2)

    @torch.no_grad()
    def semantic_points(self, crops: Crops, batches: int) -> torch.Tensor:
        """Semantic branch vectors float32 [N, D] of fresh crops."""
        found = [codec.branches(self.mimi, torch.from_numpy(crops.batch(ROWS).heard))[0] for _ in range(batches)]
        return torch.cat(found).transpose(1, 2).reshape(-1, codec.CODE_DIMENSION)

    def probe(self, crops: Crops) -> dict[str, float]:
        """Phonemes named and spectrum error on unheard voices; first tokens that a shift, noise or level changes."""
        self.mimi.eval()
        if self.quantiser:
            self.quantiser.eval()
        with torch.no_grad():
            batch = crops.batch(16)
            heard, phones = torch.from_numpy(batch.heard), torch.from_numpy(batch.phones)
            found = self.losses(heard, heard, phones)
            row = {"heldout_phones": found.accuracy, "heldout_spectrum": float(found.spectrum)}
            if self.quantiser:
                row |= self._stability(heard, phones)
        self.mimi.train()
        if self.quantiser:
            self.quantiser.train()
        return row

    def _stability(self, heard: torch.Tensor, phones: torch.Tensor) -> dict[str, float]:
        quantiser = self.quantiser
        assert quantiser is not None
        voiced = (phones != 0).all(-1)[:, 2:]

        def codes(sound: torch.Tensor) -> torch.Tensor:
            return quantiser(codec.branches(self.mimi, sound)[0])[1][:, 2:]

        base = codes(heard)
        level = heard.pow(2).mean(1, keepdim=True).sqrt() * 0.1
        noisy = codes(heard + level * torch.randn_like(heard))
        shifted = codes(F.pad(heard, (160, 0))[:, :-160])
        quiet = codes(heard * 0.5)
        changed = {"noise": noisy, "shift": shifted, "quiet": quiet}
        return {f"changed_by_{k}": float((v != base)[voiced].float().mean()) for k, v in changed.items()}


def train(arguments: argparse.Namespace) -> None:
    """Run until the training time is spent, then fit the codebooks."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(arguments.out)
    trainer.resume()
    pace, loaded_s = Pace(arguments.minutes, arguments.save_s, spent_s=trainer.elapsed_s), time.monotonic()
    crops, batches = _crops(arguments, trainer)
    if trainer.step == 0:
        codec.scale_to_unit(trainer.mimi, torch.from_numpy(crops.batch(16).heard))
    unheard = bank.present(arguments.bank, voices.HELDOUT)
    held = Crops(arguments.bank, dict.fromkeys(unheard, 1.0), frames=FRAMES, seed=9, augment=False)
    while pace.done < 1 or trainer.quantiser is None:  # where a step takes long, none may have come after VQ_FROM
        if pace.done > VQ_FROM and trainer.quantiser is None:
            points = trainer.semantic_points(crops, int(arguments.fit_batches * 0.4))
            trainer.quantiser = StraightThrough(kmeans(points, codec.BINS))
            loaded_s = -math.inf
        if time.monotonic() - loaded_s > 240:  # the bank may still be growing
            (crops, batches), loaded_s = _crops(arguments, trainer), time.monotonic()
        found = _step(trainer, next(batches), pace.done)
        due = pace.tick()
        trainer.step, trainer.elapsed_s = trainer.step + 1, pace.spent_s
        if trainer.step % arguments.report_steps == 0 or pace.done >= 1:
            _report(trainer, found, held)
        if due:
            trainer.save()
    trainer.save()
    finish(trainer, crops, arguments.fit_batches)


def _crops(arguments: argparse.Namespace, trainer: Trainer) -> tuple[Crops, Iterator[Batch]]:
    """Fresh crops; twins only once there is a codebook: before, they hold the branch back and it names less."""
    weights = voice_weights(arguments.bank, at_least=arguments.at_least)
    crops = Crops(arguments.bank, weights, frames=FRAMES, seed=trainer.step)
    return crops, prefetched(crops, ROWS, twins=trainer.quantiser is not None)


def _step(trainer: Trainer, batch: Batch, done: float) -> Losses:
    rate = 1.5e-3 * min(1.0, (trainer.step + 1) / 200) * (0.04 + 0.96 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
    for group in trainer.optimizer.param_groups:
        group["lr"] = rate
    heard, clean, phones = (torch.from_numpy(x) for x in (batch.heard, batch.clean, batch.phones))
    with mixed():
        found = trainer.losses(heard, clean, phones)
    trainer.optimizer.zero_grad(set_to_none=True)
    found.total().backward()
    torch.nn.utils.clip_grad_norm_(trainer.parameters, 1.0)
    trainer.optimizer.step()
    return found


def _report(trainer: Trainer, found: Losses, held: Crops) -> None:
    terms = ("phones", "accuracy", "spectrum", "size", "commitment", "twins")
    row = {"step": trainer.step, "minutes": trainer.elapsed_s / 60}
    row |= {name: float(torch.as_tensor(getattr(found, name)).detach()) for name in terms} | trainer.probe(held)
    with (trainer.out / "encoder.jsonl").open("a") as log:
        log.write(json.dumps({k: round(v, 4) for k, v in row.items()}) + "\n")


@torch.no_grad()
def finish(trainer: Trainer, crops: Crops, batches: int) -> None:
    """Fit the acoustic codebooks and write `codec.pt`, whose tokens never change afterwards."""
    if trainer.quantiser is None:  # a run so short that its last step came before the codebook
        trainer.quantiser = StraightThrough(kmeans(trainer.semantic_points(crops, batches), codec.BINS))
    trainer.mimi.eval()
    _round_to_stored_precision(trainer.mimi)
    points = []
    for _ in range(batches):
        heard = torch.from_numpy(crops.batch(ROWS).heard)
        points.append(codec.branches(trainer.mimi, heard)[1].transpose(1, 2).reshape(-1, codec.CODE_DIMENSION))
    books, left = residual_kmeans(torch.cat(points), codec.N_Q - 1, codec.BINS)
    quantizer = trainer.mimi.quantizer
    write_codebook(quantizer.rvq_first.vq.layers[0], trainer.quantiser.centroids)
    for layer, book in zip(quantizer.rvq_rest.vq.layers, books, strict=True):
        write_codebook(layer, book)
    _round_to_stored_precision(trainer.mimi)
    torch.save(trainer.mimi.state_dict(), trainer.out / "codec.pt")
    (trainer.out / "codebooks.json").write_text(json.dumps({"variance_left": left}))


def _round_to_stored_precision(mimi: nn.Module) -> None:
    """The checkpoint stores fp16: tokens must come from the very weights that ship."""
    for value in mimi.state_dict().values():
        value.copy_(value.half().float())


def main() -> None:
    """Train the encoder and freeze the tokens."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    add_arguments(parser, minutes=25.0)
    parser.add_argument("--fit-batches", type=int, default=150, help="of crops, for the acoustic codebooks")
    parser.add_argument("--at-least", type=int, default=20, help="utterances below which a voice is left out")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    np.random.seed(0)
    train(arguments)


if __name__ == "__main__":
    main()
