"""The canary's test over people: how often it errs under constant peeking, what it can see, and who counts."""

import numpy as np
import pytest
from numpy.typing import NDArray

from online_align.canary import CanarySettings, Decision, Group, read, sequential_interval, variance_of
from server.adapter_plan import hears_canary

SETTINGS = CanarySettings()
RUNS, USERS = 400, 800


def shares(mean: float, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Of people who differ: each has a chance of his own to complain in each of five turns."""
    own = rng.beta(3 * mean, 3 * (1 - mean), shape)
    return rng.binomial(5, own) / 5


def peeked(control: float, canary: float, *, share: float = 0.3, seed: int = 0) -> tuple[float, float, float]:
    """Look after every single person: how often harm is seen first, promotion first, and the median of people."""
    rng = np.random.default_rng(seed)
    treated = rng.random((RUNS, USERS)) < share
    x = np.where(treated, shares(canary, rng, treated.shape), shares(control, rng, treated.shape))
    (n_c, mean_c, var_c), (n_t, mean_t, var_t) = _running(x, ~treated), _running(x, treated)
    ready = (n_c >= SETTINGS.least_users) & (n_t >= SETTINGS.least_users)
    low, high = sequential_interval(mean_t - mean_c, var_c + var_t, SETTINGS)
    harm, promote = _first(ready & (low > 0)), _first(ready & (high < SETTINGS.margin))
    return float((harm < promote).mean()), float((promote < harm).mean()), float(np.median(np.minimum(harm, promote)))


def _running(x: NDArray[np.float64], among: NDArray[np.bool_]) -> tuple[NDArray[np.float64], ...]:
    """Count, mean and variance of the mean after each person, as `canary.variance_of` has them."""
    n = np.cumsum(among, 1).astype(float)
    mean = np.cumsum(np.where(among, x, 0), 1) / np.maximum(n, 1)
    squares = np.cumsum(np.where(among, x * x, 0), 1) - n * mean**2
    return n, mean, (squares + 4 * 0.05) / (n - 1 + 4) / np.maximum(n, 1)


def _first(hit: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.where(hit.any(1), hit.argmax(1), USERS + 1)


@pytest.mark.parametrize("mean", [0.02, 0.1, 0.3])
def test_no_difference_is_rarely_harm_however_often_one_looks(mean: float) -> None:
    harm, _, _ = peeked(mean, mean)
    assert harm <= SETTINGS.alpha


@pytest.mark.parametrize(("control", "canary"), [(0.1, 0.1 + 0.05), (0.2, 0.2 + 0.05)])
def test_one_worse_by_the_margin_is_rarely_promoted(control: float, canary: float) -> None:
    _, promoted, _ = peeked(control, canary)
    # The variance is estimated, so the bound is asymptotic: three standard errors of this simulation are allowed.
    assert promoted <= SETTINGS.alpha + 3 * (0.05 * 0.95 / RUNS) ** 0.5


def test_plain_looking_would_have_erred() -> None:
    """The same peeking with an ordinary 95 % interval: what this test is there to prevent."""
    rng = np.random.default_rng(0)
    treated = rng.random((RUNS, USERS)) < 0.3
    x = shares(0.1, rng, treated.shape)
    (n_c, mean_c, var_c), (n_t, mean_t, var_t) = _running(x, ~treated), _running(x, treated)
    ready = (n_c >= SETTINGS.least_users) & (n_t >= SETTINGS.least_users)
    low = mean_t - mean_c - 1.96 * np.sqrt(var_c + var_t)
    assert (ready & (low > 0)).any(1).mean() > 2 * SETTINGS.alpha


def test_harm_is_seen_and_good_is_promoted() -> None:
    harm, _, people = peeked(0.1, 0.3)
    assert harm > 0.97
    assert people < 150
    _, promoted, people = peeked(0.3, 0.1)
    assert promoted > 0.97
    assert people < 150


def test_the_simulation_is_the_code() -> None:
    rng = np.random.default_rng(3)
    control, canary = shares(0.1, rng, (60,)), shares(0.3, rng, (40,))
    reading = read(Group(shares=tuple(control)), Group(shares=tuple(canary)), SETTINGS)
    n, _, variance = _running(canary[None], np.ones((1, 40), bool))
    assert variance[0, -1] == pytest.approx(variance_of(canary) / 40)
    assert n[0, -1] == reading.canary_users == 40
    low, _ = sequential_interval(
        canary.mean() - control.mean(), variance_of(canary) / 40 + variance_of(control) / 60, SETTINGS
    )
    assert reading.low == pytest.approx(low)


def test_interval_and_p_value_are_one_test() -> None:
    """The interval leaves zero exactly when p falls below alpha: it is the ratio's inversion."""
    rng = np.random.default_rng(4)
    for _ in range(200):
        reading = read(Group(shares=tuple(rng.random(30) * 0.5)), Group(shares=tuple(rng.random(15))), SETTINGS)
        assert reading.low is not None
        assert reading.high is not None
        assert (reading.low > 0 or reading.high < 0) == (reading.p < SETTINGS.alpha)


def test_few_people_are_no_evidence() -> None:
    reading = read(Group(shares=(0.0,) * 100), Group(shares=(1.0,) * 11), SETTINGS)
    assert reading.decision is Decision.WAIT
    assert "too few" in reading.sentence
    assert read(Group(), Group(), SETTINGS).sentence.endswith("too few.")
    more = read(Group(shares=(0.0,) * 100), Group(shares=(1.0,) * 12), SETTINGS)
    assert more.decision is Decision.HARM
    assert "people complain more" in more.sentence


def test_silence_of_a_few_is_not_certainty() -> None:
    """Nobody complained yet, in either group: not a proof that nobody will."""
    quiet = Group(shares=(0.0,) * 12)
    assert read(quiet, quiet, SETTINGS).decision is Decision.WAIT
    many = Group(shares=(0.0,) * 300)
    assert read(many, many, SETTINGS).decision is Decision.PROMOTE


def test_people_are_drawn_not_calls() -> None:
    users = [f"{i:064x}" for i in range(4000)]
    drawn = [hears_canary(user, "one", 0.1) for user in users]
    assert drawn == [hears_canary(user, "one", 0.1) for user in users]
    assert 0.07 < np.mean(drawn) < 0.13
    others = [hears_canary(user, "two", 0.1) for user in users]
    assert np.mean([a and b for a, b in zip(drawn, others, strict=True)]) < 0.03
