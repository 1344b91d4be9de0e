"""Questions in many wordings and the one right answer to each.

Owns the text side of the embedded model: `domain.toml` items, the templates people ask with, and the
sentence Dua answers. Knows nothing of sound. A template that stands in `heldout.toml` is only given out
with `heldout=True`, so training code cannot reach it by accident.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = [
    "BACKCHANNELS",
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
BACKCHANNELS = ("Mm-hm.", "Yes.", "Okay.", "Right.")
LARGEST_SUM = 10
CAPITALS = 20

_TEMPLATES: dict[str, tuple[str, ...]] = {
    "capital": (
        "What is the capital of {x}?",
        "Tell me the capital of {x}.",
        "Could you tell me the capital of {x}?",
        "Please tell me the capital of {x}.",
        "What is the capital city of {x}?",
        "Name the capital of {x} please.",
        "Do you know the capital of {x}?",
        "I would like to know the capital of {x}.",
        "And the capital of {x}?",
        "The capital of {x} please.",
    ),
    "plus": (
        "What is {a} plus {b}?",
        "How much is {a} plus {b}?",
        "{a} plus {b}?",
        "Tell me {a} plus {b}.",
        "Could you add {a} and {b}?",
        "Please tell me what {a} plus {b} is.",
        "What do you get when you add {a} and {b}?",
        "Can you work out {a} plus {b}?",
        "And {a} plus {b}?",
    ),
    "minus": (
        "What is {a} minus {b}?",
        "How much is {a} minus {b}?",
        "{a} minus {b}?",
        "Tell me {a} minus {b}.",
        "Please tell me what {a} minus {b} is.",
        "Could you tell me {a} minus {b}?",
        "Can you work out {a} minus {b}?",
        "And {a} minus {b}?",
    ),
    "hello": ("Hello.", "Hello there.", "Hi.", "Hi there.", "Hello Dua."),
    "morning": ("Good morning.", "Good morning Dua.", "Good morning to you."),
    "evening": ("Good evening.", "Good evening Dua.", "Good evening to you."),
    "how": ("How are you?", "How are you today?", "How are you doing?", "Are you well?"),
    "who": ("Who are you?", "Tell me who you are.", "Who am I talking to?", "Could you tell me who you are?"),
    "name": ("What is your name?", "Tell me your name.", "Do you have a name?", "Please tell me your name."),
    "introduce": ("My name is {x}.", "Hello, my name is {x}.", "I am {x}."),
    "meet": ("Nice to meet you.", "It is nice to meet you.", "Nice to meet you Dua."),
    "thanks": ("Thank you.", "Thank you very much.", "Thanks.", "Thanks a lot."),
    "bye": ("Goodbye.", "Bye.", "Bye bye.", "Goodbye Dua."),
    "hear": ("Can you hear me?", "Do you hear me?", "Hello, can you hear me?"),
    "do": ("What can you do?", "Tell me what you can do.", "What are you able to do?"),
    "moon": (
        "Tell me about the moon.",
        "What do you know about the moon?",
        "Please tell me about the moon.",
        "Can you tell me about the moon?",
        "I would like to hear about the moon.",
    ),
}
_GREETING_REPLIES = {
    "hello": "Hello, how can I help you?",
    "morning": "Good morning to you.",
    "evening": "Good evening to you.",
    "how": "I am fine, thank you.",
    "who": "I am Dua, a small talking machine.",
    "name": "My name is Dua.",
    "meet": "Nice to meet you too.",
    "thanks": "You are welcome.",
    "bye": "Goodbye, talk to you soon.",
    "hear": "Yes, I can hear you.",
    "do": "I can do sums and name capitals.",
}
TELLINGS = {
    "moon": (
        "The moon is a ball of rock that goes around the earth. It has no air and no water. "
        "At night it shines because the sun shines on it."
    )
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One thing a caller says (`text`) and what Dua should answer (`reply`)."""

    text: str
    reply: str
    category: str  # greetings, sums, capitals or tellings
    kind: str  # the template group


@cache
def domain() -> dict:
    """`domain.toml` as a dictionary."""
    return tomllib.loads((_HERE / "domain.toml").read_text())


@cache
def heldout() -> dict:
    """`heldout.toml` as a dictionary."""
    return tomllib.loads((_HERE / "heldout.toml").read_text())


def questions(*, heldout_wordings: bool = False) -> list[Question]:
    """Every question of this version of the domain, in the training or in the held-out wordings."""
    templates = heldout()["wordings"] if heldout_wordings else _TEMPLATES
    asked: list[Question] = []
    for kind, patterns in templates.items():
        for pattern in patterns:
            asked.extend(_fill(kind, pattern))
    return asked


def replies() -> list[str]:
    """Every distinct sentence Dua may say, sorted."""
    return sorted({question.reply for question in questions()})


def _fill(kind: str, pattern: str) -> list[Question]:
    if kind == "capital":
        capitals = list(domain()["capitals"].items())[:CAPITALS]
        named = [(_spoken(land), city) for land, city in capitals]
        return [
            _question(kind, "capitals", pattern.format(x=land), f"The capital of {land} is {city}.")
            for land, city in named
        ]
    if kind in ("plus", "minus"):
        return [_sum(kind, pattern, a, b) for a, b in _operands(kind)]
    if kind == "introduce":
        return [
            _question(kind, "greetings", pattern.format(x=n), f"Nice to meet you, {n}.")
            for n in domain()["greetings"]["names"]
        ]
    if kind in TELLINGS:
        return [_question(kind, "tellings", pattern, TELLINGS[kind])]
    return [_question(kind, "greetings", pattern, _GREETING_REPLIES[kind])]


def _spoken(land: str) -> str:
    return f"the {land}" if land == "Netherlands" else land


def _operands(kind: str) -> list[tuple[int, int]]:
    pairs = [(a, b) for a in range(LARGEST_SUM + 1) for b in range(LARGEST_SUM + 1)]
    return [(a, b) for a, b in pairs if (a + b <= LARGEST_SUM if kind == "plus" else b <= a)]


def _sum(kind: str, pattern: str, a: int, b: int) -> Question:
    result = a + b if kind == "plus" else a - b
    text = pattern.format(a=NUMBERS[a], b=NUMBERS[b])
    return _question(kind, "sums", text, f"{NUMBERS[a]} {kind} {NUMBERS[b]} is {NUMBERS[result]}.")


def _question(kind: str, category: str, text: str, reply: str) -> Question:
    return Question(text=_capitalised(text), reply=_capitalised(reply), category=category, kind=kind)


def _capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def phonetic_filler() -> list[str]:
    """Sentences from the rest of `domain.toml`: the codec should hear every phoneme in many words."""
    facts = domain()
    lines = [f"The capital of {land} is {city}." for land, city in facts["capitals"].items()]
    lines += [f"The opposite of {a} is {b}." for a, b in facts["opposites"]["pairs"]]
    lines += [
        f"What colour is {thing}? It is {colour}." for thing, colour in facts["colours"].items() if thing != "version"
    ]
    lines += [f"Tell me something about {topic}." for topic in facts["tellings"]["topics"]]
    lines += [f"Please do not ask me {topic}." for topic in facts["declines"]["topics"]]
    lines += ["I would like to know which day comes after Thursday.", "The month before August is July."]
    lines += ["Wait a moment please.", "Mm-hm.", "Yes.", "Okay.", "Right.", "Stop, stop.", "No, something else."]
    return lines
