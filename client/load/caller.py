"""One synthetic caller: calls, talks on its own clock, hears, hangs up or vanishes, and calls again.

It plays ready pages and follows the pages of the reply; the one caller who is the probe also decodes them.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np
import sphn

from client.credentials import NOTHING, Credentials
from client.errors import CallLostError
from client.load.clock import LateLoop
from client.load.journey import Journey
from client.load.link import LoadLink, open_load_link
from client.load.pages import PageReader, PageWriter
from client.load.script import Script
from client.printable import read_text
from client.sound import FRAME_S, FRAME_SIZE, SAMPLE_RATE_HZ
from server import protocol
from server.protocol import FRAME_MS, CloseCode, Kind, QueuePosition, Stats

__all__ = ["Call", "Caller", "Habits", "Probe"]

_DRAIN_S: Final = 3.0
_QUIET_S: Final = 0.8
_LOUD: Final = 10 ** (-50 / 20)
_AGAIN_S: Final = (0.5, 2.0)


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """What all callers have in common."""

    url: str
    """The complete address of the calls; a seed is added to it."""
    credentials: Credentials = NOTHING
    call_s: float | None
    """Mean length of a call; None for one call that lasts to the end."""
    rude: float
    """Share of calls that end without a word."""


class Probe:
    """Decodes what one caller hears, to confirm what was counted without decoding."""

    def __init__(self) -> None:
        self._decoder = sphn.OpusStreamReader(SAMPLE_RATE_HZ)
        self._samples = 0
        self.frames = 0
        self.disagreements = 0
        """Messages after which the decoded frames and the pages' own count differed."""
        self.sounding = 0
        """Frames with sound in them."""
        self.text = ""

    def hear(self, ogg: bytes, counted: int) -> None:
        """Decode a message after which `counted` frames are complete by the pages' word."""
        pcm = np.asarray(self._decoder.append_bytes(ogg), np.float32)
        self._samples += len(pcm)
        self.frames = self._samples // FRAME_SIZE
        self.disagreements += self.frames != counted
        self.sounding += bool(len(pcm) and np.sqrt(np.square(pcm).mean()) > _LOUD)


class Call:
    """What is known of one call when it is over."""

    def __init__(self, probe: Probe | None) -> None:
        self.journey = Journey()
        self.probe = probe
        self.asked_at = 0.0
        self.began_at: float | None = None
        """When the handshake came; None when it never did."""
        self.ended_at = 0.0
        self.queued = False
        self.rude = False
        self.words = 0
        self.dropped_ms = 0
        self.skipped_ms = 0
        self.problem: str | None = None
        """What ended it, if that was neither this program nor the clock."""
        self.turned_away = False
        """Whether the server had no place for it."""


