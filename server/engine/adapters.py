"""Read an adapter's folder and refuse what is not whole, not finite or not made for this model.

The layout is the `moshi` package's own, which its loaders take: `lora.safetensors` with `NAME.lora_A.weight` `[R, I]`
and `NAME.lora_B.weight` `[O, R]` for every linear layer (zeros where nothing was learned), and `config.json` with
`lora`, `lora_rank` and `lora_scaling`. The weights' header names the model they were learned on: `base_sha256`, the
SHA-256 of its language model's file; and `config_sha256`, that of `config.json`: so the hash of the weights covers
both. This file owns what can be wrong with files; it knows nothing of rows.

Legend: R rank, I and O widths of a linear layer.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import torch

from kernels.cpu import LowRank
from server.engine.weights_file import LARGEST_HEADER, WeightsError, WeightsFile, read_weights
from server.errors import AdapterError

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "BASE_KEY",
    "CONFIG_KEY",
    "AdapterFile",
    "Widths",
    "file_sha256",
    "read_adapter",
]

ADAPTER_WEIGHTS: Final = "lora.safetensors"
ADAPTER_CONFIG: Final = "config.json"
BASE_KEY: Final = "base_sha256"
CONFIG_KEY: Final = "config_sha256"
_LARGEST_CONFIG: Final = 1 << 20
"""Bytes."""
_LARGEST_SCALING: Final = 1e4
"""Far beyond any that helps: 2 is usual. More would make infinity of finite numbers."""
_HALVES: Final = ("lora_A", "lora_B")
_WIDEST_NUMBER: Final = 8
"""Bytes of a float64."""


class Widths(NamedTuple):
    """Of a linear layer."""

    width_in: int
    width_out: int


class _Settings(NamedTuple):
    """What `config.json` says, and its hash."""

    rank: int
    scaling: float
    sha256: str


class AdapterFile(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """An adapter that was read and found good. `parts` are float32, one for every linear layer of the model."""

    folder: Path
    sha256: str
    rank: int
    scaling: float
    parts: dict[str, LowRank]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_adapter(
    folder: Path,
    layers: Mapping[str, Widths],
    *,
    base_sha256: str,
    max_rank: int,
    sha256: str | None = None,
    pause: Callable[[], None] = lambda: None,
) -> AdapterFile:
    """Read and check the adapter in `folder` for a model with these linear `layers`.

    `sha256` is that of the weights' file where the caller knows what it must be; it covers `config.json` too, save for
    adapters from before the header had its hash. `pause` is called between layers. Raises `AdapterError`.
    """
    settings = _settings(folder, max_rank)
    rank = settings.rank
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise _refused(folder, f"no {ADAPTER_WEIGHTS} in it", "the adapter's weights", "copy the whole folder")
    most = _most_bytes(layers, rank)
    _check_size(folder, path.stat().st_size, most, rank)
    try:
        file = read_weights(path, most=most, pause=pause)
    except (WeightsError, OSError) as problem:
        raise _refused(folder, f"weights that cannot be read ({problem})", "safetensors", "copy it again") from problem
    if sha256 is not None and file.sha256 != sha256:
        raise _refused(folder, f"weights with SHA-256 {file.sha256}", f"SHA-256 {sha256}", "copy it again")
    _check_base(folder, file.metadata, base_sha256)
    _check_config(folder, file.metadata, settings.sha256)
    _check_names(folder, set(file.tensors), layers)
    parts = {name: _part(folder, file, name, widths, rank, pause) for name, widths in layers.items()}
    return AdapterFile(folder=folder, sha256=file.sha256, rank=rank, scaling=settings.scaling, parts=parts)


def _settings(folder: Path, max_rank: int) -> _Settings:
    path = folder / ADAPTER_CONFIG
    try:
        content = _content(path)
        config = json.loads(content.decode())
    except (OSError, ValueError, RecursionError) as problem:
        raise _refused(
            folder, f"{ADAPTER_CONFIG} that cannot be read ({problem})", "a JSON object", "copy it again"
        ) from problem
    lora = config.get("lora") if isinstance(config, dict) else None
    if lora is not True:
        raise _refused(folder, f"{ADAPTER_CONFIG} with lora = {lora!r}", "lora = true", "name an adapter's folder")
    rank, scaling = config.get("lora_rank"), config.get("lora_scaling")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= max_rank:
        raise _refused(
            folder, f"lora_rank = {rank!r}", f"1 to {max_rank}", "train it with a lower rank, or make room for this one"
        )
    if not isinstance(scaling, int | float) or isinstance(scaling, bool) or not 0 < scaling <= _LARGEST_SCALING:
        raise _refused(
            folder,
            f"lora_scaling = {scaling!r}",
            f"a number above 0, at most {_LARGEST_SCALING:g}",
            "correct config.json",
        )
    return _Settings(rank, float(scaling), hashlib.sha256(content).hexdigest())


def _content(path: Path) -> bytes:
    """What a regular file says: a pipe would never end, and neither would a disk full of it."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        text = file.read(_LARGEST_CONFIG + 1)
    if len(text) > _LARGEST_CONFIG:
        raise ValueError(f"it has more than {_LARGEST_CONFIG} bytes")
    return text


