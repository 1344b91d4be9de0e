"""One call's connection: a WebSocket, Opus both ways, and a typed reason for every way it can fail.

This file knows the wire and nothing of files, clocks or what is said. It speaks to any server of Moshi's
protocol: what only Duologue sends is optional.
"""

import asyncio
import math
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode, urlsplit, urlunsplit

import msgspec
import numpy as np
import sphn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.http11 import Response

from client.credentials import NOTHING, Credentials
from client.errors import (
    CallLostError,
    CertificateError,
    ClientError,
    HungUpError,
    NotAuthorisedError,
    RefusedError,
    ServerBusyError,
    UnreachableError,
)
from client.printable import printable, read_text
from client.sound import FRAME_SIZE, SAMPLE_RATE_HZ, Pcm
from server import protocol
from server.protocol import CloseCode, Kind, QueuePosition, SessionStart, SignalNotice, Stats

__all__ = ["OPUS_DELAY_SAMPLES", "Event", "Link", "Piece", "Sound", "chat_url", "open_link"]

OPUS_DELAY_SAMPLES: Final = 156
"""What libopus holds back at 24 kHz (6.5 ms). It is cut off, so that the reply starts where the model's sound does."""

_DEAD_AFTER_S: Final = 20.0
_CONNECT_S: Final = 10.0
_LONGEST_REASON: Final = 400
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


class Sound(msgspec.Struct, frozen=True, kw_only=True):
    """Sound of the model, float32 [samples] at 24 kHz; mostly one frame."""

    pcm: Pcm


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the model's text; a space in front begins a word."""

    text: str


class _Ready(msgspec.Struct, frozen=True):
    """The handshake: the server listens from now on."""


Event = Sound | Piece | Stats | SessionStart | QueuePosition | SignalNotice | _Ready


class Link:
    """An open call. Only one task may receive, and only one may send."""

    def __init__(self, socket: ClientConnection) -> None:
        self.session: SessionStart | None = None
        """What the server told about the call, if it is one that tells."""
        self._socket = socket
        self._encoder = sphn.OpusStreamWriter(SAMPLE_RATE_HZ)
        self._decoder = sphn.OpusStreamReader(SAMPLE_RATE_HZ)
        self._to_cut = OPUS_DELAY_SAMPLES
        self._sentence = ""
        self._heard_at = time.monotonic()

    @property
    def max_speed(self) -> float:
        """How many times real time the server lets this caller send; 1 until it says otherwise."""
        return self.session.max_speed if self.session else 1.0

    async def send(self, frame: Pcm) -> None:
        """Send float32 [FRAME_SIZE] at 24 kHz. Raises RefusedError or CallLostError."""
        assert frame.shape == (FRAME_SIZE,), "the caller cuts frames"
        await self._put(protocol.audio(bytes(self._encoder.append_pcm(frame))))

    async def tell(self, message: protocol.Metadata) -> None:
        """Send metadata, which servers of others ignore. Raises RefusedError or CallLostError."""
        await self._put(protocol.metadata(message))

    async def receive(self, timeout_s: float = math.inf) -> Event | None:
        """Wait for something worth knowing; None when there was nothing within `timeout_s`.

        Raises RefusedError, ServerBusyError or CallLostError when the call has ended.
        """
        message = await self._get(min(timeout_s, _DEAD_AFTER_S + 0.1))
        if message is not None:
            self._heard_at = time.monotonic()
            return self._read(message)
        if time.monotonic() - self._heard_at > _DEAD_AFTER_S:
            raise CallLostError(f"The server has sent nothing for {_DEAD_AFTER_S:.0f} s: it or the network is gone.")
        return None

    async def wait_for_slot(self, on_queue: Callable[[QueuePosition], None]) -> None:
        """Wait for the handshake; `on_queue` is told the position as often as the server tells it."""
        while not isinstance(event := await self.receive(), _Ready):
            if isinstance(event, QueuePosition):
                on_queue(event)

    def _read(self, message: bytes | str) -> Event | None:
        """Type a message; None for what is of no interest: pings, control, kinds to come, text frames."""
        kind, body = protocol.split(message) if isinstance(message, bytes) else (None, b"")
        if kind is Kind.HANDSHAKE:
            return _Ready()
        if kind is Kind.AUDIO:
            return self._decode(body)
        if kind is Kind.TEXT:
            return Piece(text=read_text(body))
        if kind is Kind.METADATA:
            return self._note(body)
        if kind is Kind.ERROR:
            self._sentence = read_text(body)
        return None

    def _note(self, body: bytes) -> SessionStart | QueuePosition | SignalNotice | Stats | None:
        note = protocol.read_metadata(body)
        if isinstance(note, SessionStart):
            shown = note.adapter and printable(note.adapter)
            note = self.session = msgspec.structs.replace(note, id=printable(note.id), adapter=shown)
        elif isinstance(note, SignalNotice):
            note = msgspec.structs.replace(note, kind=printable(note.kind))
        return note if isinstance(note, SessionStart | QueuePosition | SignalNotice | Stats) else None

    def _decode(self, ogg: bytes) -> Sound | None:
        try:
            pcm = np.asarray(self._decoder.append_bytes(ogg), np.float32)
        except ValueError as problem:
            raise CallLostError(f"The server sent sound that is not Ogg/Opus ({problem}).") from problem
        cut = min(self._to_cut, len(pcm))
        self._to_cut -= cut
        return Sound(pcm=pcm[cut:]) if len(pcm) > cut else None

    async def _put(self, message: bytes) -> None:
        try:
            await self._socket.send(message)
        except ConnectionClosed as closed:
            raise self._ending(closed) from closed

    async def _get(self, timeout_s: float) -> bytes | str | None:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._socket.recv()
        except TimeoutError:
            return None
        except ConnectionClosed as closed:
            raise self._ending(closed) from closed

    def _ending(self, closed: ConnectionClosed) -> ClientError:
        """Make the error of a call that the other side ended, with the sentence of its `05` if there was one."""
        if closed.rcvd is None:
            return CallLostError("The connection to the server broke. Call again when the network is back.")
        code, sentence = closed.rcvd.code, self._sentence or printable(closed.rcvd.reason)
        if code == CloseCode.UNAUTHORISED:
            return NotAuthorisedError(f"The server ended the call: {sentence or 'it gave no reason'}.")
        if code == CloseCode.FULL:
            return ServerBusyError(sentence, code=code)
        if sentence or code != CloseCode.OK:
            return RefusedError(sentence, code=code)
        return HungUpError("The server hung up before the call was over.")


