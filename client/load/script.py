"""What callers say: questions and the room between them, as ready Opus packets, drawn in turns without end.

Everything is encoded once, before the first call, and shared by all callers. A call splices it together: question,
pause, question, as a microphone sends it, silence included. Splices lie in quiet parts, where an Opus decoder that
expected another past is soon right again.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import sphn

from client.errors import SoundFileError
from client.load.pages import GRANULES_PER_FRAME, packet_granules, packets
from client.sound import FRAME_S, FRAME_SIZE, SAMPLE_RATE_HZ, Pcm, read_frames

__all__ = ["Frame", "Script", "read_script", "shipped_questions"]

Frame = tuple[bytes, ...]
"""The Opus packets of 80 ms."""

_ROOM_S: Final = 8.0
_ROOM_LEVEL: Final = 10 ** (-62 / 20)  # a quiet room through a headset, RMS of full scale
_HEADERS: Final = 2
_TAIL_S: Final = 0.24
_FIRST_PAUSE_S: Final = (0.5, 2.0)
_PAUSE_S: Final = (2.5, 6.0)
"""Time for the model to answer in, before the next question."""


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of every call."""

    headers: tuple[bytes, ...]
    """OpusHead and OpusTags."""
    questions: tuple[tuple[Frame, ...], ...]
    room: tuple[Frame, ...]

    def frames(self, chance: random.Random) -> Iterator[Frame]:
        """Speak for ever: a pause, a question, a pause, in an order of this caller's own."""
        yield from self._quiet(chance, _FIRST_PAUSE_S)
        while True:
            yield from chance.choice(self.questions)
            yield from self._quiet(chance, _PAUSE_S)

    def _quiet(self, chance: random.Random, seconds: tuple[float, float]) -> Iterator[Frame]:
        start = chance.randrange(len(self.room))
        for n in range(round(chance.uniform(*seconds) / FRAME_S)):
            yield self.room[(start + n) % len(self.room)]


def shipped_questions() -> list[Path]:
    """Find the questions that come with the source tree. Raises SoundFileError where there are none."""
    folder = Path(__file__).parents[2] / "tests" / "assets" / "speech"
    found = sorted(path for kind in ("demo", "trained", "heldout") for path in folder.glob(f"{kind}_*.opus"))
    if not found:
        raise SoundFileError(f"There are no questions in {folder}: name sound files on the command line.")
    return found


def read_script(questions: Sequence[Path]) -> Script:
    """Encode `questions` (sound files of any rate) and a quiet room. Raises SoundFileError."""
    noise = np.random.default_rng(0).standard_normal(round(_ROOM_S * SAMPLE_RATE_HZ)).astype(np.float32)
    headers, room = _encode(list((_ROOM_LEVEL * noise).reshape(-1, FRAME_SIZE)))
    spoken = tuple(_encode(list(read_frames(path, tail_s=_TAIL_S)))[1] for path in questions)
    return Script(headers=headers, questions=spoken, room=room)


def _encode(frames: Sequence[Pcm]) -> tuple[tuple[bytes, ...], tuple[Frame, ...]]:
    writer = sphn.OpusStreamWriter(SAMPLE_RATE_HZ)
    found = list(packets(b"".join(bytes(writer.append_pcm(frame)) for frame in frames)))
    sounding = found[_HEADERS:]
    in_one = GRANULES_PER_FRAME // packet_granules(sounding[0])
    assert all(in_one * packet_granules(packet) == GRANULES_PER_FRAME for packet in sounding), "packets divide a frame"
    return tuple(found[:_HEADERS]), tuple(tuple(sounding[at : at + in_one]) for at in range(0, len(sounding), in_one))
