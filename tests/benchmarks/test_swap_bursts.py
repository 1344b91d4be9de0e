"""What stands beside late frames, and what adapters cost: pure functions on made-up recordings, and a look at /proc."""

import msgspec
import pytest

from benchmarks.adapter_cost import Pairs
from benchmarks.machine_watch import Hiccup, Others, Piece, Sample, Watched, others_between
from benchmarks.swap_bursts import Window, find_bursts, others_in, slowed_in, step_cost_ratio
from benchmarks.swap_server import LateNote, Recording, StepNote
from benchmarks.swap_tally import Tally, rows_of

WITH = Window(swaps=5, seconds=10.0, answered=1000, late=3, began_s=100.0)
WITHOUT = Window(swaps=0, seconds=5.0, answered=500, late=1, began_s=111.0)


def _step(due: float, *, rows: int = 4, versions: int = 1, computed: float = 0.004) -> StepNote:
    return StepNote(due, due + 0.01, due + 0.03, due + 0.1, computed, computed / 2, rows, versions)


def _late(due: float) -> LateNote:
    return LateNote(due, due + 0.01, due + 0.03, due + 0.1)


def test_a_burst_is_described_by_what_stood_beside_it() -> None:
    recording = Recording(
        steps=[_step(90.0, rows=60), _step(104.0, rows=9, versions=6), _step(104.2), _step(112.0)],
        late=[_late(104.0), _late(104.05), _late(112.0)],
        pauses=[(104.05, 0.007), (90.0, 0.5)],
    )
    watched = Watched(
        hiccups=[Hiccup(104.02, 0.05, 0), Hiccup(95.0, 0.9, 1)],
        pieces=[Piece(104.03, 0.0006, 0), *(Piece(90.0 + i, 0.0002, 0) for i in range(9)), Piece(104.04, 0.0003, 1)],
        samples=[Sample(104.1, 0.2, 0.03, 0.0), Sample(96.0, 0.2, 0.1, 0.0)],
        others=[Others(104.5, 0.01, 1.5, "kernel 7"), Others(96.0, 0.9, 1.0, "python 8")],
    )
    first, second = find_bursts(recording, watched, [99.0, 103.9], [WITH, WITHOUT])
    assert (first.frames, first.during, first.rows, first.versions) == (2, "with swaps", 9, 6)
    assert first.worst_ms == pytest.approx(100)
    assert first.temporal_ms == pytest.approx(2), "half of what was computed"
    assert first.collector_ms == pytest.approx(7)
    assert first.hiccup_ms == pytest.approx(50)
    assert first.slowed == pytest.approx(3), "the first core three times; the second is always that slow"
    assert second.slowed == 1
    assert first.stolen_ms == pytest.approx(30)
    assert (first.others_cores, first.busiest_other) == (0.01, "kernel 7")
    assert first.swap_ago_s == pytest.approx(104.15 - 103.9)
    assert first.disturbed, "the machine stood still"
    assert (second.frames, second.during) == (1, "without swaps")
    assert not second.disturbed
    assert "2 late with swaps" in first.sentence()


def test_windows_in_which_others_computed_are_counted_apart() -> None:
    watched = Watched(others=[Others(105.0, 0.4, 1.5, "python 8"), Others(113.0, 0.02, 1.5, "kernel 7")])
    assert (others_in(WITH, watched), others_in(WITHOUT, watched)) == (0.4, 0.02)
    assert others_in(msgspec.structs.replace(WITH, began_s=500.0), watched) is None
    tally = Tally(rank=16, runs=1, callers=[8], windows=[WITH, WITHOUT])
    assert {row.name: row for row in rows_of(tally)}["late_frames_caused_undisturbed"].value is None, "nobody watched"
    tally.note_machine(watched, 0)
    rows = {row.name: row for row in rows_of(tally)}
    assert rows["late_frames_caused"].value == 1, "3 of 1000, where 1 of 500 comes late anyway"
    assert "1 of 2 windows, 0 swaps" in rows["late_frames_caused_undisturbed"].remark
    assert "with 0 of 0, without 1 of 500" in rows["late_frames_caused_undisturbed"].remark


def test_how_slow_the_machine_was_in_a_window_is_told_without_any_burst() -> None:
    """Else nobody could say whether a slow piece beside a burst is unusual."""
    usual = [Piece(100.0 + 0.04 * at, 0.0002, 0) for at in range(200)]
    slow = [Piece(113.0 + 0.04 * at, 0.0005, 0) for at in range(10)]
    watched = Watched(pieces=usual + slow)
    assert slowed_in(WITH, watched) == pytest.approx(1)
    assert slowed_in(WITHOUT, watched) == pytest.approx(2.5)
    assert slowed_in(WITH, Watched()) is None
    tally = Tally(rank=16, runs=1, callers=[8], windows=[WITH, WITHOUT])
    tally.note_machine(watched, 0)
    assert [window.slowed_p99 for window in tally.windows] == pytest.approx([1, 2.5])


def test_a_steps_cost_against_what_was_measured_counts_old_calls() -> None:
    young, old = [_step(1.0, computed=0.5)] * 3, [_step(2.0, rows=6, computed=0.012)] * 3
    assert step_cost_ratio(Recording(steps=young + old), {"1": 1.0, "8": 8.0}) == pytest.approx(2.0)
    assert step_cost_ratio(Recording(), {"1": 1.0}) is None


def test_whose_processor_time_it_was() -> None:
    before = {1: (0, "root", 5.0), 10: (1, "benchmark", 1.0), 20: (1, "other", 1.0)}
    after = {1: (0, "root", 5.0), 10: (1, "benchmark", 1.5), 11: (10, "server", 2.0), 20: (1, "other", 1.25)}
    found = others_between(3.0, before, after, root=10)
    assert (found.seconds, found.ours_s, found.busiest) == (0.25, 2.5, "other 20")


def test_an_adapters_share_is_the_median_of_neighbours_and_its_interval_holds_it() -> None:
    pairs = Pairs(without=[1.0, 2.0, 1.0, 1.0], with_adapter=[1.1, 2.1, 1.1, 5.0])
    percent, low, high = pairs.percent()
    assert percent == pytest.approx(10)
    assert low <= percent <= high