@asynccontextmanager
async def open_link(
    url: str,
    *,
    query: Mapping[str, str] | None = None,
    credentials: Credentials = NOTHING,
    on_queue: Callable[[QueuePosition], None] = lambda _: None,
) -> AsyncIterator[Link]:
    """Call the server at `url`, wait for a slot, and hang up at the end of the block.

    `query` holds sampling parameters; a token goes into an Authorization header. Raises UnreachableError,
    CertificateError, NotAuthorisedError, RefusedError, ServerBusyError or CallLostError.
    """
    socket = await _connect(chat_url(url, query or {}), credentials)
    try:
        link = Link(socket)
        await link.wait_for_slot(on_queue)
        yield link
    except CallLostError:
        socket.transport.abort()  # a farewell would say that the call is over, and nobody could come back to it
        raise
    finally:
        await socket.close()


def chat_url(url: str, query: Mapping[str, str]) -> str:
    """Complete a server's address: `http://host` becomes `ws://host/api/chat?...`. Raises UnreachableError."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in ("ws", "wss") or not parts.hostname:
        raise UnreachableError(f"Got the address {url!r}; expected one such as ws://127.0.0.1:8998.")
    path = parts.path if parts.path not in ("", "/") else "/api/chat"
    joined = "&".join(filter(None, (parts.query, urlencode(query))))
    return urlunsplit((scheme, parts.netloc, path, joined, ""))


async def _connect(url: str, credentials: Credentials) -> ClientConnection:
    parts = urlsplit(url)
    place = f"{parts.scheme}://{parts.netloc}"
    try:
        return await connect(
            url,
            additional_headers=credentials.headers,
            ssl=credentials.tls if parts.scheme == "wss" else None,
            compression=None,
            open_timeout=_CONNECT_S,
            close_timeout=2,
            proxy=None if parts.hostname in _LOOPBACK else True,
        )
    except InvalidStatus as problem:
        raise _not_upgraded(place, problem.response) from problem
    except ssl.SSLCertVerificationError as problem:
        raise CertificateError(
            f"The certificate of {place} is not believed ({problem.verify_message}). If it is a server's own, copy its "
            "tls/cert.pem from the server's data folder and give it with --ca."
        ) from problem
    except (OSError, TimeoutError, InvalidHandshake, InvalidURI) as problem:
        raise UnreachableError(
            f"No dialogue server answers at {place} ({str(problem) or 'timed out'}). "
            "Start one with `duologue-server`, or name another with --url."
        ) from problem


def _not_upgraded(place: str, response: Response) -> ClientError:
    status = response.status_code
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        reason = read_text(response.body or b"").strip()[:_LONGEST_REASON]
        said = f" It says: {reason}." if reason else ""
        return NotAuthorisedError(
            f"The server at {place} does not let this caller in (HTTP {status}): give a token with --token-file or "
            f"in DUOLOGUE_TOKEN.{said}"
        )
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return ServerBusyError("this address has asked too often, try again in a few seconds", code=status)
    return UnreachableError(f"{place} answered HTTP {status} instead of a call: it is not a dialogue server.")