def _check_base(folder: Path, metadata: Mapping[str, str], base_sha256: str) -> None:
    if (base := metadata.get(BASE_KEY)) != base_sha256:
        raise _refused(
            folder,
            f"an adapter of the model {base or 'without a name'}",
            f"one of {base_sha256}",
            "use the checkpoint that it was learned on",
        )


def _check_config(folder: Path, metadata: Mapping[str, str], sha256: str) -> None:
    written = metadata.get(CONFIG_KEY)
    if written is not None and written != sha256:
        raise _refused(
            folder,
            f"{ADAPTER_CONFIG} with SHA-256 {sha256}, which has been changed since the weights were written",
            f"SHA-256 {written}",
            "copy the whole folder again",
        )


def _check_names(folder: Path, found: set[str], layers: Mapping[str, Widths]) -> None:
    wanted = {f"{name}.{half}.weight" for name in layers for half in _HALVES}
    for names, what in ((sorted(wanted - found), "missing"), (sorted(found - wanted), "unknown")):
        if names:
            raise _refused(
                folder,
                f"{len(names)} {what} tensors, among them {names[0]}",
                "lora_A and lora_B of every linear layer, and nothing else",
                "fill in zeros where nothing was learned",
            )


def _most_bytes(layers: Mapping[str, Widths], rank: int) -> int:
    return LARGEST_HEADER + _WIDEST_NUMBER * rank * sum(sum(widths) for widths in layers.values())


def _check_size(folder: Path, size: int, most: int, rank: int) -> None:
    """Refuse a file that is far too big before any of it is read."""
    if size > most:
        raise _refused(folder, f"weights of {size} bytes", f"at most {most} of rank {rank}", "train it again")


def _part(folder: Path, file: WeightsFile, name: str, widths: Widths, rank: int, pause: Callable[[], None]) -> LowRank:
    pause()
    halves = []
    shapes = ((rank, widths.width_in), (widths.width_out, rank))
    for half, shape in zip(_HALVES, shapes, strict=True):
        stored = file.tensors[f"{name}.{half}.weight"]
        if tuple(stored.shape) != shape or not stored.is_floating_point():
            raise _refused(
                folder,
                f"{name}.{half} of {stored.dtype} {list(stored.shape)}",
                f"floats {list(shape)}",
                "train it again",
            )
        tensor = stored.float()  # first: what is finite as float64 need not be
        if not math.isfinite(float(tensor.sum())) and not torch.isfinite(tensor).all():
            raise _refused(folder, f"{name}.{half} with numbers that are not finite", "finite ones", "train it again")
        halves.append(tensor)
    return LowRank(*halves)


def _refused(folder: Path, got: str, expected: str, remedy: str) -> AdapterError:
    return AdapterError(f"{folder.name}, {got}", expected=expected, remedy=remedy)
