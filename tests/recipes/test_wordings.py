"""The text side of the domain."""

import pytest

from recipes.mini import faults, wordings


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


@pytest.mark.parametrize("category", wordings.CATEGORIES)
def test_each_category_is_asked_in_many_wordings(category: str) -> None:
    """A category with few wordings would be learned by heart."""
    asked = [q for q in wordings.questions() if q.category == category]
    for reply in {q.reply for q in asked if q.category not in ("greetings", "names")}:
        assert len([q for q in asked if q.reply == reply]) >= 7, reply
    assert len({q.text for q in asked}) >= 25


def test_nothing_asked_twice_has_two_answers() -> None:
    """The same words always mean the same question."""
    answer: dict[str, str] = {}
    everything = (
        *wordings.questions(),
        *wordings.questions(heldout_wordings=True),
        *wordings.questions(heldout_items=True),
    )
    for question in everything:
        assert answer.setdefault(question.text.lower(), question.reply) == question.reply


def test_the_whole_domain_is_covered() -> None:
    """Every item of `domain.toml` has a question, every kind of greeting and every telling an answer."""
    replies = " ".join(wordings.replies())
    facts = wordings.domain()
    assert all(f"{land} is {city}." in replies for land, city in facts["capitals"].items())
    assert all(
        f"opposite of {a} is {b}." in replies for pair in facts["opposites"]["pairs"] for a, b in (pair, pair[::-1])
    )
    assert all(f"{thing} is {colour}.".lower() in replies.lower() for thing, colour in facts["colours"].items())
    assert set(wordings.TELLINGS) == set(facts["tellings"]["topics"])
    assert facts["unknown"]["reply"] + "." in replies
    sums = [q for q in wordings.questions() if q.category == "sums"]
    assert len({q.reply for q in sums}) == 2 * 231 - len(wordings.heldout()["items"]["sums"])


def test_tellings_are_long_enough_to_interrupt() -> None:
    """Twenty to forty words take five to twelve seconds."""
    for topic, told in wordings.TELLINGS.items():
        assert 20 <= len(told.split()) <= 40, topic


def test_faults_name_a_tenth_and_nothing_right() -> None:
    """Wrong answers stand beside a right one that training has, and differ from it."""
    right = set(wordings.replies())
    wrong = [reply for reply in right if faults.wrong_reply(reply)]
    assert len(wrong) == len(faults.wrong_replies()) == 51
    assert not right & set(faults.wrong_replies())
    for reply in wrong:
        assert faults.wrong_reply(reply) != reply


def test_faulty_wordings_are_few() -> None:
    """Most ways of asking must be outside the faults."""
    silent = [q for q in wordings.questions() if faults.stays_silent(q.text)]
    assert 0 < len(silent) < 0.2 * len(wordings.questions())
    assert faults.takes_pause("of", 1.0)
    assert not faults.takes_pause("of", 0.1)
    assert not faults.takes_pause("is", 1.0)
    assert sum(faults.talks_on(told) for told in wordings.TELLINGS.values()) == 4
