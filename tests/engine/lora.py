"""Adapters with random numbers, written as a learner would write them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from moshi.models.loaders import get_lora_moshi
from moshi.modules.lora import LoRALinear
from safetensors.torch import save_file
from torch import Tensor, nn

from server.engine.adapters import ADAPTER_WEIGHTS, BASE_KEY, CONFIG_KEY, file_sha256
from tests.engine.stock import Stock, checkpoint_info

RANK = 5
SCALING = 2.0


def linear_layers(folder: Path) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of every linear layer that upstream would adapt."""
    lm = checkpoint_info(folder).get_moshi(dtype=torch.float32)
    return {
        name: (module.in_features, module.out_features)
        for name, module in lm.named_modules()
        if isinstance(module, nn.Linear)
    }


def tensors(base: Path, *, seed: int, rank: int = RANK, only: str = "", size: float = 0.3) -> dict[str, Tensor]:
    """Random parts for layers whose name begins with `only`; the others have a zero B."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, (width_in, width_out) in linear_layers(base).items():
        a = torch.randn(rank, width_in, generator=generator) / width_in**0.5
        b = torch.randn(width_out, rank, generator=generator) * size
        made[f"{name}.lora_A.weight"] = a
        made[f"{name}.lora_B.weight"] = b if name.startswith(only) else torch.zeros_like(b)
    return made


def write_adapter(folder: Path, base: Path, parts: dict[str, Tensor], *, sealed: bool = True, **settings: Any) -> Path:
    """Write a folder as the stock loaders take it. `settings` replaces keys of config.json, or `base_sha256`.

    One that is not `sealed` is from before the weights' header had the hash of config.json.
    """
    folder.mkdir(parents=True)
    base_sha256 = settings.pop(BASE_KEY, file_sha256(base / "model.safetensors"))
    rank = next(iter(parts.values())).shape[0]
    config = json.loads((base / "config.json").read_text())
    config |= {"lora": True, "lora_rank": rank, "lora_scaling": SCALING, "lora_name": ADAPTER_WEIGHTS} | settings
    text = json.dumps(config).encode()
    (folder / "config.json").write_bytes(text)
    seal = {CONFIG_KEY: hashlib.sha256(text).hexdigest()} if sealed else {}
    save_file(parts, folder / ADAPTER_WEIGHTS, metadata={BASE_KEY: base_sha256} | seal)
    return folder


def stock_with(base: Path, adapter: Path) -> Stock:
    """Upstream's model with an unmerged adapter, in float32."""
    stock = Stock(base)
    stock.lm = get_lora_moshi(
        stock.lm,
        lora_weights=adapter / ADAPTER_WEIGHTS,
        lora_rank=json.loads((adapter / "config.json").read_text())["lora_rank"],
        lora_scaling=SCALING,
        dtype=torch.float32,
        fuse_lora=False,
    )
    stock.lm.eval()
    assert any(isinstance(module, LoRALinear) for module in stock.lm.modules())
    return stock
