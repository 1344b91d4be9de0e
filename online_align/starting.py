"""What a round starts from: the base model, or the adapter that is live on it. It trains nothing.

An adapter that learned from a deleted call is left behind: then the newest that was live before counts, or none.
"""

import json
from pathlib import Path
from typing import Any

import torch

from kernels.cpu import HIGHEST_RANK
from online_align.bases import base_of
from online_align.gate_files import layers_of
from online_align.policy import Policy
from online_align.round_plan import OtherBaseError, Round, RoundError
from server.engine.adapters import ADAPTER_CONFIG, file_sha256, read_adapter
from server.engine.checkpoint import Checkpoint, load_checkpoint
from server.errors import AdapterError
from server.journal.registry import AdapterRegistry, AdapterState, folder_of

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
            if row is not None and not row.withdrawn and base_of(row).sha256 == base_sha256:
                return row.id
        return ""

    def policy(self, current: Round) -> tuple[Policy, dict[str, Any]]:
        """What the round trains, as it is before, and the base model's configuration.

        Raises `OtherBaseError`, `RoundError` when the parent is not what it was, and `CheckpointError`.
        """
        settings, checkpoint = current.settings, self.load()
        if file_sha256(checkpoint.lm_path) != current.base_sha256:
            raise OtherBaseError(
                got=f"round {current.number} of {current.checkpoint}, which is not the base model now",
                expected=f"weights with SHA-256 {current.base_sha256}",
                remedy="nothing: its pairs wait for the next round",
            )
        config = _json(checkpoint.lm_path.with_name(ADAPTER_CONFIG))
        rank, scaling, parts = settings.rank, settings.scaling, None
        if current.parent:
            rank, scaling, parts = self._adapter(current.parent, checkpoint.lm, current.base_sha256)
        policy = Policy(
            checkpoint, rank=rank, scaling=scaling, seed=settings.seed, checkpointing=settings.checkpointing,
            audio_weight=settings.audio_weight,
        )  # fmt: skip
        if parts is not None:
            policy.learn_from(parts)
        return policy, config

    def _adapter(self, adapter: str, lm: Any, base_sha256: str) -> tuple[int, float, dict[str, torch.Tensor]]:
        """Rank, scaling and tensors by upstream's names of an adapter whose files are those that were staged."""
        row = self._registry.get(adapter)
        folder, layers = folder_of(self._data_dir, row), layers_of(lm)
        try:
            file = read_adapter(folder, layers, base_sha256=base_sha256, max_rank=HIGHEST_RANK, sha256=row.sha256)
        except AdapterError as problem:
            raise RoundError(
                got=f"adapter {adapter}, whose files are not as when it was staged: {problem.got}",
                expected=problem.expected,
                remedy="put its folder back, or roll it back so that the next round starts from another",
            ) from problem
        halves = {
            f"{name}.lora_{half}.weight": tensor
            for name, part in file.parts.items()
            for half, tensor in (("A", part.a), ("B", part.b))
        }
        return file.rank, file.scaling, halves


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
