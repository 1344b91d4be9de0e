"""The jitter buffer on a simulated network and card: a clock of 20 ms, frames that arrive when the test says."""

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.jitter import JitterBuffer, JitterSettings
from tests.client.signals import speechlike, tone

FRAME, BLOCK = 1920, 480
PER_MS = 24
Samples = np.ndarray


class Simulated(JitterBuffer):
    """A buffer on the simulation's clock: who plays here never stops because this machine does."""

    def __init__(self, settings: JitterSettings | None = None) -> None:
        self.now_s = 0.0
        super().__init__(settings, clock=lambda: self.now_s)


def played(
    buffer: Simulated, arrivals: Iterable[tuple[float, Samples]], *, seconds: float
) -> tuple[Samples, list[float]]:
    """Run card and network. Gives what was played, and what waited before each block."""
    waiting = sorted(arrivals, key=lambda each: each[0])
    blocks, levels = [], []
    for tick in range(round(seconds * 50)):
        buffer.now_s = tick * 0.02
        while waiting and waiting[0][0] <= tick * 0.02:
            buffer.put(waiting.pop(0)[1])
        levels.append(buffer.waiting_ms)
        blocks.append(buffer.take(BLOCK))
    return np.concatenate(blocks), levels


def frames(sound: Samples) -> list[Samples]:
    return list(sound[: len(sound) // FRAME * FRAME].reshape(-1, FRAME))


def on_time(sound: Samples, late: dict[int, float] | None = None) -> list[tuple[float, Samples]]:
    """Frames every 80 ms, but some late, and none before the one before it: a stream keeps its order."""
    due = [n * 0.08 + (late or {}).get(n, 0.0) for n in range(len(sound) // FRAME)]
    return list(zip(itertools.accumulate(due, max), frames(sound), strict=True))


def test_what_comes_on_time_is_played_whole_after_the_first_cushion() -> None:
    sound = speechlike(12 * FRAME)
    heard, _ = played(Simulated(JitterSettings(start_ms=40)), on_time(sound), seconds=12 * 0.08 + 0.1)
    np.testing.assert_array_equal(heard[: 40 * PER_MS], 0)
    np.testing.assert_array_equal(heard[40 * PER_MS : 40 * PER_MS + len(sound)], sound)


def test_before_the_first_sound_silence_is_no_gap() -> None:
    buffer = JitterBuffer()
    assert not buffer.take(BLOCK).any()
    assert buffer.figures().underruns == 0
    assert buffer.played == 0


def test_late_sound_makes_the_delay_longer_by_its_lateness_and_it_shrinks_again() -> None:
    sound = speechlike(25 * 30 * FRAME // 2)
    buffer = Simulated()
    _, levels = played(buffer, on_time(sound, {40: 0.15}), seconds=30)
    figures = buffer.figures()
    assert figures.underruns == 1
    assert figures.silence_ms == pytest.approx(150 - 40, abs=25), "the cushion had covered the rest"
    after, later = min(levels[200:300]), min(levels[-100:])
    assert after >= 100, "what was late once may be late again"
    assert later <= 20 + 60 + 20, "ten seconds later it is forgotten, but for what is only cut in silence"


def test_a_burst_after_a_stall_is_worked_off() -> None:
    """The network stood still for 0.8 s and then gave everything at once."""
    sound = speechlike(200 * FRAME)
    late = {n: max(0.0, 4.0 - n * 0.08) for n in range(40, 50)}
    buffer = Simulated()
    _, levels = played(buffer, on_time(sound, late), seconds=15)
    assert max(levels) <= 1000 + 80
    assert min(levels[500:550]) <= 200 + 60 + 20, "about the ceiling again within a few seconds"
    assert buffer.figures().dropped_ms == 0, "no word was lost"
    assert buffer.figures().cut_ms >= 500


def test_silence_is_shortened_before_speech() -> None:
    """Cut is only within the quiet half of every second, when the excess is small."""
    sound = speechlike(300 * FRAME)
    quiet = np.arange(len(sound)) % 24000 < 12000
    sound[quiet] = 0
    marks = np.flatnonzero(np.diff(quiet.astype(int)))
    buffer = Simulated(JitterSettings(start_ms=70, margin_ms=20, hurry_ms=1000))
    heard, _ = played(buffer, on_time(sound), seconds=24)
    assert buffer.figures().cut_ms == pytest.approx(50, abs=12)
    loud = np.abs(heard) > 0
    spans = np.flatnonzero(np.diff(loud.astype(int)))
    assert len(spans) >= len(marks) - 2
    lengths = [int(loud[first:last].sum()) for first, last in itertools.pairwise(spans) if loud[first + 1]]
    assert all(length >= 12000 - 120 for length in lengths[1:-1]), "no speech is missing"


def test_a_period_is_cut_without_a_click() -> None:
    """A steady tone stays a steady tone: its level does not dip and no step is larger than its own."""
    buffer = Simulated(JitterSettings(start_ms=300, margin_ms=20))
    sound = tone(200 * FRAME, hz=150.0)
    heard, _ = played(buffer, on_time(sound), seconds=16)
    assert buffer.figures().cut_ms >= 200
    body = heard[24000:-12000]
    assert np.abs(np.diff(body)).max() <= 1.3 * np.abs(np.diff(sound)).max()
    levels = np.sqrt(np.square(body[: len(body) // 480 * 480].reshape(-1, 480)).mean(axis=1))
    assert levels.min() > 0.7 * np.median(levels)


def test_while_nobody_plays_no_delay_gathers() -> None:
    """Loudspeakers need a second to start, or were unplugged for one."""
    now = 0.0
    buffer = JitterBuffer(JitterSettings(start_ms=40), clock=lambda: now)
    for frame in frames(speechlike(12 * FRAME)):
        buffer.put(frame)
        now += 0.08
    assert buffer.waiting_ms == 40 + 80
    for frame in frames(speechlike(50 * FRAME)):
        for _ in range(4):
            buffer.take(BLOCK)
            now += 0.02
        buffer.put(frame)
    assert buffer.waiting_ms <= 40 + 80
    now += 1.0
    for frame in frames(speechlike(5 * FRAME)):
        buffer.put(frame)
    assert buffer.waiting_ms <= 40 + 80
    assert buffer.figures().underruns == 0
    assert buffer.figures().dropped_ms > 1000


def test_nothing_is_kept_beyond_the_limit() -> None:
    buffer = JitterBuffer(JitterSettings(limit_ms=500))
    buffer.take(0)
    for frame in frames(speechlike(100 * FRAME)):
        buffer.put(frame)
        assert buffer.waiting_ms <= 500
    figures = buffer.figures()
    assert figures.dropped_ms + figures.cut_ms + figures.waiting_ms == pytest.approx(100 * 80 + 40, abs=1)


def test_how_far_it_has_played_counts_what_was_left_out_but_no_silence_of_its_own() -> None:
    buffer = JitterBuffer(JitterSettings(start_ms=40))
    buffer.put(speechlike(FRAME))
    buffer.take(960)
    assert buffer.played == 0, "that was the cushion"
    buffer.take(480)
    assert buffer.played == 480
    buffer.take(4800)
    assert buffer.played == buffer.put_samples == FRAME


def test_after_a_restart_a_new_cushion_is_laid() -> None:
    buffer = JitterBuffer()
    buffer.put(speechlike(FRAME))
    buffer.take(10 * FRAME)
    buffer.restart()
    assert not buffer.take(BLOCK).any()
    underruns = buffer.figures().underruns
    buffer.put(speechlike(FRAME))
    assert buffer.waiting_ms == 40 + 80
    assert buffer.figures().underruns == underruns


@settings(max_examples=60, deadline=None)
@given(
    late=st.lists(st.floats(0, 3), min_size=20, max_size=80),
    sizes=st.lists(st.integers(1, 4000), min_size=5, max_size=30),
    seed=st.integers(0, 99),
)
def test_on_any_network_it_is_bounded_finite_and_accounts_for_every_sample(
    late: list[float], sizes: list[int], seed: int
) -> None:
    sound = speechlike(len(late) * FRAME, seed=seed)
    pieces = np.split(sound, np.cumsum([sizes[n % len(sizes)] for n in range(len(late))])[:-1])
    times = itertools.accumulate((n * 0.08 + wait for n, wait in enumerate(late)), max)
    arrivals = list(zip(times, pieces, strict=True))
    at = arrivals[-1][0]
    buffer = Simulated()
    heard, levels = played(buffer, arrivals, seconds=at + 2)
    figures = buffer.figures()
    total = sum(len(piece) for _, piece in arrivals)
    assert max(levels) <= 1000
    assert np.isfinite(heard).all()
    assert np.abs(heard).max() <= 1.01 * np.abs(sound).max()
    given_out = len(heard) - round(figures.silence_ms * PER_MS)
    silent_before = round(arrivals[0][0] * 50 + 0.499) * BLOCK
    assert buffer.put_samples == total
    assert given_out - silent_before - 40 * PER_MS == pytest.approx(
        total - (figures.waiting_ms + figures.cut_ms + figures.dropped_ms) * PER_MS, abs=2 * BLOCK
    )
