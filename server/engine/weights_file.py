"""A safetensors file, read once into memory and checked there: what was verified is what is used.

The package's own reader maps the file, so somebody who writes to it afterwards changes what was verified before; and it
copies tensors with the interpreter's lock held. Here the bytes are read and hashed without it, piece by piece, and
tensors are views of those bytes. This file knows the format (8 bytes of length, a JSON header, the data), and
nothing of what the tensors are for.
"""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import torch
from torch import Tensor

__all__ = ["LARGEST_HEADER", "WeightsError", "WeightsFile", "read_weights"]

LARGEST_HEADER: Final = 1 << 20
"""Bytes."""
_LENGTH: Final = 8
_PIECE: Final = 1 << 18
"""Bytes that are read and hashed at a time: 0.3 ms of work."""
_TYPES: Final = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_METADATA: Final = "__metadata__"


class WeightsError(ValueError):
    """The bytes are not a safetensors file; the message says why."""


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class WeightsFile(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A file's tensors. They are views of memory that nobody else has."""

    sha256: str
    metadata: dict[str, str]
    tensors: dict[str, Tensor]


def read_weights(path: Path, *, most: int, pause: Callable[[], None] = lambda: None) -> WeightsFile:
    """Read a regular file of at most `most` bytes. `pause` is called between pieces.

    Raises `WeightsError` and `OSError`.
    """
    data, sha256 = _read(path, most, pause)
    start = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    if len(data) < _LENGTH or start > min(len(data), _LENGTH + LARGEST_HEADER):
        raise WeightsError("it is shorter than its own header says")
    try:
        header = msgspec.json.decode(memoryview(data)[_LENGTH:start], type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(header.pop(_METADATA, b"{}"), type=dict[str, str])
        entries = {name: msgspec.json.decode(entry, type=_Entry) for name, entry in header.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise WeightsError(f"a header that cannot be read: {problem}") from problem
    return WeightsFile(
        sha256=sha256,
        metadata=metadata,
        tensors={name: _tensor(data, start, name, entry) for name, entry in entries.items()},
    )


def _read(path: Path, most: int, pause: Callable[[], None]) -> tuple[bytearray, str]:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        data = bytearray(min(most + 1, path.stat().st_size))
        view, read = memoryview(data), 0
        while read < len(data) and (count := file.readinto(view[read : read + _PIECE])):
            digest.update(view[read : read + count])
            read += count
            pause()
        if read < len(data):
            raise WeightsError("it became shorter while it was read")
    return data, digest.hexdigest()


def _tensor(data: bytearray, start: int, name: str, entry: _Entry) -> Tensor:
    begin, end = (start + offset for offset in entry.data_offsets)
    dtype, count = _TYPES.get(entry.dtype), math.prod(entry.shape)
    whole = dtype is not None and end - begin == dtype.itemsize * count and begin % dtype.itemsize == 0
    if dtype is None or not whole or not start <= begin <= end <= len(data) or min(entry.shape, default=0) < 0:
        raise WeightsError(f"{name} is said to be {entry.dtype} {list(entry.shape)} at {list(entry.data_offsets)}")
    if not count:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=begin).view(entry.shape)
