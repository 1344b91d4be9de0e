"""A conversation that outlives its connections: it talks, notices when nobody answers, and calls again.

One connection is a `client.link.Link`. When it breaks, the server keeps the call for a while, and the resume token
brings it back; when it cannot, a new conversation begins and the user is told so. It knows frames, the jitter buffer
and the state that the screen shows; sound cards, files and terminals are others' business.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Literal

from client.call_state import CallState, Connection
from client.credentials import NOTHING, Credentials
from client.errors import CallLostError, ClientError, HungUpError, RefusedError, ServerBusyError, UnreachableError
from client.jitter import JitterBuffer
from client.link import Event, Link, Piece, Sound, open_link
from client.microphone import Microphone
from client.sound import FRAME_S, SAMPLE_RATE_HZ
from server.protocol import (
    FRAME_MS,
    CloseCode,
    Feedback,
    Metadata,
    Playback,
    QueuePosition,
    SessionStart,
    SignalNotice,
    Stats,
)

__all__ = ["Conversation"]

_POLL_S: Final = 0.25
_REPORT_EVERY_S: Final = 1.0
_STALLED_AFTER_S: Final = 1.0
_LOST_AFTER_S: Final = 6.0
"""Without a word from the server, a call that can be resumed is resumed on a new connection."""
_ASLEEP_S: Final = 5.0
"""A loop that comes back so much later than it wanted was stopped with the whole machine, or the program."""
_WAITS_S: Final = (0.0, 0.5, 1.0, 2.0, 4.0)
_SMOOTHING: Final = 0.1
_RETRIED: Final = (CloseCode.GOING_AWAY, CloseCode.INTERNAL_ERROR)
"""Refusals of a call that was served: a server that stops, or a model that failed, may be back soon."""


class Conversation:
    """One conversation. `run` it until it is over; cancelling `run` hangs up in good order."""

    def __init__(
        self,
        url: str,
        *,
        microphone: Microphone,
        jitter: JitterBuffer,
        state: CallState,
        query: Mapping[str, str] | None = None,
        credentials: Credentials = NOTHING,
        patience_s: float = 120.0,
        output_s: Callable[[], float] = lambda: 0.0,
        frame_s: float = FRAME_S,
    ) -> None:
        """`patience_s` is how long a lost call is tried for, `output_s` gives how late the card plays.

        `frame_s` is how long a frame of the microphone lasts: less for a card that runs faster than real time.
        """
        self._url = url
        self._microphone = microphone
        self._jitter = jitter
        self._state = state
        self._query = dict(query or {})
        self._credentials = credentials
        self._patience_s = patience_s
        self._output_s = output_s
        self._frame_s = frame_s
        self._resume_token: str | None = None
        self._began_at_played = 0
        self._to_say: deque[Metadata] = deque()
        self._lost_at: float | None = None
        self._tries = 0

    async def run(self) -> None:
        """Talk until cancelled. Raises ClientError when the call cannot be had, or not again."""
        try:
            while True:
                try:
                    await self._connect()
                except ClientError as problem:
                    await asyncio.sleep(self._wait_after(problem))
        finally:
            self._state.connection = Connection.OVER

    def rate(self, value: Literal["up", "down"]) -> None:
        """Tell the server what the user thinks of what was just said."""
        self._to_say.append(Feedback(value=value))
        self._state.feedback = value
        self._state.tell("You said: good." if value == "up" else "You said: not good.")

    async def _connect(self) -> None:
        resuming = {"resume_token": self._resume_token} if self._resume_token else {}
        async with open_link(
            self._url, query=self._query | resuming, credentials=self._credentials, on_queue=self._wait_in_queue
        ) as link:
            self._begin(resumed=bool(resuming))
            line = _Line(link, self._frame_s, resumed=bool(resuming))
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._speak(line))
                    both.create_task(self._listen(line))
            except* ClientError as problems:
                raise problems.exceptions[0] from None

    def _begin(self, *, resumed: bool) -> None:
        """Somebody listens."""
        self._microphone.forget()
        self._jitter.restart()
        self._to_say.clear()
        if self._lost_at is not None:
            self._state.reconnected += 1
            sentence = "goes on where it was" if resumed else "was lost; this is a new one"
            self._state.tell(f"Connected again. The conversation {sentence}.")
        if not resumed:
            self._began_at_played = self._jitter.put_samples
            self._state.begin_anew()
        if self._state.began_at is None:
            self._state.began_at = time.monotonic()
        self._state.connection = Connection.TALKING
        self._lost_at = None
        self._tries = 0

    async def _speak(self, line: "_Line") -> None:
        reported_at = time.monotonic()
        while True:
            at, frame = await self._microphone.next_frame()
            line.said(at)
            await line.link.send(frame)
            if time.monotonic() - reported_at >= _REPORT_EVERY_S:
                reported_at = time.monotonic()
                self._to_say.append(Playback(played_ms=self._played_ms()))
            while self._to_say:
                await line.link.tell(self._to_say.popleft())

    async def _listen(self, line: "_Line") -> None:
        while True:
            watch = _Watch()
            event = await line.link.receive(_POLL_S)
            slept_s = watch.late_s - _POLL_S
            if event is not None:
                self._state.connection = Connection.TALKING
                self._take(line, event)
            if slept_s > _ASLEEP_S:
                raise CallLostError(f"This machine or program stood still for {slept_s:.0f} s.")
            self._judge_silence(line)

    def _judge_silence(self, line: "_Line") -> None:
        quiet_s = line.quiet_s
        if quiet_s > _STALLED_AFTER_S:
            self._state.connection = Connection.STALLED
        if quiet_s > _LOST_AFTER_S and self._resume_token:
            raise CallLostError(f"The server has sent nothing for {quiet_s:.0f} s.")

    def _take(self, line: "_Line", event: Event) -> None:
        line.heard_at = time.monotonic()
        match event:
            case Sound():
                waiting_s = self._jitter.waiting_ms / 1000
                self._jitter.put(event.pcm)
                self._note_delay(line.answered(len(event.pcm)), waiting_s + self._output_s())
            case Piece():
                self._state.add_words(event.text)
            case SignalNotice():
                self._state.add_signal(event)
            case Stats():
                self._note_loss(line, event)
            case SessionStart():
                self._meet(event)

    def _meet(self, session: SessionStart) -> None:
        self._resume_token = session.resume_token
        self._state.session = session.id
        self._state.adapter = session.adapter
        kept = (("kept", session.consent.keep), ("trained on", session.consent.train))
        self._state.consent = " and ".join(word for word, given in kept if given) or "not kept"

    def _note_delay(self, arrived_after_s: float | None, heard_after_s: float) -> None:
        if arrived_after_s is None:
            return
        delay_ms = 1000 * (arrived_after_s + heard_after_s)
        before = self._state.delay_ms
        self._state.delay_ms = delay_ms if before is None else before + _SMOOTHING * (delay_ms - before)

    def _note_loss(self, line: "_Line", stats: Stats) -> None:
        lost_ms = stats.dropped_ms + stats.skipped_ms
        line.lost(max(0, round((lost_ms - self._state.lost_ms) / FRAME_MS)))
        self._state.lag_ms, self._state.lost_ms = stats.lag_ms, lost_ms

    def _played_ms(self) -> float:
        """How far in the model's reply the loudspeakers are, with what the server lost of it."""
        samples = self._jitter.played - self._began_at_played
        return max(0.0, 1000 * (samples / SAMPLE_RATE_HZ - self._output_s()) + self._state.lost_ms)

    def _wait_in_queue(self, place: QueuePosition) -> None:
        self._state.connection = Connection.WAITING
        about = "" if place.eta_s is None else f", about {place.eta_s:.0f} s"
        self._state.tell(f"All places are taken: you are number {place.position} in the queue{about}.")

    def _wait_after(self, problem: ClientError) -> float:
        """Seconds until the next try. Raises `problem` when there is nothing to try."""
        if self._lost_at is None:
            self._lost_at = time.monotonic()
        if not self._is_mendable(problem) or time.monotonic() - self._lost_at > self._patience_s:
            raise problem
        if isinstance(problem, RefusedError) and not isinstance(problem, ServerBusyError):
            self._resume_token = None
        wait_s = 0.0 if _is_gone(problem) else _WAITS_S[min(self._tries, len(_WAITS_S) - 1)]
        self._tries += not _is_gone(problem)
        self._state.connection = Connection.LOST
        self._state.tell(f"{_in_short(problem)} Calling again{f' in {wait_s:g} s' if wait_s else ''}.")
        return wait_s

    def _is_mendable(self, problem: ClientError) -> bool:
        """Whether calling again may help: only for a call that was there, and ended other than by somebody's will."""
        if self._state.began_at is None or isinstance(problem, HungUpError):
            return False
        if isinstance(problem, RefusedError) and not isinstance(problem, ServerBusyError):
            return problem.code in (*_RETRIED, CloseCode.GONE)
        return isinstance(problem, CallLostError | UnreachableError | ServerBusyError)


