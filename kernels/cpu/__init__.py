"""One frame of many conversations on a CPU, as one call that holds no interpreter lock."""

from kernels.cpu.build import BuildError, load_library
from kernels.cpu.machine import Frame, FrameMachine, Shape
from kernels.cpu.program import Program, RowMemory, UnsupportedModelError

__all__ = [
    "BuildError", "Frame", "FrameMachine", "Program", "RowMemory", "Shape", "UnsupportedModelError", "load_library",
]  # fmt: skip
