"""The engine's order of frames, and the client's clock: both sides agree which frames were simultaneous."""

from pathlib import Path

import numpy as np
import pytest
import torch
from moshi.utils.compile import no_compile
from torch import Tensor

from client.call import hold_call
from client.link import open_link
from client.recording import Recording
from client.sound import FRAME_SIZE, Pcm
from server.engine import Engine, SamplingParams
from tests.client.signals import speechlike
from tests.client.stage import answering, staged
from tests.engine.stock import checkpoint_info, sound

FRAMES = 12


class Shelf(Recording):
    """Keeps both sides in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.sides: dict[str, list[Pcm]] = {"user": [], "model": []}

    def user(self, pcm: Pcm) -> None:
        super().user(pcm)
        self.sides["user"].append(pcm)

    def model(self, pcm: Pcm) -> None:
        super().model(pcm)
        self.sides["model"].append(pcm)

    def frames(self, side: str) -> Pcm:
        """float32 [frames, FRAME_SIZE]; the last one, which Opus holds back in part, is filled up."""
        joined = np.concatenate(self.sides[side])
        return np.pad(joined, (0, -len(joined) % FRAME_SIZE)).reshape(-1, FRAME_SIZE)


def codes_of(folder: Path, pcm: Tensor) -> Tensor:
    """Every frame but the first through upstream's own codec, int64 [frames - 1, codebooks]."""
    mimi = checkpoint_info(folder).get_mimi()
    with torch.no_grad(), no_compile(), mimi.streaming(1):
        return torch.stack([mimi.encode(chunk[None, None])[0, :, 0] for chunk in pcm[1:]])


def beside_the_models(engine: Engine, pcm: Tensor) -> Tensor:
    """The user's tokens in the columns of the model's frames 0, 1, ..., int64 [columns, user codebooks]."""
    engine.open(0, SamplingParams(use_sampling=False), seed=0)
    columns = [engine.step(chunk[None], torch.tensor([True])).tokens[0] for chunk in pcm]
    engine.close(0)
    return torch.stack([column for column in columns if column[0] >= 0])[:, 1 + engine.model_codebooks :]


async def caller_beside_model(said: Pcm) -> list[tuple[int, int]]:
    """(model frame, caller frame) wherever a recording of a call has the two side by side, told by their sound."""
    answer = np.roll(said, 1, axis=0)
    shelf = Shelf()
    async with staged(answering(lambda n: answer[n], max_speed=50.0)) as url, open_link(url) as link:
        await hold_call(link, said, shelf, speed=50.0)
    pairs = zip(shelf.frames("model"), shelf.frames("user"), strict=True)
    return [(nearest(theirs, answer), nearest(ours, said)) for theirs, ours in pairs if theirs.any()]


def nearest(frame: Pcm, among: Pcm) -> int:
    return int(np.argmin(np.square(among - frame).sum(axis=1)))


@pytest.mark.parametrize("seed", [0, 1])
async def test_the_models_frame_stands_beside_the_callers_next_as_its_column_says(tiny_folder: Path, seed: int) -> None:
    """The user's tokens in the column of the model's frame m are those of the caller's frame that we put there."""
    engine = Engine.load(tiny_folder, slots=1, device="cpu")
    pcm = sound(FRAMES, engine.frame_size, seed)
    codes = codes_of(tiny_folder, pcm)
    assert len(set(map(tuple, codes.tolist()))) > 1, "or any alignment would do"
    columns = beside_the_models(engine, pcm)
    aligned = await caller_beside_model(speechlike(FRAMES * FRAME_SIZE, seed=seed).reshape(-1, FRAME_SIZE))
    assert len(aligned) == len(columns) == FRAMES - engine.delay_frames
    for model, caller in aligned:
        assert columns[model].tolist() == codes[caller - 1, : engine.user_codebooks].tolist()
