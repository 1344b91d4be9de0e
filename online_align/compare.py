"""Two adapters side by side: how much each changes every layer, how far apart they are, and how each behaves.

Knows the gate's measures and none of its limits. None stands for the base model.
"""

from pathlib import Path

import msgspec

from online_align.gate import Gate
from online_align.probes import Drift, Measure
from server.engine.adapters import AdapterFile
from server.errors import AdapterError

__all__ = ["Compared", "Difference", "compare"]


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter's folder, and the SHA-256 that its weights had when it was staged."""

    folder: Path
    sha256: str


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """What differs. `first` and `second` are `probes.behaviour` of each."""

    drift: Drift
    first: dict[str, Measure]
    second: dict[str, Measure]
    norms: dict[str, tuple[float, float]]
    """Of each layer that either changes: the norm of its change over that of its weight, for both."""


def compare(gate: Gate, first: Compared | None, second: Compared | None) -> Difference:
    """Compare two adapters. Raises `AdapterError` for one that the gate would not read, or that is not as staged."""
    one, other = _file(gate, first), _file(gate, second)
    norms = gate.norms(one), gate.norms(other)
    return Difference(
        drift=gate.drift(one, other),
        first=gate.behaviour(first.folder if first else None),
        second=gate.behaviour(second.folder if second else None),
        norms={name: (norms[0].get(name, 0.0), norms[1].get(name, 0.0)) for name in sorted(norms[0] | norms[1])},
    )


def _file(gate: Gate, side: Compared | None) -> AdapterFile | None:
    if side is None:
        return None
    check, file = gate.read(side.folder, side.sha256)
    if file is None:
        raise AdapterError(side.folder.name, expected="one with good files", remedy=check.reason)
    return file
