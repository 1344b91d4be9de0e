"""The `moshi` package used as its own server uses it, and sound to give to it: the reference for the engine."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from moshi.models import LMGen, loaders
from moshi.utils.compile import no_compile
from torch import Tensor

NOTHING = -2


def checkpoint_info(folder: Path) -> Any:
    """Upstream's description of a local folder, with no look at the network."""
    names = json.loads((folder / "config.json").read_text())
    return loaders.CheckpointInfo.from_hf_repo(
        str(folder),
        moshi_weights=folder / names["moshi_name"],
        mimi_weights=folder / names["mimi_name"],
        tokenizer=folder / names["tokenizer_name"],
        config_path=folder / "config.json",
        mimi_config_path=folder / names["mimi_config_name"],
    )


def sound(frames: int, frame_size: int, seed: int) -> Tensor:
    """Bursts of noisy tones with pauses, float32 `[frames, frame_size]` within -1 and 1."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(frames * frame_size, dtype=torch.float32)
    pitch = 0.02 + 0.2 * torch.rand(frames, generator=generator).repeat_interleave(frame_size)
    loud = (torch.rand(frames, generator=generator) * 1.4 - 0.4).clamp(min=0).repeat_interleave(frame_size)
    noise = torch.randn(len(time), generator=generator) * 0.1
    return ((torch.sin(time * pitch) * 0.3 + noise) * loud).clamp(-1, 1).reshape(frames, frame_size)


class Call(NamedTuple):
    """One whole conversation, frame by frame; `NOTHING`, zeros and NaN where nothing was out yet."""

    tokens: Tensor  # int64 [T, K]
    pcm: Tensor  # float32 [T, frame_size]
    logprob: Tensor  # float32 [T]


class Stock:
    """`MimiModel` and greedy `LMGen` of one folder, in float32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        info = checkpoint_info(folder)
        self.mimi = info.get_mimi()
        self.lm = info.get_moshi(dtype=torch.float32)

    def converse(self, pcm: Tensor) -> Call:
        """The loop of `moshi.server`, for `pcm` float32 `[T, frame_size]`; log-probabilities stay NaN.

        `LMGen` gives the model's side only. The user's frame that belongs to it was heard one step after it
        was made, because the model never hears what the user says in the frame that it is about to speak.
        """
        heard: list[Tensor] = []
        lag = max(self.lm.delays) - 1
        tokens = torch.full((len(pcm), self.lm.num_codebooks), NOTHING)
        spoken = torch.zeros_like(pcm)
        lm_gen = LMGen(self.lm, use_sampling=False)
        with torch.no_grad(), no_compile(), self.mimi.streaming(1), lm_gen.streaming(1):
            for frame, chunk in enumerate(pcm):
                codes = self.mimi.encode(chunk[None, None])
                if frame == 0:
                    self.mimi.reset_streaming()
                heard.append(codes[0, : self.lm.n_q - self.lm.dep_q, 0])
                out = lm_gen.step(codes)
                if out is None:
                    continue
                spoken[frame] = self.mimi.decode(out[:, 1:])[0, 0]
                tokens[frame] = torch.cat([out[0, :, 0], heard[frame - lag]])
        return Call(tokens, spoken, torch.full((len(pcm),), torch.nan))

    def text_logprob(self, columns: Tensor) -> Tensor:
        """Teacher-forced log-probability of each text token of `columns`, int64 `[T, K]` -> float32 `[T]`."""
        with torch.no_grad(), no_compile():
            logits = self.lm.forward(columns.T[None]).text_logits[0, 0]
        return torch.log_softmax(logits, dim=-1).gather(1, columns[:, :1])[:, 0]
