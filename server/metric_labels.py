"""The closed label sets of the server's metrics: every value a label can have, and what it means.

It knows nothing of Prometheus. None of these values names a caller, a call or what was said.
"""

from enum import StrEnum

__all__ = [
    "AdapterRole",
    "CommitResult",
    "EndReason",
    "FrameResult",
    "IgnoredMessage",
    "JournalFate",
    "Rejection",
    "Stage",
    "SwapResult",
]


class Stage(StrEnum):
    """Where a frame's time goes. All start and end on one monotonic clock."""

    INGEST = "ingest"
    """Frame complete in the inbox, until the step that takes it begins."""
    STEP = "step"
    """The engine's step, once for all rows in it."""
    ENCODE = "encode"
    """In the step: the codec hears."""
    TEMPORAL = "temporal"
    """In the step: the temporal transformer and the choice of the text token."""
    DEPTH = "depth"
    """In the step: the depth transformer, codebook by codebook."""
    DECODE = "decode"
    """In the step: the codec speaks."""
    OPUS_DECODE = "opus_decode"
    """A piece of a caller's message, at most 512 bytes, from Ogg/Opus to samples; before the frame is complete."""
    OPUS_ENCODE = "opus_encode"
    """One reply, from samples to Opus packets; it is part of `emit`."""
    EMIT = "emit"
    """Step done, until the reply is Opus and about to be written to the socket."""
    TOTAL = "total"
    """Frame complete in the inbox, until its reply is about to be written to the socket."""


class FrameResult(StrEnum):
    """What became of a frame."""

    ON_TIME = "on_time"
    """Answered within one frame's time of when it was due."""
    LATE = "late"
    """Answered later than that."""
    DROPPED = "dropped"
    """Reply sound thrown away because the caller's socket was slow."""
    SKIPPED = "skipped"
    """Caller's sound thrown away because it came faster than it could be heard."""
    STARVED = "starved"
    """Caller's sound that did not come: a gap of half a second or more between two of its messages, in frames."""


class EndReason(StrEnum):
    """Why a call ended."""

    HANG_UP = "hang_up"
    LOST = "lost"
    """The connection broke, and nobody came back in time."""
    BAD_AUDIO = "bad_audio"
    TOO_BIG = "too_big"
    IDLE = "idle"
    TOO_LONG = "too_long"
    TOO_FAST = "too_fast"
    """Its address sent more than it may."""
    UNAUTHORISED = "unauthorised"
    """Its token was taken away."""
    FAULT = "fault"
    """The model raised for this call alone."""
    DRAINED = "drained"
    FAILED = "failed"


class Rejection(StrEnum):
    """Why a caller got no slot."""

    BAD_PARAMETER = "bad_parameter"
    BAD_AUDIO = "bad_audio"
    FULL = "full"
    LOADING = "loading"
    DRAINING = "draining"
    FAILED = "failed"
    FAULT = "fault"
    """The engine raised when it opened the slot."""
    NOT_RESUMABLE = "not_resumable"
    UNAUTHORISED = "unauthorised"
    """No token where one is needed, or one that is nobody's."""
    FORBIDDEN = "forbidden"
    """A token or an origin that may not call."""
    TOO_MANY = "too_many"
    """More calls, or more bytes, from one address than it may."""
    TOO_MANY_OF_ONE = "too_many_of_one"
    """More calls of one person than they may have at once."""
    LEFT = "left"
    """Hung up, or was lost, while waiting."""


class IgnoredMessage(StrEnum):
    """Messages that are legal, and that nothing is done about."""

    TEXT_FRAME = "text_frame"
    EMPTY = "empty"
    KIND = "kind"
    METADATA = "metadata"


class JournalFate(StrEnum):
    """What became of a frame or signal that may be kept."""

    DURABLE = "durable"
    """On the disk."""
    DROPPED = "dropped"
    """Not taken: the disk was too slow."""
    LOST = "lost"
    """Taken, and then its commit failed."""


class CommitResult(StrEnum):
    """What became of a group commit."""

    OK = "ok"
    FAILED = "failed"
    """Nothing of it is on the disk: a full disk, a failed fsync, a database that is gone."""


class AdapterRole(StrEnum):
    """Which adapter speaks in a call, by what the adapter is at present. `duologue_adapter_info` gives its id."""

    BASE = "base"
    """None: the base model."""
    LIVE = "live"
    CANARY = "canary"
    OLDER = "older"
    """One that was live once; the call keeps it to its end."""


class SwapResult(StrEnum):
    """What became of an adapter that was to be put to use."""

    FLIPPED = "flipped"
    """New calls have it."""
    REFUSED = "refused"
    """Its files were not whole, not finite, not made for this model, or not those the registry names."""
