"""The two sides of a pair, as tokens: what was said until the caller reacted, and the best of what could have been.

Branches of the model go on from the cut under its wish: one as the call was sampled, the others more daring. Those that
do not do what was wished for are left out; of the rest a judge takes the best, or without one the first. Where none is
good enough and the judge knows better words, the model says those. It knows no journal.

Legend: T frames, K tokens of a column, U user codebooks.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from online_align.faults import Cut
from online_align.judge import Exchange, Judge, Marks
from online_align.records import PairKind
from online_align.regenerate import Branch, Regenerator, Tokens, seeds, silence, word_pieces
from server.engine import SamplingParams

__all__ = ["Better", "NoBetterError", "say_better"]

_REST: Final = 12
"""Columns of silence that are left after a side's last word."""
_WINDOW: Final = 26
"""Columns from the event on that a timing pair is judged by: two seconds, and the event itself."""
_DARING: Final = 0.9
"""Text temperature of the branches that look for something better; the sound is sampled as in the call."""
_FAIR: Final = 3.0
"""A reply that is only better timed must not have a lower mark than this."""
_SURELY_RIGHT: Final = 4.0
"""From this mark on, a reply counts although it had to be made to begin where the model answers by itself or not."""
_UNHEARD: Final = "given words are not heard in its sound"


class NoBetterError(ValueError):
    """Nothing better was said; `reason` says why in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Better(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Both sides."""

    chosen_TK: Tokens
    chosen_words: str
    rejected_TK: Tokens
    rejected_words: str
    judge: str = ""
    scores: dict[str, float] = {}


