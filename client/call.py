"""One call from the first frame to the last: say these frames, keep what comes back, report what happened.

**The clock.** Everything is placed on the call's frame clock, which starts with the caller's first sample. Moshi
never hears the caller's first frame, so the model's frame n stands beside the caller's frame n + 1: in training
those two are simultaneous, and so are the two channels of a recording, sample by sample. The model's side
therefore begins with one frame of silence.

A caller hears the model later than that. With Moshi's delays the sound of frame n exists when the caller's frame
n + 1 is complete: 80 ms after its place on the clock, and 160 ms after the start of the caller's frame n, the
last that could change it. The latter is measured, network included, and reported as `delay_ms`.

Where sound was lost (the server says so about once a second) silence takes its place, so that what follows
is aligned again.
"""

import asyncio
import time
from collections.abc import Iterable
from typing import Final

import msgspec
import numpy as np

from client.activity import Turn
from client.errors import ClientError
from client.link import OPUS_DELAY_SAMPLES, Event, Link, Piece, Sound
from client.recording import Recording
from client.sound import FRAME_S, FRAME_SIZE, Pcm
from server.protocol import FRAME_MS, SessionStart, Stats

__all__ = ["CallReport", "Quantiles", "TimedPiece", "hold_call"]

_POLL_S: Final = 0.05
_FIRST_HEARD: Final = 1
"""The caller's frame beside the model's frame 0: Moshi's `LMGen` ignores the first one it is given."""
_USUALLY_BEHIND: Final = 1
"""Moshi's models are one frame behind and so leave one unanswered for ever."""
_LINGER_S: Final = 0.2
_PATIENCE_S: Final = 5.0
"""How long to wait for more when everything is said: while no more frames are unanswered than usual, and otherwise,
when the reply is still on its way, the server or this machine is busy, or the model is one that stays further back."""


