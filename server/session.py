"""One caller: from the socket to the inbox, and from the outbox to the socket.

This file owns a call's stream of messages in both directions. A call can outlive its socket: `attach` makes it
ready for another. It knows nothing of slots, other callers or the engine; the scheduler takes from the inbox and
puts into the outbox.
"""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgspec

from server import protocol
from server.boxes import HeardFrame, Inbox, Outbox, Reply, Throttle
from server.config import ServerConfig
from server.endings import Endings
from server.engine import SamplingParams, model_name
from server.metrics import AdapterRole, FrameResult, IgnoredMessage, Metrics, Stage
from server.ogg import OggWriter
from server.parameters import CallParameters
from server.protocol import Consent, ConsentChange, Feedback, Kind, Playback, SessionStart, SignalNotice, Stats
from server.signals import Signal
from server.sound import PACKET_MS, SoundEncoder, SoundReader, slices
from server.words import WordReader

__all__ = ["ModelInfo", "Report", "Session", "SessionView", "Wire"]

log = logging.getLogger(__name__)

_LAG_WORTH_TELLING: Final = 4
_MOST_NOTICES: Final = 64
_GAP_S: Final = 0.5
"""Between two messages with sound: more than a client's packing and a network's jitter explain."""

Report = Consent | Playback | Feedback
"""What a client says about the call, beside sound."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a session and `/api/info` must know of the model."""

    checkpoint: str
    """As the operator named it: `mini`, `hf:owner/name`, or a folder with its path."""
    device: str
    slots: int
    sample_rate: int
    frame_size: int
    frame_rate: float
    codebooks: int
    """Tokens in a frame: text, model audio, user audio."""
    model_codebooks: int
    tokenizer: Any
    silent_tokens: frozenset[int]
    recommended_sampling: SamplingParams
    base_sha256: str = ""
    """Of the language model's weights: which model it was, whatever its folder is called."""
    context_frames: int = 0
    """Frames the model remembers; 0 when that is not known."""
    work: str = ""
    """What does the work on a frame: `native`, `kernels` or `upstream`."""
    cache_dtype: str = ""
    """What keys and values are kept in."""
    fallback: str = ""
    """Why the work is not done in the best way for this kind of device; empty where it is."""

    @property
    def name(self) -> str:
        """What anybody may know of `checkpoint`: not where the operator keeps it."""
        return model_name(self.checkpoint)

    @property
    def frame_s(self) -> float:
        """Seconds in a frame."""
        return 1.0 / self.frame_rate

    def frames(self, milliseconds: float) -> int:
        """Whole frames in a time."""
        return max(1, int(milliseconds * self.frame_rate / 1000))