class _Spoken(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What one branch came to."""

    tokens_TK: Tokens
    words: str
    by_itself: bool = True
    """It began before it had to."""
    marks: Marks | None = None


def say_better(
    speaker: Regenerator,
    call_TK: Tokens,
    cut: Cut,
    *,
    name: str,
    sampling: SamplingParams,
    judge: Judge | None,
    branches: int,
    longest: int,
    margin: float,
    hears: Callable[[Tokens, str], bool] | None = None,
) -> Better:
    """Give both sides of a cut. The call must have been told to `speaker`; `name` seeds the branches.

    `hears` says whether the words can be heard in a side's columns: given words are only taken where they can. A small
    model's sound follows what it means to say more than what is dictated to its text. Raises `NoBetterError`,
    `JudgeError`.
    """
    scene = _Scene(speaker, call_TK, cut, name=name, sampling=sampling, judge=judge, longest=longest)
    rejected = scene.rejected()
    chosen = scene.best(branches)
    least = _FAIR if cut.kind.about_timing or rejected.marks is None else rejected.marks.overall + margin
    unheard = False
    if chosen is None or (chosen.marks is not None and chosen.marks.overall < least):
        told = scene.told(rejected)
        unheard = told is not None and hears is not None and not hears(told.tokens_TK, told.words)
        chosen = told if told is not None and not unheard else chosen
    if chosen is None:
        raise NoBetterError(_UNHEARD if unheard else "no branch did what was wished for")
    if chosen.marks is not None and chosen.marks.overall < least:
        raise NoBetterError(_UNHEARD if unheard else "nothing better was said")
    if chosen.words == rejected.words and not cut.kind.about_timing:
        raise NoBetterError("the same was said")
    return Better(
        chosen_TK=chosen.tokens_TK,
        chosen_words=chosen.words,
        rejected_TK=rejected.tokens_TK,
        rejected_words=rejected.words,
        judge="" if judge is None else judge.name,
        scores=_scores(chosen.marks, rejected.marks),
    )


class _Scene:
    """One cut and all that is tried there."""

    def __init__(
        self,
        speaker: Regenerator,
        call_TK: Tokens,
        cut: Cut,
        *,
        name: str,
        sampling: SamplingParams,
        judge: Judge | None,
        longest: int,
    ) -> None:
        if cut.quiet + _WINDOW > longest:
            raise NoBetterError("the caller went on for too long")
        if cut.reaction - cut.at < 2:
            raise NoBetterError("the caller reacted at once")
        self._speaker = speaker
        self._cut = cut
        self._name = name
        self._sampling = sampling
        self._judge = judge
        self._logged_TK = call_TK[cut.at : min(cut.reaction, cut.at + longest)]
        self._user_TU = self._user_side(call_TK.shape[1], longest)

    def _user_side(self, codebooks: int, longest: int) -> Tokens:
        """What the caller says on the better side: as logged until he reacted to the other one, then nothing."""
        first_user = 1 + self._speaker.model_codebooks
        still = np.tile(silence(self._speaker.checkpoint.mimi)[: codebooks - first_user], (longest, 1))
        still[: len(self._logged_TK)] = self._logged_TK[:, first_user:]
        return still

    def rejected(self) -> _Spoken:
        """What was really said, until the caller reacted or it was over."""
        spoken = self._spoken_at(self._logged_TK)
        if self._cut.kind is not PairKind.NO_RESPONSE and not len(spoken):
            raise NoBetterError("nothing was said there")
        last = int(spoken[-1]) + 1 if len(spoken) else len(self._logged_TK)
        tokens = self._logged_TK[: max(last + _REST, _WINDOW + self._cut.event)].copy()
        made = _Spoken(tokens_TK=tokens, words=self._words(tokens))
        return made if self._cut.kind.about_timing else self._marked([made])[0]

    def best(self, branches: int) -> _Spoken | None:
        """The best of fresh samples that do what is wished for; None where none does."""
        greedy = self._sampling.text_greedy
        plain, *others = seeds(self._name, branches)
        found = self._say([Branch(seed=plain, **self._wish())], self._sampling)
        if self._judge is not None or not any(each.by_itself for each in found):
            daring = msgspec.structs.replace(
                self._sampling,
                use_sampling=True,
                text_temperature=max(_DARING, 0.0 if greedy else self._sampling.text_temperature),
                audio_temperature=0.0 if self._sampling.audio_greedy else self._sampling.audio_temperature,
            )
            found += self._say([Branch(seed=each, **self._wish()) for each in others], daring)
        marked = [each for each in self._marked(found) if self._is_trusted(each)]
        return max(marked, key=lambda each: (_mark(each), each.by_itself), default=None)

    def _is_trusted(self, each: _Spoken) -> bool:
        """Who is made to begin may say anything. After a silence there is no other way, and the question was heard."""
        return each.by_itself or self._cut.kind is PairKind.NO_RESPONSE or _mark(each) >= _SURELY_RIGHT

    def told(self, rejected: _Spoken) -> _Spoken | None:
        """The judge's own words in the model's voice; None where it knows none."""
        if self._judge is None:
            return None
        words = self._judge.better_words(Exchange(asked=self._cut.asked, reply=rejected.words))
        if not words:
            return None
        pieces = word_pieces(self._speaker.checkpoint.text_tokenizer, words)
        said = self._say([Branch(seed=seeds(self._name, 1)[0], words=pieces, **self._wish())], self._sampling)
        return next(iter(self._marked(said)), None)

    def _wish(self) -> dict[str, Any]:
        return {"quiet_until": self._cut.quiet, "start_by": self._cut.start_by}

    def _say(self, branches: Sequence[Branch], sampling: SamplingParams) -> list[_Spoken]:
        """Let branches be said, and keep those that begin when they should; what is to be right must end, too."""
        if not branches:
            return []
        said = self._speaker.branch(self._cut.at, self._user_TU, branches, sampling=sampling)
        return [
            _Spoken(tokens_TK=tokens, words=self._words(tokens), by_itself=self._began_by_itself(tokens))
            for tokens in said
            if self._is_as_wished(tokens)
        ]

    def _began_by_itself(self, tokens_TK: Tokens) -> bool:
        return int(self._spoken_at(tokens_TK)[0]) <= self._cut.start_by

    def _is_as_wished(self, tokens_TK: Tokens) -> bool:
        spoken = self._spoken_at(tokens_TK)
        if not len(spoken) or not self._cut.quiet <= int(spoken[0]) <= self._cut.start_by + 2:
            return False
        return self._cut.kind.about_timing or len(tokens_TK) < len(self._user_TU)

    def _marked(self, spoken: Sequence[_Spoken]) -> list[_Spoken]:
        if self._judge is None or not spoken:
            return list(spoken)
        marks = self._judge.marks([Exchange(asked=self._cut.asked, reply=each.words) for each in spoken])
        return [msgspec.structs.replace(each, marks=mark) for each, mark in zip(spoken, marks, strict=True)]

    def _spoken_at(self, tokens_TK: Tokens) -> np.ndarray[Any, np.dtype[np.intp]]:
        return np.flatnonzero(~np.isin(tokens_TK[:, 0], list(self._speaker.silent)) & (tokens_TK[:, 0] >= 0))

    def _words(self, tokens_TK: Tokens) -> str:
        text = tokens_TK[self._spoken_at(tokens_TK), 0]
        return str(self._speaker.checkpoint.text_tokenizer.decode([int(token) for token in text])).strip()


def _mark(spoken: _Spoken) -> float:
    return 0.0 if spoken.marks is None else spoken.marks.overall


def _scores(chosen: Marks | None, rejected: Marks | None) -> dict[str, float]:
    found: dict[str, float] = {}
    for side, marks in (("chosen", chosen), ("rejected", rejected)):
        if marks is not None:
            found |= {side: marks.overall} | {f"{side}_{axis}": mark for axis, mark in marks.axes.items()}
    return found
