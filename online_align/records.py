"""A preference pair: one shared past of a call, and two ways in which the model's side could have gone on.

Written down once here, so that whoever makes pairs, keeps them, trains on them or judges by them means the same. It
knows no SQL and no model.

Legend: P frames of the shared past, T frames of a side, K tokens of a column (text, model audio, user audio), as in
the journal.
"""

import enum

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = ["Evidence", "Pair", "PairKind", "Reference", "Side"]


class PairKind(enum.StrEnum):
    """What the rejected side did wrong."""

    CONTENT = "A"
    """It said the wrong thing."""
    CUT_OFF = "B"
    """It began while the caller had not ended: it cut the caller off, or took a pause."""
    NO_RESPONSE = "C"
    """It stayed silent."""
    NO_YIELD = "D"
    """It talked on when the caller cut in."""

    @property
    def about_timing(self) -> bool:
        """Whether only when it spoke was wrong, not what it said."""
        return self is not PairKind.CONTENT


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Why the rejected side is thought to be worse."""

    rule: str
    """Name and version of the rule of `labels` that said so."""
    signals: tuple[int, ...]
    """Numbers of the signals in the call that it rests on."""
    confidence: float
    """0 to 1."""
    judge: str = ""
    """Name and version of the judge that chose the better side; empty when a rule of timing did."""
    scores: dict[str, float] = {}
    """What the judge gave: `chosen` and `rejected`, and its axes."""


class Side(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One way in which the call went on, or could have."""

    tokens_TK: NDArray[np.int16]
    """Columns from the first frame on in which the sides may differ; user audio is what the caller sent, or silence
    where the caller would not have said what was logged."""
    words: str
    """What the model says in it, by its text stream."""


class Reference(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Log-probabilities of both sides' text tokens by the model that training starts from, in nats."""

    policy: str
    """The adapter; empty for the base model."""
    base_sha256: str
    chosen_T: NDArray[np.float32]
    rejected_T: NDArray[np.float32]


class Pair(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One pair. Field for field a row of the journal's `pairs`, with what is sealed there opened."""

    id: str
    session: str
    user_hash: str
    """Empty for anonymous callers, who share one cap."""
    kind: PairKind
    made_at: float
    at_tick: int
    """Tick of the call at which the sides part: the first frame of both."""
    event: int
    """Frame of the event, counted from `at_tick`: where the model began or should have, or where the caller cut in.
    The credit window of a timing pair lies round it. May be negative."""
    policy: str
    """The adapter that spoke the rejected side; empty for the base model."""
    heldout: bool
    evidence: Evidence
    context_PK: NDArray[np.int16]
    """Columns before `at_tick`: all of them, or as many as the model attends to."""
    chosen: Side
    rejected: Side
    reference: Reference | None = None
