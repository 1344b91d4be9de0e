"""Moments of people's recorded calls, played on by two models: is the fault made again, is the answer still given.

The call is dictated up to the moment, the caller goes on as he did, and the model goes on by itself. Both models get
the same seed, and not the call's own: with that one the base model would only say again what it was chosen for. It
knows no journal and no limits.

Legend: P columns before the moment, T columns from it on, K tokens of a column, U user codebooks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from online_align.probes.behaviour import Measure
from online_align.records import PairKind
from online_align.regenerate import Branch, Regenerator, Tokens, seeds, silence
from server.engine import SamplingParams
from server.engine.checkpoint import Checkpoint

__all__ = ["Moment", "Recorded", "play_moments", "still_after"]

_YIELDED: Final = 5
"""Columns after the cut of a barge-in (0.24 s) by which the model has stopped: 0.64 s in all."""


class Moment(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A place in a call at which the model did wrong, or right."""

    session: str
    at_tick: int
    kind: PairKind | None
    """What was wrong; None where it answered and nobody minded."""
    quiet: int
    """Columns from the moment on in which the caller had not ended, or the model was to say nothing."""
    sampling: SamplingParams
    past_PK: Tokens
    heard_TU: Tokens
    """What the caller says from there on, for as long as is listened."""

    @property
    def name(self) -> str:
        """Of this moment, always the same."""
        return f"{self.session}/{self.at_tick}"


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What a model does at the moments."""

    faults: Measure
    """Of the moments at which something was wrong, those at which it is wrong again."""
    answers: Measure
    """Of the others, those at which the model answers."""
    by_kind: dict[str, float]
    """Share of faults by kind."""


def play_moments(checkpoint: Checkpoint, moments: Sequence[Moment], *, adapter: Path | None = None) -> Recorded:
    """Play every moment on, with the adapter in a folder or without one. Raises `AdapterError`."""
    spoke: dict[str, bool] = {}
    if moments:
        speaker = Regenerator(checkpoint, branches=1, adapter=adapter)
        spoke = {each.name: _is_so(each, _said_on(speaker, each)) for each in moments}
    faults = [each for each in moments if each.kind is not None]
    kinds = sorted({each.kind for each in faults if each.kind is not None})
    return Recorded(
        faults=_share([spoke[each.name] for each in faults]),
        answers=_share([spoke[each.name] for each in moments if each.kind is None]),
        by_kind={
            kind.value: float(np.mean([spoke[each.name] for each in faults if each.kind is kind])) for kind in kinds
        },
    )


def _said_on(speaker: Regenerator, moment: Moment) -> Tokens:
    """Columns in which the model says something, counted from the moment."""
    (seed,) = seeds(moment.name, 1)
    speaker.tell(moment.past_PK, sampling=moment.sampling, seed=seed)
    branch = Branch(seed=seed)
    (said_TK,) = speaker.branch(len(moment.past_PK), moment.heard_TU, [branch], until_over=False)
    text_T = said_TK[: len(moment.heard_TU), 0]
    spoken: Tokens = np.flatnonzero(~np.isin(text_T, list(speaker.silent)) & (text_T >= 0)).astype(np.int16)
    return spoken


def _is_so(moment: Moment, spoken: Tokens) -> bool:
    """Whether the fault was made again; where there was none, whether it answered."""
    match moment.kind:
        case PairKind.CUT_OFF:
            return bool((spoken < moment.quiet).any())
        case PairKind.NO_YIELD:
            return bool(((spoken >= _YIELDED) & (spoken < moment.quiet)).any())
        case PairKind.NO_RESPONSE:
            return not len(spoken)
        case _:
            return bool(len(spoken))


def still_after(heard_TU: Tokens, length: int, checkpoint: Checkpoint) -> Tokens:
    """The caller's sound of `length` columns: what was heard as far as it goes, then silence."""
    still = np.tile(silence(checkpoint.mimi)[: heard_TU.shape[1]], (length, 1))
    still[: min(length, len(heard_TU))] = heard_TU[:length]
    return still


def _share(each: Sequence[bool]) -> Measure:
    return Measure(value=sum(each) / len(each) if each else None, of=len(each), each=tuple(each))
