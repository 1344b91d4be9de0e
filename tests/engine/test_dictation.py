"""What is dictated to a row is said, what is not stays the row's own, and neighbours notice nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.cpu import FREE
from server.engine.checkpoint import load_checkpoint
from server.engine.native import NativeStep
from server.engine.params import SamplingParams
from tests.tiny_checkpoint import write_tiny_checkpoint

FRAMES = 12
SAMPLED = SamplingParams(repetition_penalty=1.3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def step(tiny: Path) -> NativeStep:
    made = NativeStep(load_checkpoint(tiny, device=torch.device("cpu"), dtype=torch.float32), 3)
    for row in range(3):
        made.open(row, SAMPLED, 0, seed=row + 1)
    return made


def sound(step: NativeStep) -> torch.Tensor:
    """One second or so for each row, float32 `[FRAMES, rows, samples]`."""
    generator = torch.Generator().manual_seed(3)
    return 0.1 * torch.randn(FRAMES, 3, step.machine.shape.frame_size, generator=generator)


def columns(step: NativeStep, pcm: torch.Tensor, dictate: dict[int, dict[int, list[int]]] | None = None) -> np.ndarray:
    """Columns `[frames, rows, codebooks]`; `dictate` says by row and place what is dictated at each step."""
    found = []
    for frame, heard in enumerate(pcm):
        for row, places in (dictate or {}).items():
            for place, tokens in places.items():
                step.machine.dictated[row, place] = tokens[frame]
        found.append(step.step(heard, torch.ones(3, dtype=torch.bool)).tokens_BK.numpy().copy())
    return np.stack(found)


def test_what_is_dictated_is_said_and_neighbours_say_what_they_said(step: NativeStep) -> None:
    pcm, dep_q = sound(step), step.machine.shape.dep_q
    alone = columns(step, pcm)
    for row in range(3):
        step.open(row, SAMPLED, 0, seed=row + 1)
    text = [frame % 5 for frame in range(FRAMES)]
    audio = [frame % 7 for frame in range(FRAMES)]
    dictated = columns(step, pcm, {1: {0: text, dep_q: audio}})
    late = max(step.machine.shape.delays)
    assert dictated[late:, 1, 0].tolist() == text[: FRAMES - late]
    said = late if step.machine.shape.delays[dep_q] == 0 else 0
    assert dictated[late:, 1, dep_q].tolist() == audio[late - said :][: FRAMES - late]
    assert np.array_equal(dictated[:, [0, 2]], alone[:, [0, 2]])
    assert not np.array_equal(dictated[:, 1], alone[:, 1])


def test_dictating_what_was_said_anyway_changes_nothing(step: NativeStep) -> None:
    pcm, shape = sound(step), step.machine.shape
    alone = columns(step, pcm)
    late = max(shape.delays)
    places = {}
    for place in range(1 + shape.dep_q):
        known = alone[late:, 0, place]
        # A token of frame t is said in step t + its delay; what the last steps said is not known.
        tokens = np.full(FRAMES, FREE)
        tokens[shape.delays[place] : shape.delays[place] + len(known)] = known
        places[place] = tokens.tolist()
    for row in range(3):
        step.open(row, SAMPLED, 0, seed=99 if row == 0 else row + 1)
    again = columns(step, pcm, {0: places})
    assert np.array_equal(again, alone), "with another seed, dictated to the last known token"


def test_a_dictated_word_waits_for_the_rows_own_time(step: NativeStep) -> None:
    pcm, shape = sound(step), step.machine.shape
    silent = {shape.pad_id, shape.end_pad_id}
    step.machine.sampling["pad_mult"] = 2.0
    alone = columns(step, pcm)
    for row in range(3):
        step.open(row, SAMPLED, 0, seed=row + 1)
    step.machine.sampling["pad_mult"] = 2.0
    first = next(frame for frame in range(1, FRAMES) if alone[frame, 0, 0] not in silent)
    word = next(token for token in range(4, shape.text_card) if token != alone[first, 0, 0])
    worded = columns(step, pcm, {0: {-1: [word] * FRAMES}})
    assert worded[: first + 1, 0, 0].tolist() == [*alone[:first, 0, 0].tolist(), word]
    assert {int(token) for token in worded[1:, 0, 0]} <= silent | {word}


def test_logprobs_are_of_what_was_dictated(step: NativeStep) -> None:
    pcm, shape = sound(step), step.machine.shape
    totals = []
    for token in range(shape.text_card):
        step.open(0, SAMPLED, 0, seed=1)
        step.machine.dictated[0, 0] = token
        moving = torch.tensor([True, False, False])
        out = [step.step(heard, moving) for heard in pcm[: 1 + max(shape.delays)]]
        totals.append(float(out[-1].logprob_B[0]))
    assert sum(np.exp(totals)) == pytest.approx(1.0, abs=1e-4), "over all tokens of the first frame"


def test_a_copied_row_goes_on_alike(step: NativeStep) -> None:
    pcm = sound(step)
    columns(step, pcm)
    step.machine.copy(0, 2)
    same = pcm.clone()
    same[:, 2] = same[:, 0]
    more = columns(step, same)
    assert np.array_equal(more[:, 0], more[:, 2])
    assert not np.array_equal(more[:, 0], more[:, 1])


def test_opening_a_row_takes_back_what_was_dictated(step: NativeStep) -> None:
    step.machine.dictated[1] = 5
    step.open(1, SAMPLED, 0, seed=2)
    assert (step.machine.dictated == FREE).all()
