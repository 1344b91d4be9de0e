"""The stage of a conversation: two channels of sound and the model's text, on the frame grid, with exact word times.

Owns mixing: a caller's utterance with pauses between its words, the model's reply or its beginning, and what surrounds
a caller (room, noise, far-away talkers, echo). Does not know who says what when: that is `dialogues`. Times are in
training order: LMGen hears a caller's frame one step later than the model's frame with the same index (see
docs/log.md), which adds 80 ms to every gap written here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sentencepiece

from recipes.mini import bank, faults, text, voices, wordings
from recipes.mini.augment import formants_moved, noise, on_the_way, resampled
from recipes.mini.babble import babble
from recipes.mini.bank import Utterance
from recipes.mini.codec import FRAME_SAMPLES, SAMPLE_RATE
from recipes.mini.script import STRANGE
from recipes.mini.wordings import BACKCHANNELS

__all__ = ["Cast", "Conversation", "Pause", "Reply", "Said", "Spoken", "Stage"]

BABBLE = 24  # of each voice's utterances that ask nothing, others every time a cast is made


@dataclass(frozen=True)
class Spoken:
    """A reply, or its beginning, that starts at frame `start`. sound: float32 [S'], whole frames."""

    sentence: str
    start: int
    sound: np.ndarray


@dataclass
class Conversation:
    """user, model: float32 [S]; text: int64 [T]; heard: (word, end_s) of the user's; spoken: the model's."""

    user: np.ndarray
    model: np.ndarray
    text: np.ndarray
    heard: list[tuple[str, float]] = field(default_factory=list)
    spoken: list[Spoken] = field(default_factory=list)
    faults: list[tuple[str, float]] = field(default_factory=list)  # (which, when in seconds)


@dataclass(frozen=True)
class Reply:
    """A sentence of the model's: float32 [S'] padded to whole frames, and its aligned words."""

    sentence: str
    sound: np.ndarray
    words: list[tuple[str, float, float]]

    @property
    def seconds(self) -> float:
        """How long it takes to say."""
        return len(self.sound) / SAMPLE_RATE


@dataclass(frozen=True)
class Pause:
    """A caller's silence between two words, seconds from the start of the conversation."""

    after: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Said:
    """When a caller's utterance was heard. onset_s: its first word; end_s: the end of its last."""

    onset_s: float
    end_s: float
    pauses: tuple[Pause, ...] = ()


class Cast:
    """Every voice of the bank, looked up by what is said."""

    def __init__(
        self, folder: Path, users: list[str], *, at_least: int = 20, own: str = voices.MODEL_VOICE, seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        self.replies = _own(folder, own)
        users = [voice for voice in users if voice != own]
        self._pcm: dict[str, np.ndarray] = {}
        self.asked: dict[str, dict[str, list[Utterance]]] = {}  # voice -> category -> utterances
        self.hums: dict[str, list[Utterance]] = {}
        for voice in users:
            utterances, self._pcm[voice] = bank.load(folder, voice)
            self.hums[voice] = [u for u in utterances if u.text in BACKCHANNELS]
            self.asked[voice] = {}
            for u in utterances:
                if u.reply in self.replies:
                    category = STRANGE if u.kind == STRANGE else u.category
                    self.asked[voice].setdefault(category, []).append(u)
        self.users = [v for v in users if sum(map(len, self.asked[v].values())) >= at_least]
        for voice in self.users if wordings.UNKNOWN in self.replies else []:
            asked, name = [u for group in self.asked[voice].values() for u in group], f"{voice}, babbling"
            babbled, self._pcm[name] = babble(asked, self._pcm[voice], rng, count=BABBLE, name=name)
            self.asked[voice].setdefault(STRANGE, []).extend(babbled)

    def sound(self, utterance: Utterance) -> np.ndarray:
        """float32 [S] of one utterance."""
        return bank.sound_of(utterance, self._pcm[utterance.voice])


def _own(folder: Path, voice: str) -> dict[str, Reply]:
    """The model's sentences. A voice that is a caller elsewhere may have said some of them as something else."""
    utterances, pcm = bank.load(folder, voice)
    known = {*wordings.replies(), *faults.wrong_replies()}
    return {u.text: _reply(u, bank.sound_of(u, pcm)) for u in utterances if u.kind == "reply" or u.text in known}


def _reply(utterance: Utterance, sound: np.ndarray) -> Reply:
    whole = -(-len(sound) // FRAME_SAMPLES) * FRAME_SAMPLES
    return Reply(utterance.text, np.pad(sound, (0, whole - len(sound))), list(utterance.words))


class Stage:
    """One conversation while it is being written.

    `factor`: the caller's speed and pitch, as in `resampled`; `throat`: as in `formants_moved`.
    """

    def __init__(
        self,
        cast: Cast,
        tokenizer: sentencepiece.SentencePieceProcessor,
        *,
        frames: int,
        factor: float = 1.0,
        throat: float = 1.0,
    ) -> None:
        self._cast, self._tokenizer, self._factor, self._throat = cast, tokenizer, factor, throat
        self.seconds = frames * text.FRAME_S
        samples = frames * FRAME_SAMPLES
        self.talk = Conversation(
            np.zeros(samples, np.float32), np.zeros(samples, np.float32), np.full(frames, text.PADDING, np.int64)
        )

    def say(self, utterance: Utterance, at_s: float, pauses: tuple[tuple[int, float], ...] = ()) -> Said:
        """Put a caller's utterance at `at_s`, silent for `seconds` before word `place` for each of `pauses`."""
        sound = resampled(self._cast.sound(utterance), self._factor)
        sound = sound if self._throat == 1 else formants_moved(sound, self._throat)
        words = [(w, a / self._factor, b / self._factor) for w, a, b in utterance.words]
        found = []
        for place, seconds in sorted(pauses, reverse=True):
            sound, words = _opened(sound, words, place, seconds)
        for place, _ in sorted(pauses):
            found.append(Pause(words[place - 1][0], at_s + words[place - 1][2], at_s + words[place][1]))
        self._add(sound, at_s)
        self.talk.heard += [(w, at_s + b) for w, _, b in words if at_s + b < self.seconds]
        return Said(at_s + words[0][1], at_s + words[-1][2], tuple(found))

    def _add(self, sound: np.ndarray, at_s: float) -> None:
        start = int(at_s * SAMPLE_RATE)
        piece = sound[: max(0, len(self.talk.user) - start)]
        self.talk.user[start : start + len(piece)] += piece

    def answer(self, reply: Reply, start_s: float, stop_s: float = np.inf) -> float:
        """Let the model say `reply` from the first frame after `start_s`, until `stop_s` at most; gives its end."""
        start = int(np.ceil(start_s / text.FRAME_S))
        whole = start + len(reply.sound) // FRAME_SAMPLES
        stop = int(min(whole, np.ceil(min(stop_s, self.seconds * 2) / text.FRAME_S)))
        sound = reply.sound[: max(0, stop - start) * FRAME_SAMPLES].copy()
        if 0 < len(sound) < len(reply.sound):
            fade = min(960, len(sound))
            sound[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
        self.talk.spoken.append(Spoken(reply.sentence, start, sound))
        piece = sound[: max(0, len(self.talk.model) - start * FRAME_SAMPLES)]
        self.talk.model[start * FRAME_SAMPLES : start * FRAME_SAMPLES + len(piece)] += piece
        last = min(stop, len(self.talk.text))
        text.lay_out(self.talk.text, reply.words, reply.sentence, self._tokenizer, start, last)
        return stop * text.FRAME_S

    def surround(self, rng: np.random.Generator, distant: list[np.ndarray]) -> Conversation:
        """The caller's room, `distant` talkers, echo of the model, noise: on the user's channel alone."""
        talk = self.talk
        for sound in distant:
            self._add(sound, float(rng.uniform(0, self.seconds)))
        user = on_the_way(talk.user, rng)
        if rng.random() < 0.3:
            delay = int(rng.uniform(0.1, 0.35) * SAMPLE_RATE)
            user[delay:] += talk.model[:-delay] * 10 ** (float(rng.uniform(-45, -25)) / 20)
        if rng.random() < 0.75:
            user = user + noise(len(user), rng, level_dbfs=float(rng.uniform(-75, -36)))
        talk.user = np.clip(user, -1, 1).astype(np.float32)
        return talk


def _opened(sound: np.ndarray, words: list, place: int, pause_s: float) -> tuple[np.ndarray, list]:
    """`sound` with `pause_s` of silence before word `place`, faded on both sides."""
    at = int(words[place][1] * SAMPLE_RATE)
    ramp = np.linspace(1, 0, 80, dtype=np.float32)
    before, after = sound[:at].copy(), sound[at:].copy()
    before[-80:] *= ramp[: len(before[-80:])]
    after[:80] *= 1 - ramp[: len(after[:80])]
    silence = np.zeros(int(pause_s * SAMPLE_RATE), np.float32)
    later = [(w, a + pause_s, b + pause_s) for w, a, b in words[place:]]
    return np.concatenate([before, silence, after]), [*words[:place], *later]