def _is_gone(problem: ClientError) -> bool:
    """Whether the server is there and the call is not: there is nothing to wait for."""
    return isinstance(problem, RefusedError) and problem.code == CloseCode.GONE


def _in_short(problem: ClientError) -> str:
    if isinstance(problem, UnreachableError):
        return "No server answers."
    if _is_gone(problem):
        return "The server no longer has that conversation."
    if isinstance(problem, RefusedError):
        return f"The server says: {problem.reason.partition(';')[0] or 'no more'}."
    return str(problem)


class _Line:
    """One connection: which of the caller's frames the model's next one answers, and when anything was last heard."""

    def __init__(self, link: Link, frame_s: float, *, resumed: bool) -> None:
        self.link = link
        self.heard_at = time.monotonic()
        self._frame_s = frame_s
        self._said: deque[float] = deque()
        self._first = 0
        # The first sound of a call answers its first frame when it has heard the second; a resumed call's first sound
        # answers the frame before its first.
        self._received_s = -FRAME_S if resumed else 0.0

    @property
    def quiet_s(self) -> float:
        """Seconds since anything was heard."""
        return time.monotonic() - self.heard_at

    def said(self, complete_at: float) -> None:
        """Note a frame that is sent. Its first sample was heard one frame before its last."""
        self._said.append(complete_at - self._frame_s)

    def answered(self, samples: int) -> float | None:
        """Note sound that came. Gives the seconds since the start of the caller's frame that it answers."""
        index = int(self._received_s / FRAME_S + 0.5)
        self._received_s += samples / SAMPLE_RATE_HZ
        while len(self._said) > 1 and self._first < index:
            self._said.popleft()
            self._first += 1
        return time.monotonic() - self._said[0] if self._said and index >= 0 else None

    def lost(self, frames: int) -> None:
        """Note frames that will have no answer."""
        self._received_s += frames * FRAME_S


class _Watch:
    """A stretch of time by two clocks: one of them may stand still while the machine sleeps."""

    def __init__(self) -> None:
        self._began = (time.monotonic(), time.time())

    @property
    def late_s(self) -> float:
        """Seconds since it was made, by the clock that went on."""
        return max(now - began for now, began in zip((time.monotonic(), time.time()), self._began, strict=True))
