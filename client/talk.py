"""`duologue talk`: a call with a microphone, loudspeakers and a screen.

This file owns the command line and puts the parts together; `client.conversation` holds the call.
"""

import argparse
import asyncio
import contextlib
import functools
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

from client.arguments import (
    EXIT_CODES,
    add_sampling_arguments,
    add_server_arguments,
    sampling_query,
)
from client.call_state import CallState
from client.card_keeper import running
from client.consent import ConsentFile, consent_of, query_value
from client.conversation import Conversation
from client.credentials import read_credentials
from client.devices import PortAudioCard
from client.echo import HEADPHONES_ADVICE, EchoCanceller, NoCancellation, WebRtcCanceller
from client.errors import ClientError
from client.jitter import JitterBuffer, JitterFigures
from client.keys import listening_to_keys
from client.live_recording import LiveRecording
from client.microphone import Microphone
from client.screen import PlainScreen, Screen, clock
from client.sound_card import FileCard, SoundCard
from client.speaker import Speaker
from client.talk_devices import list_devices, try_devices
from server.protocol import Consent

__all__ = ["EXIT_CODES", "add_arguments", "run"]

_PLAIN_EVERY_S: Final = 0.25
_SOUND_FILES: Final = (".wav", ".flac", ".ogg", ".opus", ".oga")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of `duologue talk`."""
    add_server_arguments(parser)
    sound = parser.add_argument_group("sound")
    sound.add_argument("--input", metavar="DEVICE", help="microphone: a number, part of a name, or a sound file")
    sound.add_argument("--output", metavar="DEVICE", help="loudspeakers: a number, part of a name, or a WAV file")
    sound.add_argument("--list-devices", action="store_true", help="show what there is, and end")
    sound.add_argument("--test-devices", action="store_true", help="play a tone, show the microphone's level, and end")
    sound.add_argument(
        "--echo-cancellation",
        choices=("on", "off"),
        default="on",
        help="take the model's voice out of the microphone's; off is better with headphones (default: %(default)s)",
    )
    sound.add_argument("--record", type=Path, metavar="CALL.wav", help="record the call: you left, the model right")
    call = parser.add_argument_group("call")
    call.add_argument(
        "--consent",
        choices=("ask", "none", "keep", "train"),
        help="what the server may do with this call beyond serving it; train includes keep (default: as you said when "
        "you were asked, once for every server; no where nobody can be asked)",
    )
    call.add_argument("--muted", action="store_true", help="begin with the microphone muted")
    add_sampling_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Hold the call that `arguments` describe, or show devices. Returns the exit code."""
    try:
        if arguments.list_devices:
            return list_devices(print)
        if arguments.test_devices:
            return try_devices(_card(arguments), print)
        return asyncio.run(_talk(arguments, _consent(arguments)))
    except ClientError as problem:
        print(f"duologue talk: {problem}", file=sys.stderr)
        return problem.exit_code
    except KeyboardInterrupt:
        return 130


def _consent(arguments: argparse.Namespace) -> Consent:
    asking = _answer if sys.stdin.isatty() and sys.stdout.isatty() else None
    return consent_of(arguments.consent, arguments.url, ConsentFile(), asking=asking, tell=print)


def _answer(question: str) -> str:
    try:
        return input(question)
    except EOFError:
        return ""


async def _talk(arguments: argparse.Namespace, consent: Consent) -> int:
    card, echo = _card(arguments), _echo(arguments)
    state, jitter = CallState(), JitterBuffer()
    with LiveRecording(arguments.record) as recording:
        speaker = Speaker(jitter, on_played=recording.played)
        microphone = Microphone(echo, speaker.reference, on_frame=recording.said)
        microphone.muted = arguments.muted
        conversation = Conversation(
            arguments.url,
            microphone=microphone,
            jitter=jitter,
            state=state,
            query=sampling_query(arguments) | query_value(consent),
            credentials=read_credentials(arguments),
            output_s=lambda: card.output_s,
        )
        if arguments.echo_cancellation == "off":
            state.tell(HEADPHONES_ADVICE)
        with _closing(card):
            async with running(card, microphone.heard, speaker.wanted, tell=state.tell) as over:
                with _interrupting(over), listening_to_keys(_keys(microphone, conversation, over)):
                    async with _shown(arguments.url, state, microphone, speaker):
                        await _until(conversation, over)
    print("\n".join(_summary(state, jitter.figures(), arguments.record)), file=sys.stderr)
    return 0


