"""One program on its own: the machine around it hears nothing and says nothing."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kernels.cpu import FrameMachine, Program, RowMemory, Shape

FRAME_SIZE = 48


def shape(delays: tuple[int, ...] = (0, 0, 1)) -> Shape:
    return Shape(
        frame_size=FRAME_SIZE,
        dep_q=1,
        user_codebooks=1,
        delays=delays,
        text_card=40,
        card=40,
        text_start=40,
        audio_start=40,
        pad_id=3,
        end_pad_id=0,
    )


def machine(program: Program, memory: RowMemory, *, rows: int = 1, threads: int = 1) -> FrameMachine:
    """A machine whose second program (the one that always runs) is `program`."""
    memory.scratch(16)
    made = FrameMachine([Program(), program, Program(), Program()], memory, shape(), rows, threads=threads)
    made.memory[:] = np.nan
    for row in range(rows):
        made.reset(row)
    return made


def step(made: FrameMachine, rows: list[int] | None = None) -> None:
    chosen = list(range(made.rows)) if rows is None else rows
    made.step(np.zeros((made.rows, FRAME_SIZE), np.float32), np.array(chosen, np.int32))


def run(
    program: Program, memory: RowMemory, inputs: Mapping[int, NDArray[np.float32]], y: int, floats: int
) -> NDArray[np.float32]:
    """Put `inputs` at their places, step one row, and return `floats` numbers from `y`."""
    made = machine(program, memory)
    for place, values in inputs.items():
        made.memory[0, place : place + values.size] = values.ravel()
    step(made)
    return made.memory[0, y : y + floats].copy()
