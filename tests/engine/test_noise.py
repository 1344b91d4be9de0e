"""The counter-based noise against the generator's published numbers, a second implementation and statistics."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.noise import NoiseSource, philox
from tests.engine.reference import gumbel, philox_ints

CPU = torch.device("cpu")

KNOWN = [
    # Known-answer vectors of the Random123 distribution, philox4x32 with 10 rounds: counter, key, result.
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_known_answers(counter: str, key: str, result: str) -> None:
    assert philox_ints(_words(counter), _words(key)) == _words(result)
    c0, c1, c2, c3 = (torch.tensor([word]) for word in _words(counter))
    k0, k1 = (torch.tensor([word]) for word in _words(key))
    assert [int(lane) for lane in philox((c0, c1, c2, c3), (k0, k1))] == _words(result)


@given(seed=st.integers(0, 2**63 - 1), frame=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_every_number_is_at_its_own_address(seed: int, frame: int) -> None:
    source = NoiseSource(text_card=7, dep_q=2, card=6, device=CPU)
    text, audio = source.gumbel(torch.tensor([seed]), torch.tensor([frame]))
    for token in range(7):
        assert float(text[0, token]) == pytest.approx(gumbel(seed, frame, 0, token), rel=1e-5, abs=1e-5)
    for codebook, token in product(range(2), range(6)):
        wanted = gumbel(seed, frame, 1 + codebook, token)
        assert float(audio[0, codebook, token]) == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_rows_do_not_know_the_width() -> None:
    source = NoiseSource(text_card=37, dep_q=3, card=33, device=CPU)
    seeds, frames = torch.tensor([5, 2**62, 7, 7]), torch.tensor([0, 9, 100_000, 100_001])
    text, audio = source.gumbel(seeds, frames)
    for row in range(4):
        alone = source.gumbel(seeds[row : row + 1], frames[row : row + 1])
        assert torch.equal(alone[0][0], text[row])
        assert torch.equal(alone[1][0], audio[row])
    assert not torch.equal(text[2], text[3])
    assert not torch.equal(audio[0, 0], audio[0, 1])


def test_gumbel_moments() -> None:
    """Mean is Euler's constant and variance pi**2 / 6, within five standard errors; never infinite."""
    source = NoiseSource(text_card=500, dep_q=1, card=500, device=CPU)
    noise = torch.cat([part.flatten() for part in source.gumbel(torch.arange(400), torch.arange(400) * 3)])
    count, variance = noise.numel(), math.pi**2 / 6
    assert noise.isfinite().all()
    assert abs(float(noise.mean()) - 0.5772157) < 5 * math.sqrt(variance / count)
    fourth_moment = 5.4 * variance**2  # the kurtosis of a Gumbel variable
    assert abs(float(noise.var()) - variance) < 5 * math.sqrt((fourth_moment - variance**2) / count)


def test_extreme_bits_stay_finite() -> None:
    from server.engine.noise import _gumbel

    assert _gumbel(torch.tensor([0, 2**32 - 1])).isfinite().all()
