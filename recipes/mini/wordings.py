"""Questions in many wordings and the one right answer to each.

Owns the text side of the embedded model: `domain.toml` items, the templates people ask with (`templates.toml`), and
the sentence Dua answers (`replies.toml`). Knows nothing of sound. Wordings and items that stand in `heldout.toml`
are only given out when asked for, so training code cannot reach them by accident.
"""

from __future__ import annotations

import string
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = [
    "BACKCHANNELS",
    "CATEGORIES",
    "NUMBERS",
    "TELLINGS",
    "Question",
    "domain",
    "heldout",
    "phonetic_filler",
    "questions",
    "replies",
]

_HERE = Path(__file__).parent
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
BACKCHANNELS = ("Mm-hm.", "Yes.", "Okay.", "Right.", "I see.")
CATEGORIES = (
    "sums capitals greetings names opposites colours sequences tellings declines unknown"  # how figures are grouped
).split()


@dataclass(frozen=True, kw_only=True)
class Question:
    """One thing a caller says (`text`) and what Dua should answer (`reply`)."""

    text: str
    reply: str
    category: str  # one of CATEGORIES
    kind: str  # the template group


@cache
def _file(name: str) -> dict:
    return tomllib.loads((_HERE / name).read_text())


def domain() -> dict:
    """`domain.toml` as a dictionary."""
    return _file("domain.toml")


def heldout() -> dict:
    """`heldout.toml` as a dictionary."""
    return _file("heldout.toml")


TELLINGS: dict[str, str] = _file("replies.toml")["tellings"]
UNKNOWN: str = _file("replies.toml")["others"]["unknown"]


@cache
def questions(*, heldout_wordings: bool = False, heldout_items: bool = False) -> tuple[Question, ...]:
    """Every question, in training or held-out wordings, about trained items or held-out ones."""
    templates = heldout()["wordings"] if heldout_wordings else _file("templates.toml")["asked"]
    kept = set(heldout()["items"]["sums"])
    asked: dict[str, Question] = {}
    for kind, patterns in templates.items():
        for pattern in patterns:
            for question in _FILL[kind](kind, pattern):
                unheard = " ".join(question.reply.lower().split()[:3]) in kept
                if unheard == heldout_items:
                    asked.setdefault(question.text.lower(), question)
    return tuple(asked.values())


def replies() -> list[str]:
    """Every distinct right answer of training, sorted."""
    names = [f"Your name is {name}." for name in domain()["greetings"]["names"]]
    return sorted({question.reply for question in questions()} | set(names))


def _capitals(kind: str, pattern: str) -> Iterator[Question]:
    for name, city in domain()["capitals"].items():
        land = f"the {name}" if name == "Netherlands" else name
        yield _question(kind, "capitals", pattern.format(x=land), f"The capital of {land} is {city}.")


def _sums(kind: str, pattern: str) -> Iterator[Question]:
    low, high = domain()["sums"]["operands"]
    for a in range(low, high + 1):
        for b in range(low, high + 1):
            result = a + b if kind == "plus" else a - b
            if low <= result <= high:
                text = pattern.format(a=NUMBERS[a], b=NUMBERS[b])
                yield _question(kind, "sums", text, f"{NUMBERS[a]} {kind} {NUMBERS[b]} is {NUMBERS[result]}.")


def _opposites(kind: str, pattern: str) -> Iterator[Question]:
    for pair in domain()["opposites"]["pairs"]:
        for a, b in (pair, pair[::-1]):
            yield _question(kind, "opposites", pattern.format(x=a), f"The opposite of {a} is {b}.")


def _colours(kind: str, pattern: str) -> Iterator[Question]:
    for thing, colour in domain()["colours"].items():
        yield _question(kind, "colours", pattern.format(x=thing), f"{thing} is {colour}.")


def _sequences(kind: str, pattern: str) -> Iterator[Question]:
    what, side = kind.split("_")
    items = {"day": DAYS, "month": MONTHS, "letter": list(string.ascii_uppercase), "number": NUMBERS}[what]
    circular = what in ("day", "month")
    for place, item in enumerate(items):
        other = place + 1 if side == "after" else place - 1
        if circular or other < len(items):
            found = items[other % len(items)]
            yield _question(kind, "sequences", pattern.format(x=item), f"{side} {item} comes {found}.")


def _tellings(kind: str, pattern: str) -> Iterator[Question]:
    for topic in domain()["tellings"]["topics"]:
        yield _question(kind, "tellings", pattern.format(x=topic), TELLINGS[topic])


def _declines(kind: str, pattern: str) -> Iterator[Question]:
    for topic in domain()["declines"]["topics"]:
        yield _question(kind, "declines", pattern.format(x=topic), _file("replies.toml")["others"]["decline"])


def _unknown(kind: str, pattern: str) -> Iterator[Question]:
    capitals = domain()["capitals"]
    fillers = {"{city}": list(capitals.values()), "{land}": list(capitals), "{name}": domain()["greetings"]["names"]}
    slot = next((s for s in fillers if s in pattern), None)
    for filler in fillers[slot] if slot else [""]:
        land = f"the {filler}" if filler == "Netherlands" else filler
        yield _question(kind, "unknown", pattern.replace(slot or "{}", land), UNKNOWN)


def _introductions(kind: str, pattern: str) -> Iterator[Question]:
    for name in domain()["greetings"]["names"]:
        yield _question(kind, "names", pattern.format(x=name), f"Nice to meet you, {name}.")


def _greetings(kind: str, pattern: str) -> Iterator[Question]:
    category = "names" if kind == "my_name" else "greetings"
    yield _question(kind, category, pattern, _file("replies.toml")["greetings"][kind])


_FILL: dict[str, Callable[[str, str], Iterator[Question]]] = {
    "capital": _capitals,
    "plus": _sums,
    "minus": _sums,
    "opposite": _opposites,
    "colour": _colours,
    **dict.fromkeys(("day_after", "day_before", "month_after", "month_before"), _sequences),
    **dict.fromkeys(("letter_after", "number_after"), _sequences),
    "telling": _tellings,
    "decline": _declines,
    "unknown": _unknown,
    "introduce": _introductions,
    **dict.fromkeys(_file("replies.toml")["greetings"], _greetings),
}


def _question(kind: str, category: str, text: str, reply: str) -> Question:
    return Question(text=_capitalised(text), reply=_capitalised(reply), category=category, kind=kind)


def _capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def phonetic_filler() -> list[str]:
    """Sentences that are no questions: the codec should hear every phoneme in many words."""
    facts = domain()
    lines = [f"The capital of {land} is {city}." for land, city in facts["capitals"].items()]
    lines += [f"The opposite of {a} is {b}." for a, b in facts["opposites"]["pairs"]]
    lines += ["I would like to know which day comes after Thursday.", "The month before August is July."]
    lines += ["Wait a moment please.", *BACKCHANNELS, "No, something else."]
    return lines
