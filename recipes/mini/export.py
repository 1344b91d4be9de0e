"""Write a checkpoint folder in the upstream layout from the training states.

`python -m recipes.mini.export --decoder FILE --lm FILE --tokenizer FILE --out DIR`: codec as fp16, language model as
bf16, both safetensors; the stock `CheckpointInfo.from_hf_repo(..., config_path=...)` loads it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from recipes.mini import codec, lm

NAMES = {
    "moshi_name": "model.safetensors",
    "mimi_name": "mimi.safetensors",
    "mimi_config_name": "mimi_config.json",
    "tokenizer_name": "tokenizer.model",
    "model_type": "moshi",
    "lm_gen_config": {"temp": 0.0, "temp_text": 0.0, "top_k": 250, "top_k_text": 25},  # greedy unless a caller asks
}
_LAST_BIAS = "decoder.model.14.conv.conv.bias"


def export(decoder: Path, language_model: Path, tokenizer: Path, out: Path) -> None:
    """Write the folder; either state may be a fresh training state of the matching script."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(lm.CONFIG | NAMES, indent=2) + "\n")
    (out / "mimi_config.json").write_text(json.dumps(codec.CONFIG, indent=2) + "\n")
    _save(_without_offset(_state(decoder, "mimi")), torch.float16, out / "mimi.safetensors")
    _save(_state(language_model, "lm"), torch.bfloat16, out / "model.safetensors")
    shutil.copyfile(tokenizer, out / "tokenizer.model")


def _state(path: Path, key: str) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True, map_location="cpu")
    return state.get(key, state)


@torch.no_grad()
def _without_offset(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The decoder's silence made zero: its losses look at spectra alone, so nothing keeps it from a constant."""
    mimi = codec.build()
    mimi.load_state_dict(state)
    silence = mimi.decode(mimi.encode(torch.zeros(1, 1, 4 * codec.SAMPLE_RATE)))
    bias = state[_LAST_BIAS]
    return state | {_LAST_BIAS: bias - silence[..., -codec.SAMPLE_RATE :].mean()}


def _save(state: dict[str, torch.Tensor], dtype: torch.dtype, path: Path) -> None:
    save_file({k: v.to(dtype).contiguous() for k, v in state.items()}, path)


def main() -> None:
    """Write the checkpoint folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    for name in ("decoder", "lm", "tokenizer", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    export(arguments.decoder, arguments.lm, arguments.tokenizer, arguments.out)


if __name__ == "__main__":
    main()