class SessionView(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `/api/sessions`. Nothing of what was said."""

    id: str
    slot: int
    model: str
    """Name of the base model."""
    adapter: str
    """Id of the adapter that speaks now; empty for the base model."""
    age_s: float
    parked: bool
    """Its connection was lost, and its slot waits for the caller to come back."""
    resumed: int
    """How often the caller has come back."""
    heard_frames: int
    sent_frames: int
    lag_ms: int
    dropped_ms: int
    skipped_ms: int


class Wire(Protocol):
    """The half of a WebSocket that a session needs."""

    async def next_message(self) -> bytes | str | None:
        """Give the next binary or text message; None when there will be no more."""

    async def send(self, message: bytes) -> None:
        """Send a binary message, waiting while the peer does not read. Raises `ConnectionError` when it is gone."""


class Session:
    """The state and the two directions of one call."""

    def __init__(
        self,
        *,
        model: ModelInfo,
        parameters: CallParameters,
        config: ServerConfig,
        metrics: Metrics,
        on_frame: Callable[[], None],
        on_report: Callable[["Session", Report], None] = lambda _session, _report: None,
        user_hash: str = "",
    ) -> None:
        self.id = secrets.token_hex(8)
        self.user_hash = user_hash
        """Stands for the caller in what is kept; empty for the anonymous."""
        self.parameters = parameters
        self.consent = parameters.consent
        self.inbox = Inbox(limit=model.frames(config.inbox_ms), max_speed=config.max_speed, frame_s=model.frame_s)
        self.outbox = Outbox(limit=model.frames(config.outbox_ms))
        self.slot: int | None = None
        self.adapter = ""
        """Id of the adapter that speaks now; empty for the base model. The tick thread sets both."""
        self.adapter_role = AdapterRole.BASE
        """Which adapter speaks, for the metrics: whoever gives the call an adapter sets it."""
        self.encoder: SoundEncoder | None = None
        """Of the stream to the present socket; None while there is none. The encoding thread uses it."""
        self.endings = Endings(max_session_s=config.max_session_s, idle_s=config.idle_s)
        self._model = model
        self._config = config
        self._metrics = metrics
        self._on_frame = on_frame
        self._on_report = on_report
        self._notices: deque[bytes] = deque(maxlen=_MOST_NOTICES)
        self._throttle = Throttle(max_speed=config.max_speed, frame_s=model.frame_s)
        self._words = WordReader(model.tokenizer, silent=model.silent_tokens)
        self._came_at = time.monotonic()
        self._sockets = 0
        self._heard_frames = 0
        self._sent_frames = 0
        self._told = (0, 0)
        self._told_at = 0.0
        self.attach()

    def attach(self) -> None:
        """Make ready for a socket, the first or another: streams begin anew in both directions."""
        self._sockets += 1
        self.encoder = SoundEncoder(sample_rate=self._model.sample_rate)
        self._ogg = OggWriter(head=self.encoder.head, packet_ms=PACKET_MS)
        self._reader = SoundReader(sample_rate=self._model.sample_rate, frame_size=self._model.frame_size)
        self.endings.heard()

    def detach(self) -> None:
        """Do without a socket: until there is another nothing is encoded, and of what waits only the text is kept."""
        self.encoder = None
        if lost := self.outbox.mute():
            self._metrics.count_frames(FrameResult.DROPPED, lost)

    @property
    def model(self) -> ModelInfo:
        """What it talks with."""
        return self._model

    def adopt(self, model: ModelInfo) -> None:
        """Talk with another model, before a word was said: what the caller did not wish is as that one recommends."""
        before, sampling = self._model.recommended_sampling, self.parameters.sampling
        fields = msgspec.structs.asdict(model.recommended_sampling)
        news = {name: value for name, value in fields.items() if getattr(sampling, name) == getattr(before, name)}
        self.parameters = msgspec.structs.replace(self.parameters, sampling=msgspec.structs.replace(sampling, **news))
        self._model = model
        self._words = WordReader(model.tokenizer, silent=model.silent_tokens)

    def start(self, slot: int) -> None:
        """From now on what the caller says is heard. What was said while waiting is forgotten."""
        self.slot = slot
        self._metrics.admission_wait.observe(time.monotonic() - self._came_at)
        self.endings.start()
        self._reader.forget()

    async def listen(self, wire: Wire) -> None:
        """Move messages into the inbox until the peer has gone. Raises `AudioFormatError`."""
        while (message := await wire.next_message()) is not None:
            if isinstance(message, str):
                self._ignore(IgnoredMessage.TEXT_FRAME)
                continue
            kind, body = protocol.split(message)
            if kind is Kind.AUDIO:
                await self._hear(body)
            elif kind is Kind.METADATA:
                self._note(body)
            elif kind is not Kind.PING:
                self._ignore(IgnoredMessage.KIND if message else IgnoredMessage.EMPTY)

    async def speak(self, wire: Wire, *, resume_token: str | None) -> None:
        """Greet, then send what the outbox gives, for ever. Raises `ConnectionError`."""
        await wire.send(protocol.HANDSHAKE)
        await wire.send(protocol.metadata(self._greeting(resume_token)))
        while True:
            reply = await self.outbox.get(self._patience_s())
            if self._stats_due():
                await wire.send(protocol.metadata(self._stats()))
            elif reply is None:
                await wire.send(protocol.PING)
            while self._notices:
                await wire.send(self._notices.popleft())
            if reply is not None:
                await self._send(wire, reply)

    def take_signals(self, signals: Sequence[Signal]) -> None:
        """Tell the caller what was seen, with the next reply. On the event loop."""
        self._notices.extend(protocol.metadata(_notice(signal)) for signal in signals)

    def take_reply(self, reply: Reply, encoder: SoundEncoder | None) -> None:
        """Put a reply into the outbox, on the event loop. Sound for a socket that is gone is dropped."""
        self._heard_frames += 1
        if reply.sound and encoder is not self.encoder:
            reply = msgspec.structs.replace(reply, sound=())
        if reply.sound:
            self._metrics.observe(Stage.OPUS_ENCODE, reply.encode_s)
        self._metrics.observe(Stage.INGEST, reply.began_at - reply.heard_at)
        if lost := self.outbox.put(reply):
            self._metrics.count_frames(FrameResult.DROPPED, lost)

    def view(self) -> SessionView:
        """Describe the call for an operator."""
        stats = self._stats()
        return SessionView(
            id=self.id,
            slot=-1 if self.slot is None else self.slot,
            model=self._model.name,
            adapter=self.adapter,
            age_s=round(self.endings.age_s, 1),
            parked=self.encoder is None,
            resumed=self._sockets - 1,
            heard_frames=self._heard_frames,
            sent_frames=self._sent_frames,
            lag_ms=stats.lag_ms,
            dropped_ms=stats.dropped_ms,
            skipped_ms=stats.skipped_ms,
        )

    async def _hear(self, ogg: bytes) -> None:
        """Decode on the event loop (about 0.1 ms for a frame), making room for others in a long message."""
        gap_s = self.endings.heard()
        if gap_s >= _GAP_S:
            self._metrics.count_frames(FrameResult.STARVED, int(gap_s / self._model.frame_s))
        for piece in slices(ogg):
            began_at = time.monotonic()
            frames = list(self._reader.feed(piece))
            now = time.monotonic()
            self._metrics.observe(Stage.OPUS_DECODE, now - began_at)
            if self.slot is not None:
                for pcm in frames:
                    self._queue_frame(HeardFrame(pcm=pcm, at=now))
            wait_s = self._throttle.spend(len(frames), len(piece), now)
            if wait_s or len(ogg) > len(piece):
                await asyncio.sleep(wait_s)

    def _queue_frame(self, frame: HeardFrame) -> None:
        if skipped := self.inbox.put(frame):
            self._metrics.count_frames(FrameResult.SKIPPED, skipped)
        self._on_frame()

    def _note(self, body: bytes) -> None:
        message = protocol.read_metadata(body)
        if isinstance(message, ConsentChange):
            self.consent = Consent(keep=message.keep, train=message.train)
            self._on_report(self, self.consent)
        elif isinstance(message, Playback | Feedback):
            if isinstance(message, Playback):
                self._measure_playback(message)
            self._on_report(self, message)
        else:
            self._ignore(IgnoredMessage.METADATA)

    def _ignore(self, kind: IgnoredMessage) -> None:
        self._metrics.count_ignored(kind)
        log.debug("call %s: ignored a message (%s)", self.id, kind)

    async def _send(self, wire: Wire, reply: Reply) -> None:
        if reply.sound:
            self._measure(reply)
            await wire.send(protocol.audio(self._ogg.write(reply.sound)))
        if words := self._words.read(reply.token):
            await wire.send(protocol.text(words))

    def _measure(self, reply: Reply) -> None:
        now = time.monotonic()
        total_s = now - reply.heard_at
        on_time = now - reply.due_at <= self._model.frame_s
        self._sent_frames += 1
        self._metrics.observe(Stage.EMIT, now - reply.stepped_at)
        self._metrics.observe(Stage.TOTAL, total_s)
        self._metrics.count_frames(FrameResult.ON_TIME if on_time else FrameResult.LATE)

    def _measure_playback(self, report: Playback) -> None:
        """Tell how far the ear is behind the mouth; a client that claims to be ahead is not believed."""
        heard_s = (self._heard_frames + len(self.inbox)) * self._model.frame_s
        behind_s = heard_s - (report.played_ms + self._stats().dropped_ms) / 1000
        if behind_s >= 0:
            self._metrics.mic_to_speaker.observe(behind_s)

    def _greeting(self, resume_token: str | None) -> SessionStart:
        return SessionStart(
            id=self.id,
            adapter=self.adapter or None,
            frame_ms=round(1000 * self._model.frame_s),
            max_speed=self._config.max_speed,
            resume_token=resume_token,
            consent=self.consent,
        )

    def _stats(self) -> Stats:
        frame_ms = 1000 * self._model.frame_s
        return Stats(
            lag_ms=round((len(self.inbox) + len(self.outbox)) * frame_ms),
            dropped_ms=round(self.outbox.dropped * frame_ms),
            skipped_ms=round(self.inbox.skipped * frame_ms),
        )

    @property
    def _lost(self) -> tuple[int, int]:
        return self.outbox.dropped, self.inbox.skipped

    def _stats_due(self) -> bool:
        """Whether something is wrong that the caller was not told in the last `stats_interval_s`."""
        now = time.monotonic()
        behind = len(self.inbox) + len(self.outbox) >= _LAG_WORTH_TELLING
        if now - self._told_at < self._config.stats_interval_s or not (behind or self._lost != self._told):
            return False
        self._told, self._told_at = self._lost, now
        return True

    def _patience_s(self) -> float:
        """How long nothing need be said: less than `keepalive_s` while a loss is untold, which may be the last."""
        if self._lost == self._told:
            return self._config.keepalive_s
        due_s = self._told_at + self._config.stats_interval_s - time.monotonic()
        return min(self._config.keepalive_s, max(0.0, due_s))


def _notice(signal: Signal) -> SignalNotice:
    return SignalNotice(
        kind=str(signal.kind),
        t=signal.t0,
        confidence=signal.confidence,
        id=signal.id,
        state=str(signal.state),
        latency_s=signal.latency_s,
    )
