"""A judge without a model: known answers, repetition and length. It works offline and always says the same.

What it does not know, it gives a middling mark: only certain faults are held against a reply.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from online_align.answers import Answers, Known, plain_words
from online_align.judge import AXES, Exchange, Marks

__all__ = ["RuleJudge"]

_BEST, _GOOD, _MIDDLING, _POOR, _WORST = 5.0, 4.0, 3.0, 2.0, 1.0
_LONG_WORDS: Final = 45
"""The embedded model's longest telling has 31 words."""
_GRAM: Final = 3
_REPEATED: Final = 0.2
"""Share of runs of three words that are there before: fluent speech hardly has any."""


class RuleJudge:
    """Marks by rule. `answers` says what is right where that is known."""

    name = "rules-1"

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def marks(self, exchanges: Sequence[Exchange]) -> list[Marks]:
        """Marks of each."""
        return [self._marks(exchange) for exchange in exchanges]

    def better_words(self, exchange: Exchange) -> str | None:
        """Give the right sentence, where the question or the reply says what it is about."""
        known = self._known(exchange)
        return known.sentence if known else None

    def _known(self, exchange: Exchange) -> Known | None:
        """What is right to say; where the question is not known, what is right of what the reply is about."""
        asked = self._answers.known(exchange.asked) if exchange.asked else None
        return asked or self._answers.about(exchange.reply)

    def _marks(self, exchange: Exchange) -> Marks:
        said = plain_words(exchange.reply)
        axes = dict.fromkeys(AXES, _BEST)
        if not said:
            low = ("helpfulness", "factual_accuracy", "instruction_adherence", "unresponsiveness")
            return Marks(axes=axes | dict.fromkeys(low, _WORST), reason="nothing was said")
        known = self._known(exchange)
        fact, reason = _fact(said, known) if known else (_MIDDLING, "no answer is known")
        useful = fact if self._answers.known(exchange.asked) else min(fact, _MIDDLING)  # true, but was it asked?
        axes |= {"factual_accuracy": fact, "helpfulness": useful, "instruction_adherence": max(useful, _POOR)}
        if _repetition(said) > _REPEATED:
            axes |= {"tone": _POOR, "helpfulness": min(axes["helpfulness"], _POOR)}
            reason += "; it repeats itself"
        if len(said) > _LONG_WORDS:
            axes["tone"] = min(axes["tone"], _MIDDLING)
            reason += "; it is long"
        return Marks(axes=axes, reason=reason)


def _fact(said: list[str], known: Known) -> tuple[float, str]:
    if not _within(known.key, said):
        return _WORST, "another answer is right"
    if any(_within(rival, said) and not _covers(known.key, rival) for rival in known.rivals):
        return _POOR, "the right answer, and a wrong one"
    exact = said == plain_words(known.sentence)
    return (_BEST, "the right answer") if exact else (_GOOD, "the right answer in other words")


def _covers(key: Sequence[str], rival: Sequence[str]) -> bool:
    """Mexico City holds Mexico: its name is no second answer."""
    return _within(rival, key)


def _within(part: Sequence[str], whole: Sequence[str]) -> bool:
    size = len(part)
    return any(tuple(whole[at : at + size]) == tuple(part) for at in range(len(whole) - size + 1))


def _repetition(said: Sequence[str]) -> float:
    grams = Counter(tuple(said[at : at + _GRAM]) for at in range(len(said) - _GRAM + 1))
    total = sum(grams.values())
    return (total - len(grams)) / total if total else 0.0
