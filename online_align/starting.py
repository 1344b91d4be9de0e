"""What a round starts from: the base model, or the adapter that is live on it. It trains nothing.

An adapter that learned from a deleted call is left behind: then the newest that was live before counts, or none.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from online_align.export import CONFIG
from online_align.policy import Policy
from online_align.round_plan import Round, RoundError
from server.engine.adapters import ADAPTER_WEIGHTS, file_sha256
from server.engine.checkpoint import Checkpoint, load_checkpoint
from server.journal.registry import AdapterRegistry, AdapterRow, AdapterState, folder_of

__all__ = ["Starting"]


class Starting:
    """One base model and its adapters."""

    def __init__(self, data_dir: Path, registry: AdapterRegistry, checkpoint: str, device: str) -> None:
        self._data_dir, self._registry = data_dir, registry
        self._name, self._device = checkpoint, torch.device(device)

    def load(self) -> Checkpoint:
        """Load the base model: float32 on a CPU, bfloat16 on a GPU. Raises `CheckpointError`."""
        dtype = torch.float32 if self._device.type == "cpu" else torch.bfloat16
        return load_checkpoint(self._name, device=self._device, dtype=dtype)

    def parent(self, base_sha256: str) -> str:
        """The live adapter, or the newest that was live before and may still be heard; empty for the base model."""
        live = self._registry.live()
        retired = [row for row in self._registry.list() if row.state is AdapterState.RETIRED]
        for row in [live, *sorted(retired, key=lambda each: -each.changed_at)]:
            if row is not None and not row.withdrawn and _is_of(row, base_sha256):
                return row.id
        return ""

    def policy(self, current: Round) -> tuple[Policy, dict[str, Any]]:
        """What the round trains, as it is before, and the base model's configuration.

        Raises `RoundError` when the base or the parent is not what it was, and `CheckpointError`.
        """
        settings, checkpoint = current.settings, self.load()
        if file_sha256(checkpoint.lm_path) != current.base_sha256:
            raise RoundError(
                got=f"round {current.number} of a model that is no longer {current.checkpoint}",
                expected=f"weights with SHA-256 {current.base_sha256}",
                remedy="give the learner that model, or remove the round's file to give its pairs up",
            )
        config = _json(checkpoint.lm_path.with_name(CONFIG))
        rank, scaling, parts = settings.rank, settings.scaling, None
        if current.parent:
            rank, scaling, parts = self._adapter(current.parent)
        policy = Policy(
            checkpoint, rank=rank, scaling=scaling, seed=settings.seed, checkpointing=settings.checkpointing,
            audio_weight=settings.audio_weight,
        )  # fmt: skip
        if parts is not None:
            policy.learn_from(parts)
        return policy, config

    def _adapter(self, adapter: str) -> tuple[int, float, dict[str, torch.Tensor]]:
        """Rank, scaling and weights of an adapter whose file is the one that was staged."""
        row = self._registry.get(adapter)
        folder = folder_of(self._data_dir, row)
        weights = folder / ADAPTER_WEIGHTS
        found = file_sha256(weights) if weights.is_file() else "nothing"
        if found != row.sha256:
            raise RoundError(
                got=f"adapter {adapter}, whose weights have SHA-256 {found}",
                expected=f"SHA-256 {row.sha256}, as when it was staged",
                remedy="put its folder back, or roll it back so that the next round starts from another",
            )
        config = _json(folder / CONFIG)
        return int(config["lora_rank"]), float(config["lora_scaling"]), load_file(weights)


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _is_of(row: AdapterRow, base_sha256: str) -> bool:
    """Whether an adapter was learned on these weights; its manifest says so."""
    try:
        told: dict[str, Any] = json.loads(row.manifest)
    except ValueError:
        return False
    return told.get("base_sha256") == base_sha256
