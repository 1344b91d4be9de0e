"""Two adapters side by side: how much each changes every layer, how far apart they are, and how each behaves.

Knows the gate's measures and none of its limits. None stands for the base model.
"""

from pathlib import Path

import msgspec

from online_align.gate import Gate
from online_align.probes import Drift, Measure
from server.engine.adapters import AdapterFile
from server.errors import AdapterError

__all__ = ["Difference", "compare"]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """What differs. `first` and `second` are `probes.behaviour` of each."""

    drift: Drift
    first: dict[str, Measure]
    second: dict[str, Measure]
    norms: dict[str, tuple[float, float]]
    """Of each layer that either changes: the norm of its change over that of its weight, for both."""


def compare(gate: Gate, first: Path | None, second: Path | None) -> Difference:
    """Compare two adapters' folders. Raises `AdapterError` for one that the gate would not read."""
    one, other = _file(gate, first), _file(gate, second)
    norms = gate.norms(one), gate.norms(other)
    return Difference(
        drift=gate.drift(one, other),
        first=gate.behaviour(first),
        second=gate.behaviour(second),
        norms={name: (norms[0].get(name, 0.0), norms[1].get(name, 0.0)) for name in sorted(norms[0] | norms[1])},
    )


def _file(gate: Gate, folder: Path | None) -> AdapterFile | None:
    if folder is None:
        return None
    check, file = gate.read(folder)
    if file is None:
        raise AdapterError(folder.name, expected="one with good files", remedy=check.reason)
    return file
