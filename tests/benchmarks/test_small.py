"""Every benchmark at toy size on the tiny checkpoint, peer included: that it runs and what it prints, never a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from benchmarks import capacity, clicks, delay, frame_step, soak
from benchmarks.servers import our_server, stock_server
from benchmarks.trial import judge, load
from tests.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny_for_benchmarks"), sample_rate=24000))


pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # servers start, and calls last as long as they last

Run = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def run(tiny: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a benchmark as from its command line and give its rows by name."""

    def one(module: Any, *arguments: str) -> dict[str, dict[str, Any]]:
        module.main(["--json", "--checkpoint", tiny, *arguments])
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert report["benchmark"] == module.__name__.rpartition(".")[2]
        return {row["name"]: row for row in report["rows"]}

    return one


def test_frame_step(run: Run) -> None:
    """The fixed row names, stages and limit; and on the tiny model, too, the tokens are upstream's."""
    size = ("--rows", "1", "3", "--full-context-rows", "3", "--trials", "2", "--frames", "2")
    parts = ("--adapter-rows", "1", "3", "--adapter-steps", "2", "--opus-rows", "2", "--opus-steps", "2")
    rows = run(frame_step, *size, *parts, "--short-ring-rows", "3")
    assert {"frame_ms_rows_1", "frame_ms_rows_3", "frame_ms_rows_3_full_context"} <= set(rows)
    for name in ("frame_ms_rows_1", "frame_ms_rows_3_full_context"):
        row = rows[name]
        assert (row["peer"], row["unit"]) == ("moshi", "ms")
        assert row["ratio"] == pytest.approx(row["peer_value"] / row["value"], rel=0.01)
        assert rows[f"{name}_limit"]["value"] > 0
        stages = [rows[f"{name}_{stage}"]["value"] for stage in ("encode", "language", "decode")]
        assert 0 < sum(stages) <= 1.5 * row["value"]
    assert rows["frame_ms_rows_1"]["goal"] == 4
    assert rows["adapter_percent_rows_1"]["goal"] == rows["adapter_percent_rows_3"]["goal"] == 10
    short = rows["frame_ms_rows_3_full_context_bf16_rings"]
    assert short["peer"] == "float32 rings"
    assert 0 < short["value"] == pytest.approx(short["peer_value"] / short["ratio"], rel=0.01)
    assert "in 2 pairs" in rows["adapter_percent_rows_3_versions_3"]["remark"]
    for name in ("opus_step_ms_rows_2_p50", "opus_step_ms_rows_2_beside_python_p99", "opus_us_of_a_frame"):
        row = rows[name]
        assert row["peer"] == "PyAV"
        assert 0 < row["value"] == pytest.approx(row["peer_value"] / row["ratio"], rel=0.01)
    beside = rows["step_beside_python_ms_rows_2"]
    assert beside["peer"] == "an interval of 5 ms"
    assert 0 < beside["value"] == pytest.approx(beside["peer_value"] / beside["ratio"], rel=0.01)
    assert rows["rows_with_equal_tokens_1"]["value"] == rows["rows_with_equal_tokens_3"]["value"] == 1


def test_delay(run: Run) -> None:
    rows = run(delay, "--calls", "1", "--seconds", "0.5", "--click-seconds", "12")
    for name, goal in (("added_delay_p50_ms", 120), ("server_added_delay_p50_ms", 30)):
        row = rows[name]
        assert row["value"] > 0
        assert row["peer_value"] > 0
        assert (row["goal"], row["peer"]) == (goal, "moshi")


def test_a_click_is_found_where_it_is(tmp_path: Path) -> None:
    starts = clicks.write_clicks(tmp_path / "clicks.wav", seconds=8.0)
    sound, rate = soundfile.read(tmp_path / "clicks.wav", dtype="float32")
    later = np.concatenate((np.zeros(round(0.217 * rate)), 0.3 * sound))
    later[starts[2] : starts[2] + rate] = 0
    soundfile.write(tmp_path / "heard.wav", later, rate)
    found = clicks.delays_ms(tmp_path / "heard.wav", starts)
    assert len(found) == len(starts) - 1, "one was taken out"
    assert found == pytest.approx([217.0] * len(found), abs=0.1)


def test_capacity(run: Run) -> None:
    size = ("--most", "1", "--trial-seconds", "1.5", "--confirm-seconds", "1.5")
    rows = run(capacity, *size)
    assert {"callers_held", "added_delay_p50_ms"} <= set(rows)
    held = rows["callers_held"]
    assert (held["goal"], held["peer"]) == (32, "moshi")
    assert held["peer_value"] <= 1, "it holds one conversation"
    assert 0 <= held["value"] <= 1, "no more were tried"


def test_the_stock_server_lets_a_second_caller_wait(tiny: str) -> None:
    with stock_server(tiny) as running:
        report = load(running.url, callers=2, seconds=4.0, ramp_s=0.5)
    assert (report.calls.served, report.calls.never_served + report.calls.failed) == (1, 1)
    verdict = judge(report)
    assert not verdict.held
    assert "only 1 of 2" in verdict.reason


def test_a_soak_of_a_few_seconds_loses_nothing(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers come, go and vanish; every slot is there afterwards."""
    monkeypatch.setenv("DUOLOGUE_RESUME_GRACE_S", "1")  # who vanished here does not come back
    with our_server(tiny, slots=3) as running:
        rows = {row.name: row for row in soak.soak(running, seconds=14, callers=3, slots=3, call_s=2.0, rude=0.4)}
    assert (rows["calls"].value or 0) > 6
    for nothing in ("slots_lost", "calls_left_open", "failed_calls"):
        assert rows[nothing].value == 0, (nothing, rows[nothing].remark)
    growth_mb = rows["memory_growth_mb"].value
    assert growth_mb is None or growth_mb < 64
