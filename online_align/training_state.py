"""Where a training pass stands, in one file: adapter, the optimiser's moments, the step. Whole or not there.

A pass that was killed goes on from the last file and ends with the same numbers as one that was not. It knows no pairs.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from online_align.policy import Policy
from online_align.workers import Workers, put, whole
from server.durable import write_durably

__all__ = ["Standing", "restore", "save"]

_NOTE = "standing"
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How far a pass has come."""

    plan: str
    """Which plan it follows: a file of another plan is not gone on from."""
    step: int
    """Steps made."""
    figures: dict[str, float] = {}
    """Sums over the steps made, for the round's report."""


def save(path: Path, policy: Policy, optimiser: torch.optim.Optimizer, standing: Standing, workers: Workers) -> None:
    """Write the file. With several processes all must call it; the first one writes."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in policy.learned().items():
        tensors[name] = whole(parameter.detach()).contiguous()
        moments = optimiser.state.get(parameter, {})
        for moment in _MOMENTS:
            if moment in moments:
                tensors[f"{moment}:{name}"] = whole(moments[moment]).contiguous()
    if workers.first:
        note = {_NOTE: msgspec.json.encode(standing).decode()}
        write_durably(path, lambda place: save_file(tensors, place, metadata=note))


def restore(path: Path, policy: Policy, optimiser: torch.optim.Optimizer, *, plan: str) -> Standing | None:
    """Go on from the file, where there is one of this plan; a file that cannot be read counts as none."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            standing = msgspec.json.decode((file.metadata() or {}).get(_NOTE, "null"), type=Standing | None)
            if standing is None or standing.plan != plan:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (OSError, safetensors.SafetensorError, msgspec.DecodeError, json.JSONDecodeError):
        return None
    for name, parameter in policy.learned().items():
        put(parameter, tensors[name])
        if f"{_MOMENTS[0]}:{name}" in tensors:
            state: dict[str, Any] = {"step": torch.tensor(float(standing.step))}
            for moment in _MOMENTS:
                state[moment] = torch.zeros_like(parameter)
                put(state[moment], tensors[f"{moment}:{name}"])
            optimiser.state[parameter] = state
    return standing
