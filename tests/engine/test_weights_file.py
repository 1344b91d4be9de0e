"""Safetensors read once: as the package reads them, and refused where a header lies."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from server.engine.weights_file import WeightsError, read_weights

MOST = 1 << 20


def test_as_the_package_writes_them(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int8, torch.bool)
    wanted = {f"{dtype}": torch.randn(3, 5, generator=generator).to(dtype) for dtype in dtypes}
    wanted |= {"empty": torch.empty(0, 4), "single": torch.tensor(2.5)}
    path = tmp_path / "weights.safetensors"
    save_file(wanted, path, metadata={"made": "here"})
    pauses: list[None] = []
    file = read_weights(path, most=MOST, pause=lambda: pauses.append(None))
    assert file.metadata == {"made": "here"}
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert file.tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert file.tensors[name].dtype == tensor.dtype
        assert torch.equal(file.tensors[name], tensor)
    assert pauses


def test_what_changes_afterwards_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(4)}, path)
    file = read_weights(path, most=MOST)
    data = bytearray(path.read_bytes())
    data[-16:] = bytes(16)
    with path.open("rb+") as same:
        same.write(data)
    assert file.tensors["a"].tolist() == [1.0] * 4


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes


LIES: dict[str, Any] = {
    "more than there is": {"a": entry(shape=[4, 4], data_offsets=[0, 64])},
    "a shape that does not fit": {"a": entry(shape=[2, 3])},
    "backwards": {"a": entry(data_offsets=[16, 0])},
    "before the data": {"a": entry(data_offsets=[-16, 0])},
    "widths below zero": {"a": entry(shape=[-2, -2])},
    "huge": {"a": entry(shape=[2**62, 2**62], data_offsets=[0, 2**63])},
    "an unknown type": {"a": entry(dtype="F4")},
    "between two numbers": {"a": entry(shape=[1], data_offsets=[1, 5])},
    "no offsets": {"a": {"dtype": "F32", "shape": [2, 2]}},
    "numbers for notes": {"__metadata__": {"a": 1}},
    "a list": [],
}


@pytest.mark.parametrize("what", LIES)
def test_a_header_that_lies(tmp_path: Path, what: str) -> None:
    path = tmp_path / "weights.safetensors"
    _write(path, json.dumps(LIES[what]).encode())
    with pytest.raises(WeightsError):
        read_weights(path, most=MOST)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x08", (1 << 63).to_bytes(8, "little") + b"{}", (99).to_bytes(8, "little") + b"{}", b"\xff" * 64],
    ids=["empty", "one byte", "a header without end", "cut short", "noise"],
)
def test_no_whole_header(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError):
        read_weights(path, most=MOST)


def test_a_header_as_deep_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    _write(path, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    with pytest.raises(WeightsError):
        read_weights(path, most=MOST)


def test_no_more_is_read_than_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    with pytest.raises(WeightsError):
        read_weights(path, most=100)


def _write(path: Path, header: bytes) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
