"""One frame of many conversations on a CPU, as one call that holds no interpreter lock."""

from kernels.cpu.adapters import AdapterMemory, LowRank
from kernels.cpu.build import BuildError, load_library
from kernels.cpu.machine import FREE, Frame, FrameMachine, Shape
from kernels.cpu.opus import ChangeOfRate, Libopus, OpusError, OpusSettings, OpusStream, find_libopus
from kernels.cpu.program import HIGHEST_RANK, Program, RowMemory, Sites, UnsupportedModelError

__all__ = [
    "FREE",
    "HIGHEST_RANK",
    "AdapterMemory",
    "BuildError",
    "ChangeOfRate",
    "Frame",
    "FrameMachine",
    "Libopus",
    "LowRank",
    "OpusError",
    "OpusSettings",
    "OpusStream",
    "Program",
    "RowMemory",
    "Shape",
    "Sites",
    "UnsupportedModelError",
    "find_libopus",
    "load_library",
]