class TimedPiece(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the model's text and the place in the model's sound at which it was written, in seconds."""

    text: str
    t_s: float


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """The spread of a time, in milliseconds."""

    p50: float
    p95: float
    max: float


class CallReport(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in a call. Times in seconds on the call's clock (see this module) unless named otherwise.

    `first_audio_delay_s` runs from the caller's first sample to the arrival of the model's first sound, silent
    or not. `delay_ms` is, for every frame n of the model, the time from the start of the caller's frame n to its
    arrival, 160 ms of which are Moshi's own; it needs real time and is None at any other speed. `dropped_ms` and
    `skipped_ms` are what the server lost of the model's and of the caller's sound, `max_lag_ms` the most that
    waited there.
    """

    url: str
    session: str | None
    adapter: str | None
    text: str
    pieces: list[TimedPiece]
    turns: list[Turn]
    first_audio_delay_s: float | None
    delay_ms: Quantiles | None
    speed: float
    duration_s: float
    frames_sent: int
    frames_received: int
    dropped_ms: int
    skipped_ms: int
    max_lag_ms: int


async def hold_call(
    link: Link, frames: Iterable[Pcm], recording: Recording, *, url: str = "", speed: float = 1.0
) -> CallReport:
    """Say `frames` (float32 [FRAME_SIZE] each) at `speed` times real time and listen until the model is through.

    `frames` is asked for one frame at a time, when it is due, so it may decide by what was heard how to go on.
    A server that allows less than `speed` is obeyed. Raises ClientError.
    """
    call = _Call(link, recording, speed)
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(call.speak(frames))
            both.create_task(call.listen())
    except* ClientError as problems:
        raise problems.exceptions[0] from None
    return call.report(url)


class _Call:
    def __init__(self, link: Link, recording: Recording, speed: float) -> None:
        self._link = link
        self._recording = recording
        self._wanted_speed = speed
        self._fastest = 0.0
        self._began_at = time.monotonic()
        self._spoken = False
        self._frames_sent = 0
        self._samples_received = 0
        self._frames_lost = 0
        self._usually_behind = _USUALLY_BEHIND
        self._sound_at = 0.0
        self._first_audio_s: float | None = None
        self._delays_ms: list[float] = []
        self._pieces: list[TimedPiece] = []
        self._recording.model(np.zeros(_FIRST_HEARD * FRAME_SIZE, np.float32))
        self._stats = Stats(lag_ms=0, dropped_ms=0)
        self._max_lag_ms = 0

    async def speak(self, frames: Iterable[Pcm]) -> None:
        """Send every frame when a microphone would have completed it."""
        self._began_at = due = time.monotonic()
        for frame in frames:
            speed = min(self._wanted_speed, max(1.0, self._link.max_speed))
            self._fastest = max(self._fastest, speed)
            due += FRAME_S / speed
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._frames_sent += 1  # before it is sent, so that no answer can come sooner
            await self._link.send(frame)
            self._recording.user(frame)
        self._sound_at = time.monotonic()
        self._spoken = True

    async def listen(self) -> None:
        """Take what comes until everything was said and nothing more comes."""
        while not self._over():
            event = await self._link.receive(_POLL_S)
            if event is not None:
                self._take(event)

    def report(self, url: str) -> CallReport:
        """Sum up."""
        session: SessionStart | None = self._link.session
        delay = self._delay() if self._fastest == 1.0 else None
        heard_after_s = delay.p50 / 1000 - _FIRST_HEARD * FRAME_S if delay else None
        return CallReport(
            url=url,
            session=session.id if session else None,
            adapter=session.adapter if session else None,
            text="".join(piece.text for piece in self._pieces).strip(),
            pieces=self._pieces,
            turns=self._recording.turns([piece.t_s for piece in self._pieces], heard_after_s=heard_after_s),
            first_audio_delay_s=self._first_audio_s,
            delay_ms=delay,
            speed=self._fastest,
            duration_s=round(self._frames_sent * FRAME_S, 2),
            frames_sent=self._frames_sent,
            frames_received=self._frames_received(),
            dropped_ms=self._stats.dropped_ms,
            skipped_ms=self._stats.skipped_ms,
            max_lag_ms=self._max_lag_ms,
        )

    def _over(self) -> bool:
        if not self._spoken:
            return False
        patience_s = _LINGER_S if self._frames_behind() <= self._usually_behind else _PATIENCE_S
        return time.monotonic() - self._sound_at > patience_s

    def _take(self, event: Event) -> None:
        if isinstance(event, Sound):
            self._hear(event)
        elif isinstance(event, Piece):
            self._pieces.append(TimedPiece(text=event.text, t_s=round(self._newest_s(), 2)))
        elif isinstance(event, Stats):
            self._note_loss(event)

    def _hear(self, sound: Sound) -> None:
        self._sound_at = now = time.monotonic()
        if self._first_audio_s is None:
            self._first_audio_s = round(now - self._began_at, 3)
        self._delays_ms.append(1000 * (now - self._began_at - self._frames_placed() * FRAME_S))
        self._samples_received += len(sound.pcm)
        self._usually_behind = min(self._usually_behind, self._frames_behind())
        self._recording.model(sound.pcm)

    def _note_loss(self, stats: Stats) -> None:
        """Fill the place of what was lost since the last message with silence."""
        lost = stats.dropped_ms + stats.skipped_ms - self._stats.dropped_ms - self._stats.skipped_ms
        self._stats = stats
        self._max_lag_ms = max(self._max_lag_ms, stats.lag_ms)
        frames = max(0, round(lost / FRAME_MS))
        self._frames_lost += frames
        self._recording.model(np.zeros(frames * FRAME_SIZE, np.float32))

    def _newest_s(self) -> float:
        """Where the model's newest frame stands on the call's clock."""
        return (_FIRST_HEARD + max(0, self._frames_placed() - 1)) * FRAME_S

    def _frames_behind(self) -> int:
        return self._frames_sent - self._frames_placed()

    def _frames_placed(self) -> int:
        """How many frames of the model have their place: they came, or silence stands for them."""
        return self._frames_received() + self._frames_lost

    def _frames_received(self) -> int:
        return (self._samples_received + OPUS_DELAY_SAMPLES) // FRAME_SIZE

    def _delay(self) -> Quantiles | None:
        if not self._delays_ms:
            return None
        p50, p95, most = (round(float(q), 1) for q in np.percentile(self._delays_ms, (50, 95, 100)))
        return Quantiles(p50=p50, p95=p95, max=most)
