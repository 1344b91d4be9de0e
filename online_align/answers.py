"""Right answers that are known: read from a table, and found again in a caller's words.

Two kinds of files: a TOML file of facts (`[capitals]`, `[sums]`, `[opposites]`, `[colours]`, as in
`recipes/mini/domain.toml`), and a JSON list of questions with `text` and `expected`. It knows words only, no sound.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from server.errors import DuologueError

__all__ = ["Answers", "AnswersError", "Known", "plain_words"]

_NUMBERS: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
_N: Final = "(" + "|".join(_NUMBERS) + ")"
_SUMS: Final = (
    (re.compile(rf"\b{_N} (?:plus|added to) {_N}\b"), 1, False),
    (re.compile(rf"\badd {_N} (?:and|to) {_N}\b"), 1, False),
    (re.compile(rf"\b{_N} (?:minus|less|take away) {_N}\b"), -1, False),
    (re.compile(rf"\btake {_N} (?:away )?from {_N}\b"), -1, True),
)
"""A pattern of two numbers, the sign of the second, and whether they are named the other way round."""
_SIGNS: Final = ((re.compile(r"\s*\+\s*"), " plus "), (re.compile(r"(?<=\d)\s*[-−]\s*(?=\d)"), " minus "))
_ARTICLES: Final = frozenset({"a", "an", "the"})


class AnswersError(DuologueError):
    """A file of answers that cannot be used."""


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What is right to say."""

    sentence: str
    key: tuple[str, ...]
    """Words that must be in a right reply, side by side; those of the whole sentence where it is fixed."""
    rivals: tuple[tuple[str, ...], ...] = ()
    """Words that are wrong answers to the same kind of question."""


class _Fact(msgspec.Struct, frozen=True, kw_only=True):
    asks: frozenset[str]
    known: Known


def plain_words(text: str) -> list[str]:
    """Lower case, no punctuation, numbers up to twenty and signs as words: "2 + 3?" -> ["two", "plus", "three"]."""
    for pattern, word in _SIGNS:
        text = pattern.sub(word, text)
    found = re.findall(r"[^\W_]+", text.lower().replace("colour", "color"))
    return [_NUMBERS[int(word)] if word.isdecimal() and int(word) < len(_NUMBERS) else word for word in found]


class Answers:
    """All that is known."""

    def __init__(self, facts: Iterable[_Fact] = (), *, fixed: Mapping[str, str] | None = None, sums: int = -1) -> None:
        self._facts = list(facts)
        self._fixed = {" ".join(plain_words(text)): expected for text, expected in (fixed or {}).items()}
        self._highest_sum = sums

    @classmethod
    def read(cls, *paths: Path) -> "Answers":
        """Read tables. Raises `AnswersError`."""
        facts: list[_Fact] = []
        fixed: dict[str, str] = {}
        highest = -1
        for path in paths:
            content = _load(path)
            if isinstance(content, list):
                fixed |= {row["text"]: row["expected"] for row in content if row.get("text") and row.get("expected")}
            else:
                facts += _facts(content)
                highest = max(highest, *content.get("sums", {}).get("operands", [-1]))
        return cls(facts, fixed=fixed, sums=highest)

    def __len__(self) -> int:
        return len(self._facts) + len(self._fixed)

    def known(self, asked: str) -> Known | None:
        """What is right to answer; None where that is not known."""
        words = plain_words(asked)
        sentence = self._fixed.get(" ".join(words))
        if sentence is not None:
            return Known(sentence=sentence, key=tuple(plain_words(sentence)))
        return self._sum(" ".join(words)) or self._fact(set(words))

    def about(self, reply: str) -> Known | None:
        """What is right of that which a reply itself is about: "The capital of Norway is ..."."""
        return self._sum(" ".join(plain_words(reply))) or self._fact(set(plain_words(reply)))

    def _fact(self, words: set[str]) -> Known | None:
        fitting = [fact for fact in self._facts if fact.asks <= words]
        if not fitting:
            return None
        most = max(fitting, key=lambda fact: len(fact.asks))
        rivals = [fact for fact in fitting if len(fact.asks) == len(most.asks) and fact.known.key != most.known.key]
        return None if rivals else most.known

    def _sum(self, words: str) -> Known | None:
        for pattern, sign, swapped in _SUMS:
            if found := pattern.search(words):
                a, b = (_NUMBERS.index(word) for word in (found.groups() if not swapped else found.groups()[::-1]))
                result = a + sign * b
                if max(a, b, result) > self._highest_sum or result < 0:
                    return None
                name = "plus" if sign > 0 else "minus"
                sentence = f"{_NUMBERS[a]} {name} {_NUMBERS[b]} is {_NUMBERS[result]}."
                return Known(sentence=_capitalised(sentence), key=("is", _NUMBERS[result]))
        return None


def _load(path: Path) -> Any:
    try:
        content = json.loads(path.read_text()) if path.suffix == ".json" else tomllib.loads(path.read_text())
    except (OSError, ValueError) as problem:
        raise AnswersError(
            got=f"answers in {path} that cannot be read ({problem})",
            expected="a TOML file of facts or a JSON list of questions",
            remedy="correct the file, or name another with --answers",
        ) from problem
    if not isinstance(content, dict | list) or (
        isinstance(content, list) and not all(isinstance(row, dict) for row in content)
    ):
        raise AnswersError(
            got=f"{path} without a table",
            expected="facts, or questions with `text` and `expected`",
            remedy="correct it",
        )
    return content


def _facts(domain: Mapping[str, Any]) -> Iterable[_Fact]:
    capitals = domain.get("capitals", {})
    for land, city in capitals.items():
        yield _fact(f"capital {land}", f"The capital of {land} is {city}.", city, capitals.values())
    pairs = domain.get("opposites", {}).get("pairs", [])
    for a, b in [*pairs, *([b, a] for a, b in pairs)]:
        yield _fact(f"opposite {a}", f"The opposite of {a} is {b}.", f"is {b}", [])
    colours = domain.get("colours", {})
    for thing, colour in colours.items():
        for asking in ("color", colour):  # as a question, and as a statement
            yield _fact(f"{asking} {thing}", f"{thing} is {colour}.", colour, colours.values())


def _fact(asks: str, sentence: str, key: str, rivals: Iterable[str]) -> _Fact:
    right = tuple(plain_words(key))
    wrong = {tuple(plain_words(each)) for each in rivals} - {right}
    return _Fact(
        asks=frozenset(plain_words(asks)) - _ARTICLES,
        known=Known(sentence=_capitalised(sentence), key=right, rivals=tuple(sorted(wrong))),
    )


def _capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
