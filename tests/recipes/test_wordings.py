"""The text side of the domain."""

import pytest

from recipes.mini import wordings


def test_every_sum_is_right() -> None:
    """The recipe must not teach wrong sums."""
    number = {name.capitalize(): i for i, name in enumerate(wordings.NUMBERS)} | {
        name: i for i, name in enumerate(wordings.NUMBERS)
    }
    sums = [q.reply.rstrip(".").split() for q in wordings.questions() if q.category == "sums"]
    assert sums
    for a, sign, b, _, result in sums:
        expected = number[a] + number[b] if sign == "plus" else number[a] - number[b]
        assert number[result] == expected


def test_every_capital_is_that_of_the_domain_file() -> None:
    """Answers come from `domain.toml`, not from a second list."""
    capitals = wordings.domain()["capitals"]
    for question in wordings.questions():
        if question.category == "capitals":
            land, city = question.reply.removeprefix("The capital of ").rstrip(".").split(" is ")
            assert capitals[land.removeprefix("the ")] == city


@pytest.mark.parametrize("category", ["greetings", "sums", "capitals", "tellings"])
def test_each_category_is_asked_in_many_wordings(category: str) -> None:
    """A category with few wordings would be learned by heart."""
    texts = {q.text for q in wordings.questions() if q.category == category}
    assert len(texts) >= 5


def test_nothing_asked_twice_has_two_answers() -> None:
    """The same words always mean the same question."""
    answer: dict[str, str] = {}
    for question in wordings.questions() + wordings.questions(heldout_wordings=True):
        assert answer.setdefault(question.text.lower(), question.reply) == question.reply
