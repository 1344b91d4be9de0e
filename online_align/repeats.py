"""What callers said twice: found in a kept call by a recogniser, and added to its signals.

The caller's tokens are decoded, a recogniser hears each turn, and a turn with nearly the words of an earlier one is a
`repeat`. The words are compared and forgotten: of them only times and a number go into the journal. Runs offline, after
the call.
"""

import difflib
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from online_align.conversation import Turn
from online_align.transcribe import Recogniser, transcribe
from server.engine.checkpoint import Checkpoint
from server.errors import DuologueError
from server.journal import Journal, replace_signals
from server.journal.reader import SessionRow
from server.signals import Signal, SignalKind

__all__ = ["RULE", "Repeat", "RepeatError", "Repeated", "add_repeats", "alike", "find_repeats", "keep_repeats"]

RULE: Final = "repeat-1"

_SAY_LITTLE: Final = frozenset(
    "a an and are as at be but by can could did do does excuse for from had has have hello hey hi how i in is it its "
    "just know let like me my no not now of oh ok okay on or please right said say so sorry tell that the then there "
    "these this those to uh um wait want was we well were what when where which who why will with would yes you your "
    "name about again give meant s t d ll re ve m".split()
)
_NUMBERS: Final = "zero one two three four five six seven eight nine ten eleven twelve".split()
_LONG: Final = 3


class Repeated(msgspec.Struct, frozen=True, kw_only=True):
    """What counts as saying nearly the same again."""

    misheard: float = 0.5
    """Share of common letters from which two words may be one that a recogniser heard in two ways."""
    fewest_words: int = 2
    """"Yes" is said often, and is no repeat."""
    reach_s: float = 60.0
    """From the end of the first to the start of the second. Who asks the same much later wants to know it again."""


_DEFAULT: Final = Repeated()


class RepeatError(DuologueError):
    """A call in which repeats cannot be looked for."""


class Repeat(msgspec.Struct, frozen=True, kw_only=True):
    """A turn that says an earlier one again."""

    first: Turn
    again: Turn
    alike: float
    """0 to 1: see `alike`."""


def alike(one: str, other: str, rule: Repeated = _DEFAULT) -> float:
    """How alike two sentences are, 0 to 1; 0 where they do not ask the same.

    "The capital of Norway" and "the capital of Peru" share most words and ask for two things: so every word that says
    something must have its like in the other, but for one in a long sentence.
    """
    first, second = _telling(one), _telling(other)
    shared, lacking = 0.0, 0
    for how, a0, a1, b0, b1 in difflib.SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        if how == "equal":
            shared += a1 - a0
            continue
        for mine, its in zip(first[a0:a1], second[b0:b1], strict=False):
            letters = difflib.SequenceMatcher(None, mine, its, autojunk=False).ratio()
            if letters < rule.misheard or (mine in _NUMBERS and its in _NUMBERS):
                return 0.0
            shared += letters
        lacking += abs((a1 - a0) - (b1 - b0))
    if lacking > (max(len(first), len(second)) >= _LONG):
        return 0.0
    return 2 * shared / max(1, len(first) + len(second))


def find_repeats(turns: Sequence[Turn], rule: Repeated = _DEFAULT) -> list[Repeat]:
    """Compare each turn with the earlier ones in reach. The most alike counts, of equals the latest."""
    found = []
    for number, again in enumerate(turns):
        before = [turn for turn in turns[:number] if again.t0 - turn.t1 <= rule.reach_s]
        long = [turn for turn in before if min(_words(turn), _words(again)) >= rule.fewest_words]
        candidates = [Repeat(first=turn, again=again, alike=alike(turn.text, again.text, rule)) for turn in long]
        best = max(reversed(candidates), key=lambda each: each.alike, default=None)
        if best is not None and best.alike:
            found.append(best)
    return found


def add_repeats(journal: Journal, checkpoint: Checkpoint, about: SessionRow, recogniser: Recogniser) -> list[Signal]:
    """Find a call's repeats and put them into the journal, in place of those found before. Returns them.

    Raises `RepeatError` for a call that goes on, and what the journal raises.
    """
    if about.ended_at is None:
        raise RepeatError(
            got=f"session {about.id}, which goes on", expected="a call that has ended", remedy="ask again afterwards"
        )
    known = journal.reader.signals(about.id)
    conversation = transcribe(checkpoint, about, journal.reader.columns(about.id), known, recogniser=recogniser)
    return keep_repeats(journal, about.id, conversation.user, recogniser=recogniser.name)


def keep_repeats(journal: Journal, session: str, turns: Sequence[Turn], *, recogniser: str) -> list[Signal]:
    """Put the repeats among a call's transcribed turns into the journal, in place of those found before.

    Returns them. Raises what the journal raises.
    """
    found = [
        Signal(
            id=0,
            kind=SignalKind.REPEAT,
            t0=round(each.again.t0, 3),
            t1=round(each.again.t1, 3),
            confidence=round(each.alike, 3),
            latency_s=round(each.again.t0 - each.first.t1, 3),
            detector=f"{RULE}/{recogniser}"[:64],
        )
        for each in find_repeats(turns)
    ]
    return replace_signals(journal.engine, session, SignalKind.REPEAT, found)


def _words(turn: Turn) -> int:
    return len(turn.text.split())


def _telling(text: str) -> list[str]:
    """The words that say something; small numbers as words, as recognisers write them or not."""
    plain = [_spelt(word) for word in re.findall(r"[^\W_]+", text.lower())]
    return [word for word in plain if word not in _SAY_LITTLE]


def _spelt(word: str) -> str:
    return _NUMBERS[int(word)] if word.isascii() and word.isdigit() and int(word) < len(_NUMBERS) else word
