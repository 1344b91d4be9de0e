"""Writes an adapter as the engine and the stock `moshi` package read it, whole or not at all.

`lora.safetensors` has A and B of every linear layer of the model, float32, zeros where nothing was learned, and names
the model it was learned on and the hash of `config.json`; `config.json` is the model's own with `lora`, `lora_rank` and
`lora_scaling`; `manifest.json` says how it was made, for people, and goes into the journal when it is staged.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from online_align.figures import Figures
from online_align.policy import Policy
from online_align.settings import LearnerSettings
from online_align.workers import Workers, whole
from server.durable import sync_folder, write_durably
from server.engine.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_KEY, CONFIG_KEY, file_sha256

__all__ = ["MANIFEST", "Manifest", "adapter_tensors", "write_adapter"]

MANIFEST: Final = "manifest.json"
_LENGTH: Final = 8
"""Bytes before a safetensors header, which say how long it is."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """How an adapter was made. Names no call: lineage is in the journal, where deletion reaches it."""

    id: str
    made_at: float
    parent: str
    """The adapter that training started from; empty for the base model."""
    checkpoint: str
    base_sha256: str
    settings: LearnerSettings
    pairs: dict[str, int]
    """Pairs that it was trained on, by kind."""
    trained: Figures
    """Means over the pass."""
    heldout: Figures | None = None
    """On pairs that were held out, after the pass."""
    divergence: float | None = None
    """Mean KL of the text stream from the parent on held-out pairs, in nats."""
    version: int = 1


def write_adapter(
    folder: Path,
    policy: Policy,
    *,
    manifest: Manifest,
    config: Mapping[str, Any] | None = None,
    workers: Workers | None = None,
) -> str:
    """Write the folder, replacing one of the same name. Returns the SHA-256 of its weights.

    `config` is the base model's configuration. The folder appears under its name when everything in it is on disk.
    With several processes all must call it; the first one writes.
    """
    workers = workers or Workers()
    tensors = adapter_tensors(policy)
    if workers.first:
        _write(folder, tensors, policy, manifest, config or {})
    sha256: str = workers.tell(file_sha256(folder / ADAPTER_WEIGHTS) if workers.first else "")
    return sha256


def _write(
    folder: Path, tensors: dict[str, Tensor], policy: Policy, manifest: Manifest, config: Mapping[str, Any]
) -> None:
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    described = dict(config) | {
        "lora": True,
        "lora_rank": policy.rank,
        "lora_scaling": policy.scaling,
        "lora_name": ADAPTER_WEIGHTS,
    }
    text = json.dumps(described, indent=1).encode()
    note = {BASE_KEY: manifest.base_sha256, CONFIG_KEY: hashlib.sha256(text).hexdigest()}
    try:
        write_durably(temporary / ADAPTER_WEIGHTS, lambda place: _save(tensors, place, note))
        write_durably(temporary / ADAPTER_CONFIG, text)
        write_durably(temporary / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    except Exception:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
    sync_folder(folder.parent)


def _save(tensors: dict[str, Tensor], path: Path, note: dict[str, str]) -> None:
    """Write a safetensors file whose bytes are the same every time: the package orders what `note` says at random."""
    save_file(tensors, path, metadata=note)
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":")).encode()
        assert len(text) <= length, "the same words in another order"
        file.seek(_LENGTH)
        file.write(text.ljust(length))


def adapter_tensors(policy: Policy) -> dict[str, Tensor]:
    """A `[R, I]` and B `[O, R]` of every linear layer by upstream's names, float32 on the CPU. With several processes
    all must call it."""
    learned = {name: whole(part.detach()).cpu().contiguous() for name, part in policy.learned().items()}
    tensors = {}
    for name, (width_in, width_out) in policy.linear_widths.items():
        shapes = {"lora_A": (policy.rank, width_in), "lora_B": (width_out, policy.rank)}
        for half, shape in shapes.items():
            key = f"{name}.{half}.weight"
            tensors[key] = learned[key] if key in learned else torch.zeros(shape)
    return tensors
