"""`benchmarks.swap` at toy size: real sockets, real files, two runs that add up; structure and counts, never a time."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import swap
from benchmarks.swap_bursts import Window
from benchmarks.swap_tally import Tally, read_tally, rows_of, write_tally
from tests.tiny_checkpoint import write_tiny_checkpoint

FIXED = ["swaps", "late_frames_caused", "flip_ms_max"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_runs_into_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap, "_SETTLE_S", 1.0)
    monkeypatch.setattr(swap, "_ROLLBACK_S", 3.0)  # and with it the load
    checkpoint = str(write_tiny_checkpoint(tmp_path / "tiny", sample_rate=24000))
    into = tmp_path / "swaps.json"

    def run() -> dict[str, Any]:
        arguments = ["--json", "--checkpoint", checkpoint, "--into", str(into), "--callers", "2", "--rank", "4"]
        swap.main([*arguments, "--swaps", "4", "--per-second", "2", "--window-seconds", "1", "--seconds", "1"])
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert report["benchmark"] == "swap"
        return {row["name"]: row for row in report["rows"]}

    first = run()
    assert set(FIXED) < set(first)
    assert first["swaps"]["value"] == 2
    assert first["late_frames_caused"]["goal"] == first["frames_lost"]["goal"] == 0
    for name in ("rollback_ms_max", "rollback_by_registry_ms_max"):  # measured where calls had fallen silent in time
        assert first[name]["value"] is None or 0 < first[name]["value"] < 30_000
    second = run()
    assert second["swaps"]["value"] == 4, "it goes on where the first one ended"
    assert "2 runs" in second["swaps"]["remark"]
    tally = read_tally(into, rank=4)
    assert [window.swaps for window in tally.windows] == [2, 0, 2, 0]
    assert len(tally.make_live_ms) == 4
    assert tally.callers == [2, 2]
    assert all(window.answered > 0 for window in tally.windows)
    assert len(tally.step_cost_ratios) == 2, "each run recorded its steps"
    if sys.platform == "linux":
        assert all(window.others_cores is not None for window in tally.windows), "and what the machine did"


def test_what_swaps_cause_is_above_what_happens_without() -> None:
    windows = [
        Window(swaps=10, seconds=10, answered=2000, late=7),
        Window(swaps=0, seconds=5, answered=1000, late=2),
    ]
    rows = {row.name: row for row in rows_of(Tally(rank=16, runs=1, callers=[8], windows=windows))}
    assert rows["late_frames_caused"].value == 3
    assert rows["late_frames_caused"].met is False
    assert rows["rollback_ms_max"].met is False, "what was not measured meets no goal"


def test_other_adapters_do_not_add_up(tmp_path: Path) -> None:
    path = tmp_path / "swaps.json"
    write_tally(path, Tally(rank=16, runs=1))
    with pytest.raises(ValueError, match=r"got rank 8; expected 16"):
        read_tally(path, rank=8)
    path.write_text("[]")
    with pytest.raises(ValueError, match="no earlier result"):
        read_tally(path, rank=16)
    assert read_tally(tmp_path / "none.json", rank=8) == Tally(rank=8)


@pytest.mark.parametrize(
    ("swaps", "seconds", "pairs"), [(1000, None, 50), (1000, 60.0, 4), (5, 600.0, 1), (0, None, 1)]
)
def test_how_many_windows_a_run_has(swaps: int, seconds: float | None, pairs: int) -> None:
    assert swap.Pace(per_window=20, with_s=10.0, without_s=4.0).pairs(swaps, seconds) == pairs
