"""What benchmarks print: DESIGN's shape, and a ratio that is above 1 when we are better."""

import json
from typing import Literal

import pytest

from benchmarks.capacity import Held, find_capacity
from benchmarks.report import compare, publish
from benchmarks.roofline import Machine, limit_ms
from benchmarks.soak import Memory
from benchmarks.stock_model import Size
from benchmarks.trial import Verdict

ROW = {"name", "value", "unit", "peer", "peer_value", "ratio", "goal", "met", "remark"}


def test_the_json_is_one_object_with_every_key_in_every_row() -> None:
    lines: list[str] = []
    rows = [compare("callers_held", 8, "callers", better="higher", goal=32), compare("x", None, "ms", better="lower")]
    publish("capacity", rows, as_json=True, out=lines.append)
    (line,) = lines
    report = json.loads(line)
    assert set(report) == {"benchmark", "machine", "rows"}
    assert {"cpu", "cores", "torch", "moshi", "python", "threads", "load_before"} <= set(report["machine"])
    assert all(set(row) == ROW for row in report["rows"])


def test_the_table_says_the_same() -> None:
    lines: list[str] = []
    row = compare("frame_ms_rows_1", 2.0, "ms", better="lower", peer="moshi", peer_value=9.0, goal=4, goal_for="ratio")
    publish("frame_step", [row], as_json=False, out=lines.append)
    assert all(word in lines[0] for word in ("frame_ms_rows_1", "4.5", "met"))


@pytest.mark.parametrize(
    ("value", "peer_value", "better", "goal", "goal_for", "ratio", "met"),
    [
        (2.0, 8.0, "lower", 4.0, "ratio", 4.0, True),
        (2.0, 7.0, "lower", 4.0, "ratio", 3.5, False),
        (25.0, 50.0, "lower", 30.0, "value", 2.0, True),
        (31.0, 10.0, "lower", 30.0, "value", 10 / 31, False),
        (32, 1, "higher", 32, "value", 32.0, True),
        (31, 1, "higher", 32, "value", 31.0, False),
        (8, 0, "higher", 4, "value", None, True),
        (None, 1.0, "lower", 4.0, "value", None, False),
        (3.0, 1.0, "lower", None, "value", 1 / 3, None),
    ],
)
def test_ratios_and_goals(
    value: float | None,
    peer_value: float,
    better: Literal["lower", "higher"],
    goal: float | None,
    goal_for: Literal["value", "ratio"],
    ratio: float | None,
    met: bool | None,
) -> None:
    row = compare("x", value, "u", better=better, peer="p", peer_value=peer_value, goal=goal, goal_for=goal_for)
    assert row.ratio == (None if ratio is None else pytest.approx(ratio, rel=1e-3))
    assert row.met is met


@pytest.mark.parametrize(("truth", "confirmed"), [(0, 0), (1, 1), (5, 5), (13, 13), (16, 16), (40, 16)])
def test_the_search_finds_what_is_held_and_tries_no_more_than_asked(truth: int, confirmed: int) -> None:
    tried: list[int] = []

    def trial(callers: int, seconds: float) -> tuple[None, Verdict]:
        tried.append(callers)
        return None, Verdict(held=callers <= truth, reason="too slow", p99_ms=None)

    assert find_capacity(trial, 16, 1.0, 5.0).callers == confirmed  # type: ignore[arg-type]
    assert max(tried) <= 16
    assert len(tried) <= 10


def test_a_number_that_only_held_for_a_moment_is_taken_back() -> None:
    def trial(callers: int, seconds: float) -> tuple[None, Verdict]:
        return None, Verdict(held=callers <= (12 if seconds < 5 else 9), reason="too slow", p99_ms=90.0)

    held = find_capacity(trial, 16, 1.0, 5.0)  # type: ignore[arg-type]
    assert held == Held(callers=9, confirmed=None, limit="10: too slow")


def test_the_limit_grows_with_rows_and_age() -> None:
    size = Size(weights=1_000_000, multiply_adds=2_000_000, cache_values=1_000)
    machine = Machine(bytes_per_s=4e9, multiply_adds_per_s=1e9)
    assert limit_ms(size, machine, rows=1, age=0) == pytest.approx((1.0, 2.0))
    assert limit_ms(size, machine, rows=10, age=100) == pytest.approx((2.0, 21.0))


def test_memory_growth_leaves_out_the_warm_up() -> None:
    warming = [100.0, 200.0, 300.0, 400.0]
    assert Memory(samples_mb=warming + [400.0] * 12).growth_mb == 0
    assert Memory(samples_mb=warming + [400.0] * 8 + [425.0] * 4).growth_mb == 25
    assert Memory(samples_mb=[]).growth_mb is None
