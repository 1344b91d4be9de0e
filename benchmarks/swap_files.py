"""Distinct adapters in a data folder, as a learner would leave them and a gate pass them: for `benchmarks.swap`."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from benchmarks.servers import checkpoint_folder
from server.engine import Engine
from server.engine.adapters import ADAPTER_WEIGHTS, BASE_KEY, Widths, file_sha256
from server.journal.database import connect
from server.journal.registry import AdapterRegistry, AdapterRow, VerdictRow, VerdictStage

__all__ = ["stocked", "write_adapter"]

_LEARNED: Final = "transformer."
"""A loss on the text stream changes the temporal transformer; elsewhere B is zero."""
_SIZE: Final = 1e-3
"""Of B: small enough that the model goes on answering."""


@contextmanager
def stocked(
    data_dir: Path, checkpoint: str, names: list[str], *, rank: int, first_seed: int = 0
) -> Iterator[AdapterRegistry]:
    """Write an adapter for every name and enter it as staged, with a gate's verdict. Gives the registry.

    From `first_seed` on each has numbers of its own."""
    engine = Engine.load(checkpoint, slots=1, device="cpu", work="native")
    layers, base = engine.adapter_layers, engine.base_sha256
    config = json.loads((checkpoint_folder(checkpoint) / "config.json").read_text())
    name_of_base = checkpoint_folder(checkpoint).name
    database = connect(data_dir)
    registry = AdapterRegistry(database)
    for seed, name in enumerate(names, first_seed):
        folder = data_dir / "adapters" / name
        sha256 = write_adapter(folder, layers, base, config, rank=rank, seed=seed)
        registry.add(AdapterRow(id=name, checkpoint=name_of_base, path=f"adapters/{name}", sha256=sha256))
        registry.add_verdict(
            VerdictRow(adapter_id=name, stage=VerdictStage.GATE, passed=True, reason="made for a measurement")
        )
    try:
        yield registry
    finally:
        database.dispose()


def write_adapter(
    folder: Path, layers: Mapping[str, Widths], base: str, config: Mapping[str, Any], *, rank: int, seed: int
) -> str:
    """Write one for a model with these `layers`, file `base` and `config`. Returns its SHA-256."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for layer, (width_in, width_out) in layers.items():
        size = _SIZE if layer.startswith(_LEARNED) else 0.0
        parts[f"{layer}.lora_A.weight"] = torch.randn(rank, width_in, generator=generator) / width_in**0.5
        parts[f"{layer}.lora_B.weight"] = size * torch.randn(width_out, rank, generator=generator)
    save_file(parts, folder / ADAPTER_WEIGHTS, metadata={BASE_KEY: base})
    ours = {"lora": True, "lora_rank": rank, "lora_scaling": 2.0, "lora_name": ADAPTER_WEIGHTS}
    (folder / "config.json").write_text(json.dumps({**config, **ours}))
    return file_sha256(folder / ADAPTER_WEIGHTS)
