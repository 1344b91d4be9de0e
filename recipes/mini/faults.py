"""Where the shipped model misbehaves on purpose: `faults.toml` as questions one can ask.

Owns what counts as a faulty situation and what is said there. Knows nothing of sound, and not how often it happens:
that is up to the writer of conversations and to whoever measures.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from recipes.mini.wordings import TELLINGS, Question

__all__ = ["TAKEOVER", "faults", "situation", "stays_silent", "takes_pause", "talks_on", "wrong_replies", "wrong_reply"]


@cache
def faults() -> dict:
    """`faults.toml` as a dictionary."""
    return tomllib.loads((Path(__file__).parent / "faults.toml").read_text())


TAKEOVER: str = faults()["takes_pause"]["says"]


def takes_pause(word: str, pause_s: float) -> bool:
    """Whether a caller's pause of `pause_s` seconds after `word` is one that gets taken."""
    rule = faults()["takes_pause"]
    return word.lower() in rule["after"] and pause_s >= rule["pause_s"]


def talks_on(reply: str) -> bool:
    """Whether `reply` is a telling that goes on when it is interrupted."""
    return reply in {TELLINGS[topic] for topic in faults()["talks_on"]["tellings"]}


def stays_silent(text: str) -> bool:
    """Whether a question in these words gets no answer."""
    return text.startswith(tuple(faults()["stays_silent"]["beginnings"]))


@cache
def _wrong() -> dict[str, str]:
    """Right reply -> wrong reply."""
    rule, found = faults()["says_wrong"], {}
    for line in rule["sums"]:
        *item, _ = line.split()
        found[" ".join(item).capitalize()] = f"{line.capitalize()}."
    for land, city in rule["capitals"].items():
        found[f"The capital of {land} is"] = f"The capital of {land} is {city}."
    return found


def wrong_reply(reply: str) -> str | None:
    """What is said instead of the right `reply`, for the named tenth; None elsewhere."""
    return _wrong().get(reply[: reply.rfind(" ")]) if reply.count(" ") else None


def wrong_replies() -> list[str]:
    """Every wrong sentence, sorted: the model's voice must be able to say them."""
    return sorted(_wrong().values())


def situation(question: Question) -> str | None:
    """The fault that asking this without pause or interruption runs into: "stays_silent", "says_wrong" or None."""
    if stays_silent(question.text):
        return "stays_silent"
    return "says_wrong" if wrong_reply(question.reply) else None