class Caller:
    """A place in the load, held by one call after the other."""

    def __init__(self, number: int, *, habits: Habits, script: Script, seed: int, probe: bool, until: float) -> None:
        """`until` is when the last call must end, on the loop's clock."""
        self.calls: list[Call] = []
        self._number = number
        self._habits = habits
        self._script = script
        self._seed = seed
        self._chance = random.Random(f"{seed}/{number}")  # the same load again for the same seed
        self._probe = probe
        self._until = until

    async def live(self, begins_at: float) -> None:
        """Call from `begins_at` on until it is over; again and again when calls have a length."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(begins_at - loop.time())
        while loop.time() < self._until - FRAME_S:
            self.calls.append(call := Call(Probe() if self._probe and not self.calls else None))
            await _Line(call, self._habits, self._script, self._chance, self._serial()).hold(self._end())
            if self._habits.call_s is None:
                return
            await asyncio.sleep(self._chance.uniform(*_AGAIN_S))

    def _serial(self) -> int:
        return self._chance.randrange(1, 1 << 31)

    def _end(self) -> float:
        if self._habits.call_s is None:
            return self._until
        now = asyncio.get_running_loop().time()
        return min(self._until, now + self._habits.call_s * self._chance.uniform(0.5, 1.5))


class _Line:
    """The work of one call. Sending is a chain of timers, receiving a callback; only waiting is a task."""

    def __init__(self, call: Call, habits: Habits, script: Script, chance: random.Random, serial: int) -> None:
        self._call = call
        self._habits = habits
        self._chance = chance
        self._writer = PageWriter(serial=serial, headers=script.headers)
        self._reader = PageReader()
        self._frames = script.frames(chance)
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._late_s: Callable[[], float] = loop.late_s if isinstance(loop, LateLoop) else lambda: 0.0
        self._ready: asyncio.Future[None] = loop.create_future()
        self._said: asyncio.Future[None] = loop.create_future()
        self._news = asyncio.Event()
        self._sentence = ""
        self._link: LoadLink | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def hold(self, until: float) -> None:
        """Hold the call, and note how it ended. Never raises for what the server does."""
        call = self._call
        call.asked_at = self._loop.time()
        try:
            shown = self._habits.credentials
            self._link = await open_load_link(self._url(), credentials=shown, on_message=self._take)
            await self._converse(self._link, until)
        except (ConnectionError, TimeoutError, OSError) as problem:
            call.problem = f"cannot connect ({str(problem) or type(problem).__name__})"
        finally:
            if self._timer:
                self._timer.cancel()
            if self._link:
                self._link.vanish()
            call.ended_at = self._loop.time()

    def _url(self) -> str:
        seed = self._chance.randrange(1 << 31)
        return f"{self._habits.url}{'&' if '?' in self._habits.url else '?'}text_seed={seed}&audio_seed={seed}"

    async def _converse(self, link: LoadLink, until: float) -> None:
        await self._either(self._ready, link, until)
        if self._ready.done():
            self._call.began_at = self._loop.time()
            self._speak_at(self._call.began_at + FRAME_S, until)
            await self._either(self._said, link, until + FRAME_S)
        if link.ended.done():
            ending = link.ended.result()
            self._call.turned_away = ending.code == CloseCode.FULL
            self._call.problem = self._call.problem or f"{self._sentence or ending.sentence} (code {ending.code})"
            return
        self._call.rude = self._chance.random() < self._habits.rude
        if self._call.rude:
            return
        await self._listen_on()
        await link.hang_up()

    async def _either(self, wanted: "asyncio.Future[None]", link: LoadLink, until: float) -> None:
        await asyncio.wait(
            (wanted, link.ended), timeout=max(0.0, until - self._loop.time()), return_when=asyncio.FIRST_COMPLETED
        )

    def _speak_at(self, due: float, until: float) -> None:
        """Send the frame that a microphone completes at `due`, then the next."""
        self._timer = self._loop.call_at(due, self._speak, due, until)

    def _speak(self, due: float, until: float) -> None:
        assert self._link is not None, "a call has a link"
        message = protocol.audio(self._writer.page(next(self._frames)))
        self._call.journey.send(due, self._loop.time())
        self._link.send(message)
        if due + FRAME_S <= until:
            self._speak_at(due + FRAME_S, until)
        elif not self._said.done():
            self._said.set_result(None)

    async def _listen_on(self) -> None:
        """Hear the replies that are still on their way, until a stretch without any."""
        journey, deadline, quiet = self._call.journey, self._loop.time() + _DRAIN_S, False
        while journey.unanswered > 0 and not quiet and self._loop.time() < deadline:
            self._news.clear()
            try:
                async with asyncio.timeout(_QUIET_S):
                    await self._news.wait()
            except TimeoutError:
                quiet = not self._news.is_set()  # this process may have been held up longer than they were
        journey.answered_all = quiet or journey.unanswered == 0

    def _take(self, message: bytes) -> None:
        """A message, in the callback that read it."""
        now = self._loop.time()
        kind, body = protocol.split(message)
        if kind is Kind.AUDIO:
            self._hear(body, now)
        elif kind is Kind.TEXT:
            self._call.words += 1
            if self._call.probe:
                self._call.probe.text += read_text(body)
        elif kind is Kind.METADATA:
            self._note(body)
        elif kind is Kind.HANDSHAKE and not self._ready.done():
            self._ready.set_result(None)
        elif kind is Kind.ERROR:
            self._sentence = read_text(body)

    def _hear(self, ogg: bytes, now: float) -> None:
        try:
            frames = self._reader.feed(ogg)
        except CallLostError as problem:
            self._call.problem = str(problem)
            assert self._link is not None, "sound comes over a link"
            self._link.vanish()
            return
        self._news.set()
        self._call.journey.hear(frames, now, self._late_s())
        if self._call.probe:
            self._call.probe.hear(ogg, self._reader.frames)

    def _note(self, body: bytes) -> None:
        note = protocol.read_metadata(body)
        if isinstance(note, QueuePosition):
            self._call.queued = True
        elif isinstance(note, Stats):
            self._call.dropped_ms, self._call.skipped_ms = note.dropped_ms, note.skipped_ms
            self._call.journey.lost = round((note.dropped_ms + note.skipped_ms) / FRAME_MS)