async def _until(conversation: Conversation, over: asyncio.Event) -> None:
    """Talk until the user has had enough, or a file is through. Raises ClientError."""
    talking = asyncio.create_task(conversation.run())
    waiting = asyncio.create_task(over.wait())
    await asyncio.wait((talking, waiting), return_when=asyncio.FIRST_COMPLETED)
    for task in (talking, waiting):
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await talking


def _keys(microphone: Microphone, conversation: Conversation, over: asyncio.Event) -> Callable[[str], None]:
    def mute() -> None:
        microphone.muted = not microphone.muted

    actions: dict[str, Callable[[], None]] = {
        " ": mute,
        "m": mute,
        "+": functools.partial(conversation.rate, "up"),
        "-": functools.partial(conversation.rate, "down"),
        "q": over.set,
        "\x03": over.set,
    }
    return lambda key: actions.get(key.lower(), lambda: None)()


@contextlib.contextmanager
def _interrupting(over: asyncio.Event) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM hang up instead of breaking off. Windows sends Ctrl-C as KeyboardInterrupt."""
    loop = asyncio.get_running_loop()
    signals = () if sys.platform == "win32" else (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        loop.add_signal_handler(number, over.set)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def _shown(url: str, state: CallState, microphone: Microphone, speaker: Speaker) -> AsyncIterator[None]:
    if sys.stdout.isatty():
        with Screen(url, state, microphone, speaker):
            yield
        return
    plain = PlainScreen(state, lambda line: print(line, file=sys.stderr, flush=True))
    refreshing = asyncio.create_task(_refresh(plain))
    try:
        yield
    finally:
        refreshing.cancel()
        plain.refresh()


async def _refresh(plain: PlainScreen) -> None:
    while True:
        plain.refresh()
        await asyncio.sleep(_PLAIN_EVERY_S)


def _card(arguments: argparse.Namespace) -> SoundCard:
    """Make the card: files where a file is named for either side, else devices. Raises ClientError."""
    microphone, loudspeakers = (_file(name) for name in (arguments.input, arguments.output))
    if microphone is not None or loudspeakers is not None:
        return FileCard(microphone, loudspeakers)
    return PortAudioCard(arguments.input, arguments.output)


def _file(name: str | None) -> Path | None:
    return Path(name) if name is not None and name.lower().endswith(_SOUND_FILES) else None


@contextlib.contextmanager
def _closing(card: SoundCard) -> Iterator[None]:
    try:
        yield
    finally:
        if isinstance(card, FileCard):
            card.finish()


def _echo(arguments: argparse.Namespace) -> EchoCanceller:
    return NoCancellation() if arguments.echo_cancellation == "off" else WebRtcCanceller()


def _summary(state: CallState, figures: JitterFigures, record: Path | None) -> list[str]:
    """What the call came to; no word of what was said."""
    delay = "" if state.delay_ms is None else f"delay {state.delay_ms:.0f} ms at the end, "
    again = f"called again {state.reconnected} times, " if state.reconnected else ""
    gaps = f"{figures.underruns} gaps of {figures.silence_ms:.0f} ms together"
    lost = f"{state.lost_ms + figures.dropped_ms:.0f} ms lost"
    lines = [f"call over after {clock(state.age_s)}: {delay}{again}{gaps}, {lost}"]
    if state.consent:
        lines.append(f"this call was {state.consent} by the server")
    if record is not None:
        lines.append(f"recorded in {record}")
    return lines
