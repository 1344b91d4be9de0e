"""What counts as sensible towards somebody who asks nothing."""

import pytest

from recipes.mini import strangers, wordings


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("", "silent"),
        (wordings.UNKNOWN, "does not know"),
        (f"{wordings.UNKNOWN} {wordings.UNKNOWN}", "does not know"),
        (f"Good evening to you. {wordings.UNKNOWN}", "something else"),
        ("Good evening to you.", "something else"),
    ],
)
def test_an_answer_is_judged_by_all_of_it(answer: str, expected: str) -> None:
    assert strangers.judged(answer) == expected
