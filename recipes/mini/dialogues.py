"""Two-channel conversations on the frame grid, as sound with exact word times.

A conversation is a random walk over events: questions that are answered, the telling with listeners who
hum along or cut in with the next question, people who say nothing, noises, far-away talkers. Owns timing and
mixing; knows nothing of tokens. Times are in training order: LMGen hears a caller's frame one step later than
the model's frame with the same index (see docs/log.md), which adds 80 ms to every gap written here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sentencepiece

from recipes.mini import bank, text, voices, wordings
from recipes.mini.augment import noise, on_the_way, resampled
from recipes.mini.bank import Utterance
from recipes.mini.codec import FRAME_SAMPLES, SAMPLE_RATE
from recipes.mini.wordings import BACKCHANNELS, TELLINGS

__all__ = ["Cast", "Conversation", "Spoken", "Writer"]

SHARES = {"telling": 0.06, "capital": 0.22, "sum": 0.3, "greeting": 0.24, "name": 0.18}  # of the questions
GAP_S = (0.12, 0.26)
YIELD_S = (0.20, 0.32)


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


@dataclass(frozen=True)
class Reply:
    """A sentence of the model's: float32 [S'] padded to whole frames, and its aligned words."""

    sentence: str
    sound: np.ndarray
    words: list[tuple[str, float, float]]


class Cast:
    """Every voice of the bank, looked up by what is said."""

    def __init__(self, folder: Path, users: list[str]) -> None:
        self.replies = self._own(folder)
        self._pcm: dict[str, np.ndarray] = {}
        self.asked: dict[str, dict[str, list[Utterance]]] = {}  # voice -> reply -> utterances
        self.hums: dict[str, list[Utterance]] = {}
        for voice in users:
            utterances, self._pcm[voice] = bank.load(folder, voice)
            self.hums[voice] = [u for u in utterances if u.text in BACKCHANNELS]
            self.asked[voice] = {}
            for u in utterances:
                if u.reply in self.replies:
                    self.asked[voice].setdefault(u.reply, []).append(u)
        self.users = [v for v in users if len(self.asked[v]) >= 20]

    def _own(self, folder: Path) -> dict[str, Reply]:
        utterances, pcm = bank.load(folder, voices.MODEL_VOICE)
        wanted = set(wordings.replies())
        return {u.text: _reply(u, bank.sound_of(u, pcm)) for u in utterances if u.text in wanted}

    def sound(self, utterance: Utterance) -> np.ndarray:
        """float32 [S] of one utterance."""
        return bank.sound_of(utterance, self._pcm[utterance.voice])


def _reply(utterance: Utterance, sound: np.ndarray) -> Reply:
    whole = -(-len(sound) // FRAME_SAMPLES) * FRAME_SAMPLES
    return Reply(utterance.text, np.pad(sound, (0, whole - len(sound))), list(utterance.words))


class Writer:
    """Writes one random conversation after the other."""

    def __init__(self, cast: Cast, tokenizer: sentencepiece.SentencePieceProcessor, *, seed: int) -> None:
        self._cast, self._tokenizer = cast, tokenizer
        self._rng = np.random.default_rng(seed)

    def conversation(self, frames: int) -> Conversation:
        """A conversation of exactly `frames` frames with one caller."""
        rng = self._rng
        voice = self._pick_voice()
        talk = Conversation(
            user=np.zeros(frames * FRAME_SAMPLES, np.float32),
            model=np.zeros(frames * FRAME_SAMPLES, np.float32),
            text=np.full(frames, text.PADDING, np.int64),
        )
        factor = float(rng.uniform(0.88, 1.15))
        at_s = float(rng.uniform(0.1, 2.0))
        while at_s < frames * 0.08 - 0.5:
            at_s = self._event(talk, voice, factor, at_s)
        self._surround(talk)
        return talk

    def _pick_voice(self) -> str:
        rng = self._rng
        natural = [v for v in self._cast.users if v.startswith("kokoro")]
        pool = natural if natural and rng.random() < 0.7 else self._cast.users
        return pool[rng.integers(len(pool))]

    def _event(self, talk: Conversation, voice: str, factor: float, at_s: float) -> float:
        """One thing that happens from `at_s` on; gives when the next may begin."""
        kind = self._rng.random()
        if kind < 0.04:
            return at_s + float(self._rng.uniform(1.0, 5.0))
        if kind < 0.07 and self._cast.hums[voice]:
            return self._hum(talk, voice, factor, at_s) + float(self._rng.uniform(0.5, 1.5))
        return self._turn(talk, voice, factor, at_s)

    def _hum(self, talk: Conversation, voice: str, factor: float, at_s: float) -> float:
        hums = self._cast.hums[voice]
        return self._say(talk, hums[self._rng.integers(len(hums))], factor, at_s)

    def _turn(self, talk: Conversation, voice: str, factor: float, at_s: float) -> float:
        rng = self._rng
        question = self._question(voice)
        end_s = self._say(talk, question, factor, at_s)
        start = int(np.ceil((end_s + float(rng.uniform(*GAP_S))) / text.FRAME_S))
        reply = self._cast.replies[question.reply]
        length_s = len(reply.sound) / SAMPLE_RATE
        telling = length_s > 5
        if rng.random() < (0.5 if telling else 0.05) and length_s > 1.2:
            cut_in = start * text.FRAME_S + float(rng.uniform(0.5, min(length_s, 7.0) - 0.4))
            stop = int(np.ceil((cut_in + float(rng.uniform(*YIELD_S))) / text.FRAME_S))
            self._answer(talk, reply, start, stop)
            return cut_in  # the next question interrupts this answer
        if telling and rng.random() < 0.6 and self._cast.hums[voice]:
            self._hum(talk, voice, factor, start * text.FRAME_S + float(rng.uniform(1.0, length_s - 1.0)))
        self._answer(talk, reply, start, start + 10_000)
        pause = rng.exponential(0.9) if rng.random() < 0.9 else rng.uniform(2.0, 6.0)
        return start * text.FRAME_S + length_s + 0.3 + float(pause)

    def _question(self, voice: str) -> Utterance:
        rng, asked = self._rng, self._cast.asked[voice]
        wanted = list(SHARES)[rng.choice(len(SHARES), p=list(SHARES.values()))]
        replies = [r for r in asked if _topic(r) == wanted] or list(asked)
        options = asked[replies[rng.integers(len(replies))]]
        return options[rng.integers(len(options))]

    def _say(self, talk: Conversation, utterance: Utterance, factor: float, at_s: float) -> float:
        """Put a caller's utterance at `at_s`, sometimes with a pause between two words; gives its end."""
        sound = resampled(self._cast.sound(utterance), factor)
        words = [(w, a / factor, b / factor) for w, a, b in utterance.words]
        if len(words) >= 4 and self._rng.random() < 0.12:
            sound, words = self._hesitating(sound, words)
        start = int(at_s * SAMPLE_RATE)
        piece = sound[: max(0, len(talk.user) - start)]
        talk.user[start : start + len(piece)] += piece
        talk.heard += [(w, at_s + b) for w, _, b in words if at_s + b < len(talk.user) / SAMPLE_RATE]
        return at_s + words[-1][2]

    def _hesitating(self, sound: np.ndarray, words: list) -> tuple[np.ndarray, list]:
        cut = int(self._rng.integers(2, len(words) - 1))
        at_s, pause_s = words[cut][1], float(self._rng.uniform(0.3, 1.0))
        at = int(at_s * SAMPLE_RATE)
        ramp = np.linspace(1, 0, 80, dtype=np.float32)
        before, after = sound[:at].copy(), sound[at:].copy()
        before[-80:] *= ramp[: len(before[-80:])]
        after[:80] *= 1 - ramp[: len(after[:80])]
        silence = np.zeros(int(pause_s * SAMPLE_RATE), np.float32)
        later = [(w, a + pause_s, b + pause_s) for w, a, b in words[cut:]]
        return np.concatenate([before, silence, after]), [*words[:cut], *later]

    def _answer(self, talk: Conversation, reply: Reply, start: int, stop: int) -> None:
        sound = reply.sound[: max(0, (stop - start)) * FRAME_SAMPLES].copy()
        if 0 < len(sound) < len(reply.sound):
            fade = min(960, len(sound))
            sound[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
        talk.spoken.append(Spoken(reply.sentence, start, sound))
        piece = sound[: max(0, len(talk.model) - start * FRAME_SAMPLES)]
        talk.model[start * FRAME_SAMPLES : start * FRAME_SAMPLES + len(piece)] += piece
        text.lay_out(talk.text, reply.words, reply.sentence, self._tokenizer, start, min(stop, len(talk.text)))

    def _surround(self, talk: Conversation) -> None:
        """The caller's room, far-away talkers, echo of the model, noise: on the user's channel alone."""
        rng, user = self._rng, talk.user
        for sound in _maybe(rng, 0.12, self._distant):
            start = int(rng.integers(max(1, len(user) - len(sound))))
            user[start : start + len(sound)] += sound[: len(user) - start]
        user = on_the_way(user, rng)
        if rng.random() < 0.3:
            delay = int(rng.uniform(0.1, 0.35) * SAMPLE_RATE)
            user[delay:] += talk.model[:-delay] * 10 ** (float(rng.uniform(-45, -25)) / 20)
        if rng.random() < 0.75:
            user = user + noise(len(user), rng, level_dbfs=float(rng.uniform(-75, -36)))
        talk.user = np.clip(user, -1, 1).astype(np.float32)

    def _distant(self) -> np.ndarray:
        voice = self._pick_voice()
        return self._cast.sound(self._question(voice)) * 10 ** (float(self._rng.uniform(-32, -24)) / 20)


def _topic(reply: str) -> str:
    if reply in TELLINGS.values():
        return "telling"
    if reply.startswith("The capital"):
        return "capital"
    if reply.startswith("Nice to meet you, "):
        return "name"
    return "sum" if " plus " in reply or " minus " in reply else "greeting"


def _maybe(rng: np.random.Generator, chance: float, make: Callable[[], np.ndarray]) -> list[np.ndarray]:
    return [make() for _ in range(3) if rng.random() < chance]
