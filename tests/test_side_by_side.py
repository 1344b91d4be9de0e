"""`make test` runs the suite as two processes: what either finds is told, and the folders that are named are there."""

import sys
from pathlib import Path

import pytest

from tests.__main__ import COMPUTES, side_by_side

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("behind", "ahead", "code"), [(0, 0, 0), (3, 0, 3), (0, 4, 4), (3, 4, 4)])
def test_the_one_that_fails_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], behind: int, ahead: int, code: int
) -> None:
    def ends_with(name: str, number: int) -> list[str]:
        return [sys.executable, "-c", f"print('{name} is here'); raise SystemExit({number})"]

    assert side_by_side(tmp_path, behind=ends_with("one", behind), ahead=ends_with("other", ahead)) == code
    assert capfd.readouterr().out.split("\n")[:2] == ["other is here", "one is here"]


def test_each_folder_that_is_named_has_tests() -> None:
    for name in COMPUTES:
        assert list((ROOT / "tests" / name).glob("test_*.py")), name
