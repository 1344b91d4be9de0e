"""Both servers with a model that says back what it hears: a sound's way through server and client can then be timed.

The model works as always, on every frame, and its answer is thrown away: what it says in its frame is what the caller
said in the frame that Moshi's own delay puts there, so a sound comes back 160 ms later plus what server and client add.

`python -m benchmarks.parrot ours|stock ARGUMENTS`: the arguments are those of `python -m server` or of
`python -m moshi.server`.
"""

import sys
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import server.engine
from server.engine import Engine, FrameOutput

__all__ = ["Parrot", "main"]


class Parrot(Engine):
    """Our engine, and in place of its sound what the same row heard one frame ago."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._heard_BS = torch.zeros(self.slots, self.frame_size)

    def step(self, pcm: Tensor | NDArray[np.float32], active: Tensor | NDArray[np.bool_]) -> FrameOutput:
        """Step, and repeat. A row that has nothing out yet stays silent."""
        output = super().step(pcm, active)
        said_BS = torch.where((output.text >= 0)[:, None], self._heard_BS, torch.zeros(()))
        heard_BS = torch.as_tensor(pcm)
        moving_B1 = torch.as_tensor(active)[:, None]
        self._heard_BS = torch.where(moving_B1, heard_BS, self._heard_BS)
        return msgspec.structs.replace(output, pcm=said_BS)


def main() -> None:
    """Run the server that the first argument names."""
    which = sys.argv.pop(1)
    if which == "ours":
        _ours()
    else:
        _stock()


def _ours() -> None:
    server.engine.Engine = Parrot  # type: ignore[misc] # the program asks for it by this name when it starts
    from server.__main__ import main as serve  # noqa: PLC0415

    serve()


def _stock() -> None:
    """Let upstream's codec decode as always, and give what it was last given to encode but one."""
    from moshi.models.compression import MimiModel  # noqa: PLC0415

    from benchmarks.stock_moshi import main as serve  # noqa: PLC0415

    heard: list[Tensor] = []
    encode, decode = MimiModel.encode, MimiModel.decode

    def remember(model: Any, pcm: Tensor) -> Tensor:
        heard.append(pcm)
        del heard[:-2]
        codes: Tensor = encode(model, pcm)
        return codes

    def repeat(model: Any, codes: Tensor) -> Tensor:
        sound: Tensor = decode(model, codes)
        return heard[0] if len(heard) == 2 and heard[0].shape == sound.shape else sound

    MimiModel.encode, MimiModel.decode = remember, repeat
    serve()


if __name__ == "__main__":
    main()
