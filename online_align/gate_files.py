"""Whether an adapter's files are what they must be, and how large the change is that they make. Nothing of it is run.

What a folder may hold, how large a file may be, the loader's own refusals (`server.engine.adapters`), and how large
each layer's change is beside the layer. It knows no behaviour.

Legend: R rank, I and O widths of a linear layer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from torch import nn

from kernels.cpu import HIGHEST_RANK, LowRank
from online_align.verdicts import Check, Outcome
from server.engine.adapters import ADAPTER_WEIGHTS, AdapterFile, Widths, read_adapter
from server.errors import AdapterError

__all__ = ["FileLimits", "check_files", "check_norms", "extra_work", "layers_of", "norms"]

_BYTES: Final = 4
_ALLOWED: Final = frozenset({ADAPTER_WEIGHTS, "config.json", "manifest.json"})
_SMALL_BYTES: Final = 1 << 20


class FileLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How large an adapter may be."""

    rank: int = HIGHEST_RANK
    change: float = 0.5
    """Of a layer: Frobenius norm of its change over that of its weight."""


def layers_of(lm: Any) -> dict[str, Widths]:
    """Every linear layer of the model, which an adapter must know."""
    return {
        name: Widths(module.in_features, module.out_features)
        for name, module in lm.named_modules()
        if isinstance(module, nn.Linear)
    }


def check_files(
    folder: Path, layers: Mapping[str, Widths], *, base_sha256: str, sha256: str | None, limits: FileLimits
) -> tuple[Check, AdapterFile | None]:
    """Look at the folder, then read it. The file is None when it was refused."""
    try:
        _check_folder(folder, layers, limits)
        file = read_adapter(folder, layers, base_sha256=base_sha256, max_rank=limits.rank, sha256=sha256)
    except AdapterError as problem:
        return Check(name="files", outcome=Outcome.FAILED, reason=f"Its files are refused: {problem}."), None
    reason = f"Its files are whole: rank {file.rank}, {len(file.parts)} layers, SHA-256 {file.sha256[:12]}."
    return Check(name="files", outcome=Outcome.PASSED, reason=reason), file


def _check_folder(folder: Path, layers: Mapping[str, Widths], limits: FileLimits) -> None:
    if not folder.is_dir():
        raise AdapterError(f"{folder.name}, no folder", expected="one with its files", remedy="copy it again")
    for path in folder.iterdir():
        if path.is_symlink() or not path.is_file() or path.name not in _ALLOWED:
            kind = "a link" if path.is_symlink() else "a file" if path.is_file() else "no plain file"
            raise AdapterError(
                f"{folder.name} with {path.name!r}, {kind}",
                expected=f"plain files {', '.join(sorted(_ALLOWED))} and nothing else",
                remedy="export it again",
            )
        most = _largest(layers, limits) if path.name == ADAPTER_WEIGHTS else _SMALL_BYTES
        if (size := path.stat().st_size) > most:
            raise AdapterError(
                f"{folder.name}, {path.name} of {size} bytes",
                expected=f"at most {most} bytes: float32 of rank {limits.rank} for every layer",
                remedy="train it with a lower rank",
            )


def _largest(layers: Mapping[str, Widths], limits: FileLimits) -> int:
    return _SMALL_BYTES + _BYTES * limits.rank * sum(map(sum, layers.values()))


def norms(lm: Any, file: AdapterFile | None) -> dict[str, float]:
    """Of each changed layer: Frobenius norm of its change over that of its weight."""
    modules = dict(lm.named_modules())
    parts = file.parts if file else {}
    scaling = file.scaling if file else 0.0
    return {
        name: scaling * _product_norm(part) / max(float(modules[name].weight.detach().float().norm()), 1e-12)
        for name, part in parts.items()
        if part.b.any()
    }


def _product_norm(part: LowRank) -> float:
    """Frobenius norm of `b a` without making it: the trace of `(a a') (b' b)`, in float64."""
    a, b = part.a.double(), part.b.double()
    return float(torch.sqrt(((a @ a.T) * (b.T @ b)).sum().clamp(min=0.0)))


def check_norms(found: Mapping[str, float], limits: FileLimits) -> Check:
    """Whether every layer stays nearer to itself than to something else."""
    if not found:
        reason = "It changes nothing: every layer's second half is zero."
        return Check(name="norms", outcome=Outcome.FAILED, reason=reason, value=0.0, limit="above 0")
    name, most = max(found.items(), key=lambda each: each[1])
    failed = not most <= limits.change
    says = f"the largest change is {most:.3g} of its layer, {name} (limit {limits.change:g})"
    return Check(
        name="norms",
        outcome=Outcome.FAILED if failed else Outcome.PASSED,
        reason=f"It replaces more than it adapts: {says}." if failed else f"{says[0].upper()}{says[1:]}.",
        value=most,
        limit=f"at most {limits.change:g}",
        figures={"layers": float(len(found))},
    )


def extra_work(layers: Mapping[str, Widths], file: AdapterFile) -> float:
    """Multiply-adds it adds to a frame, over those of the model's linear layers."""
    added = sum(file.rank * sum(layers[name]) for name, part in file.parts.items() if part.b.any())
    return added / sum(widths.width_in * widths.width_out for widths in layers.values())
