"""What travels over `/api/chat`: one byte of kind, then the body. Server and client share this file.

It knows bytes and typed metadata. It knows nothing of sockets, sessions, models or Opus, and imports neither
torch nor moshi. The protocol is Moshi's; the `04` messages are ours, and each side ignores those it does not know.
"""

from enum import IntEnum
from typing import Final, Literal

import msgspec

__all__ = [
    "FRAME_MS",
    "HANDSHAKE",
    "PING",
    "WIRE_SAMPLE_RATE_HZ",
    "CloseCode",
    "Consent",
    "ConsentChange",
    "Feedback",
    "Kind",
    "Metadata",
    "Playback",
    "QueuePosition",
    "SessionStart",
    "SignalNotice",
    "Stats",
    "audio",
    "error",
    "metadata",
    "read_metadata",
    "split",
    "text",
]

FRAME_MS: Final = 80
WIRE_SAMPLE_RATE_HZ: Final = 24_000


class Kind(IntEnum):
    """First byte of a binary message. Kinds from 8 on exist elsewhere; the stock page throws on them: never sent."""

    HANDSHAKE = 0x00
    AUDIO = 0x01
    TEXT = 0x02
    CONTROL = 0x03
    METADATA = 0x04
    ERROR = 0x05
    PING = 0x06


class CloseCode(IntEnum):
    """WebSocket close codes that this server uses."""

    OK = 1000
    GOING_AWAY = 1001
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    BAD_REQUEST = 4400
    UNAUTHORISED = 4401
    """The token with which the call was begun holds no more: call again with another."""
    TIMED_OUT = 4408
    """The call, or the caller's silence, lasted longer than the server allows."""
    TAKEN_OVER = 4409
    """The call goes on over another connection, which showed its resume token."""
    GONE = 4410
    """The resume token is that of no call that can be resumed: call again without it."""
    FULL = 4429


HANDSHAKE: Final = bytes([Kind.HANDSHAKE])
PING: Final = bytes([Kind.PING])


class Consent(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller permits beyond being served: to keep the conversation, and to train on it."""

    keep: bool = False
    train: bool = False


class SessionStart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="session"):
    """Server, right after the handshake.

    `sample_rate` is that of the wire in Hz, whatever the model uses inside. `max_speed` is how many times
    real time the server lets this caller send. Who loses the connection may call again with `resume_token` as a
    query parameter and goes on with the same conversation; each token can be used once, and the next session message
    brings another. None when the server keeps no lost calls.
    """

    id: str
    adapter: str | None = None
    sample_rate: int = WIRE_SAMPLE_RATE_HZ
    frame_ms: int = FRAME_MS
    max_speed: float = 1.0
    resume_token: str | None = None
    consent: Consent = Consent()


class QueuePosition(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="queue"):
    """Server, while a caller waits. `position` counts from 1.

    `eta_s` is an estimate in seconds from how long calls have lasted; None while too few have ended to tell.
    """

    position: int
    eta_s: float | None = None


class Stats(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="stats"):
    """Server, at most once a second and only when something is wrong.

    `lag_ms` is the sound that waits on the server now, in both directions. `dropped_ms` is the reply sound
    and `skipped_ms` the caller's sound that was thrown away since the call began.
    """

    lag_ms: int
    dropped_ms: int
    skipped_ms: int = 0


class ConsentChange(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="consent"):
    """Client, at any moment: from now on these permissions hold."""

    keep: bool
    train: bool


class SignalNotice(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="signal"):
    """Server, as it happens: what was seen between the two speakers (`server.signals.SignalKind`).

    `t` is in seconds from the call's first frame. A later message with the same `id` revises an earlier one;
    `state` is `provisional`, `final` or `withdrawn`.
    """

    kind: str
    t: float
    confidence: float
    id: int = 0
    state: str = "final"
    latency_s: float | None = None


class Playback(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="playback"):
    """Client, now and then: how much of the reply's sound has really been heard, in milliseconds since it began."""

    played_ms: float


class Feedback(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="feedback"):
    """Client: what the caller thinks of what was said `t` seconds into the call, by default just now."""

    value: Literal["up", "down"]
    t: float | None = None


Metadata = SessionStart | QueuePosition | Stats | ConsentChange | SignalNotice | Playback | Feedback

_encoder: Final = msgspec.json.Encoder()
_decoder: Final[msgspec.json.Decoder[Metadata]] = msgspec.json.Decoder(Metadata)


def audio(ogg: bytes) -> bytes:
    """Wrap bytes of an Ogg/Opus stream; they need not be whole pages."""
    return bytes([Kind.AUDIO]) + ogg


def text(piece: str) -> bytes:
    """Wrap a piece of text."""
    return bytes([Kind.TEXT]) + piece.encode()


def error(sentence: str) -> bytes:
    """Wrap a sentence that says what was wrong and what to do."""
    return bytes([Kind.ERROR]) + sentence.encode()


def metadata(message: Metadata) -> bytes:
    """Wrap a typed metadata message as JSON."""
    return bytes([Kind.METADATA]) + _encoder.encode(message)


def split(message: bytes) -> tuple[Kind | None, bytes]:
    """Take a binary message apart. The kind is None when the message is empty or its kind is unknown."""
    if not message or message[0] > Kind.PING:
        return None, b""
    return Kind(message[0]), message[1:]


def read_metadata(body: bytes) -> Metadata | None:
    """Decode the body of a `04`. None when it is not JSON or not one of ours: such messages are ignored."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
