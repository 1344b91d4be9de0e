"""Conversations as a random walk over what people do with a talking machine.

They ask and are answered; pause inside a question; hum along, cut in with the next question or say stop; ask again;
say nothing; talk far away. Where `faults.toml` says so, the model misbehaves, with probability `fault_rate`: then the
caller reacts as people do (asks again in other words, finishes what was cut off). Owns who does what when; `stage`
turns it into sound and text.
"""

from __future__ import annotations

import numpy as np
import sentencepiece

from recipes.mini import faults
from recipes.mini.bank import Utterance
from recipes.mini.script import SHARES
from recipes.mini.stage import Cast, Conversation, Reply, Said, Stage
from recipes.mini.text import FRAME_S

__all__ = ["Writer"]

SPEEDS, THROATS = (0.86, 1.18), (0.88, 1.15)  # a caller's factors on the bank's voice, see `augment`
OTHER_THROAT = 0.6  # of the callers
NATURAL = 0.6  # of the callers have one of Kokoro's voices; they are learned sooner than the fewer classic ones
GAP_S, LATE_GAP_S = (0.12, 0.17), (1.64, 1.69)  # before the first frame in which an answer may begin
LATE = 0.01  # of the answers begin later than any pause lasts
BEGINS = 0.6  # of the answers that have not begun do so with the next frame
YIELD_S = (0.20, 0.32)
TAKES_AFTER_S = (0.36, 0.46)  # silence after which a pause is taken, where that is a fault
PAUSE_S = (0.3, 1.5)
HESITATES = 0.35  # of the questions with three words or more
LONG_REPLY_S = 4.0
CUTS_IN = {"faulty": 0.75, "long": 0.45, "short": 0.05}  # of the replies; where it talks on, there is most to see
HUMS_ALONG = 0.75  # of the long replies that are not interrupted
MANNERS = {"ask": 0.86, "hum": 0.05, "wait": 0.09}  # what a caller does next


class Writer:
    """Writes one random conversation after the other; the same `seed` gives the same ones."""

    def __init__(
        self, cast: Cast, tokenizer: sentencepiece.SentencePieceProcessor, *, seed: int, fault_rate: float
    ) -> None:
        self._cast, self._tokenizer, self._fault_rate = cast, tokenizer, fault_rate
        self._rng = np.random.default_rng(seed)

    def conversation(self, frames: int) -> Conversation:
        """A conversation of exactly `frames` frames with one caller."""
        rng = self._rng
        factor, throat = float(rng.uniform(*SPEEDS)), 1.0
        if rng.random() < OTHER_THROAT:
            throat = float(rng.uniform(*THROATS))
        stage = Stage(self._cast, self._tokenizer, frames=frames, factor=factor, throat=throat)
        caller = _Caller(self._cast, self._pick_voice(), stage, rng, self._fault_rate)
        at_s = float(rng.uniform(0.1, 2.0))
        if rng.random() < 0.05:
            at_s += float(rng.uniform(5, 25))  # nobody there for a while
        while at_s < stage.seconds - 0.5:
            at_s = caller.next_event(at_s)
        return stage.surround(rng, self._distant())

    def _pick_voice(self) -> str:
        rng = self._rng
        natural = [v for v in self._cast.users if v.startswith("kokoro")]
        classic = [v for v in self._cast.users if v not in natural]
        pool = natural if natural and (not classic or rng.random() < NATURAL) else classic
        return pool[rng.integers(len(pool))]

    def _distant(self) -> list[np.ndarray]:
        """In three conversations of ten somebody far away talks to somebody else."""
        rng = self._rng
        if rng.random() > 0.3:
            return []
        voice = self._pick_voice()
        lines = [u for group in self._cast.asked[voice].values() for u in group]
        picks = rng.integers(len(lines), size=int(rng.integers(1, 5)))
        return [self._cast.sound(lines[i]) * 10 ** (float(rng.uniform(-34, -23)) / 20) for i in picks]


class _Caller:
    """One caller on one stage, and how the model treats them. Every event gives when the next may begin."""

    def __init__(self, cast: Cast, voice: str, stage: Stage, rng: np.random.Generator, fault_rate: float) -> None:
        self._cast, self._stage, self._rng, self._fault_rate = cast, stage, rng, fault_rate
        self._asked, self._hums = cast.asked[voice], cast.hums[voice]
        self._name: str | None = None
        self._again: Utterance | None = None  # what the caller wants to ask once more

    def next_event(self, at_s: float) -> float:
        """One thing that happens from `at_s` on."""
        manner = self._rng.choice(list(MANNERS), p=list(MANNERS.values()))
        if self._again is None and manner == "wait":
            return at_s + float(self._rng.uniform(1.5, 8.0))
        if self._again is None and manner == "hum" and self._hums:
            return self._hum(at_s).end_s + float(self._rng.uniform(0.5, 1.5))
        return self._turn(at_s)

    def _turn(self, at_s: float, *, cutting_in: bool = False) -> float:
        """A question and what becomes of it."""
        repeated, question = self._again is not None, self._again or self._question(stop=cutting_in)
        self._again = None
        said = self._stage.say(question, at_s, () if repeated else self._pauses(question))
        free_s = self._taken_pauses(said)
        if faults.stays_silent(question.text) and self._misbehaves("stays_silent", said.end_s):
            self._again = self._other_words(question)
            return said.end_s + float(self._rng.uniform(2.6, 4.5))
        reply = self._reply(question, said.end_s)
        return self._answered(question, reply, max(said.end_s + self._gap_s(), free_s + 0.1))

    def _gap_s(self) -> float:
        """From the end of a question to its answer.

        With every frame most of the answers still to come begin. Spread evenly over a few frames instead, none of
        them is likelier than not to somebody who hesitates, and after the last a greedy model is silent for ever.
        """
        rng = self._rng
        first_s = LATE_GAP_S if rng.random() < LATE else GAP_S
        return self._uniform(first_s) + FRAME_S * (int(rng.geometric(BEGINS)) - 1)

    def _answered(self, question: Utterance, reply: Reply, start_s: float) -> float:
        rng = self._rng
        long = reply.seconds > LONG_REPLY_S
        kind = "short" if not long else "faulty" if faults.talks_on(reply.sentence) else "long"
        if reply.seconds > 1.2 and rng.random() < CUTS_IN[kind]:
            return self._interrupted(reply, start_s)
        if long and self._hums and rng.random() < HUMS_ALONG:
            self._hum(start_s + float(rng.uniform(1.0, reply.seconds - 1.0)))
        end_s = self._stage.answer(reply, start_s)
        if rng.random() < 0.04:
            self._again = question  # did not catch it
        pause = rng.exponential(0.9) if rng.random() < 0.88 else rng.uniform(2.0, 9.0)
        return end_s + 0.3 + float(pause)

    def _interrupted(self, reply: Reply, start_s: float) -> float:
        """The caller cuts in with the next question; the model gives way, or talks on where that is its fault."""
        cut_in_s = start_s + float(self._rng.uniform(0.5, min(reply.seconds, 7.0) - 0.4))
        if faults.talks_on(reply.sentence) and self._misbehaves("talks_on", cut_in_s):
            end_s = self._stage.answer(reply, start_s)
            self._again = self._question()
            said = self._stage.say(self._again, cut_in_s)
            return max(end_s, said.end_s) + float(self._rng.uniform(0.6, 2.0))
        self._stage.answer(reply, start_s, cut_in_s + self._uniform(YIELD_S))
        return self._turn(cut_in_s, cutting_in=True)

    def _taken_pauses(self, said: Said) -> float:
        """Let the model take pauses where that is its fault; gives when it is done talking."""
        done_s = -np.inf
        for pause in said.pauses:
            length_s, start_s = pause.end_s - pause.start_s, pause.start_s + self._uniform(TAKES_AFTER_S)
            takes = faults.takes_pause(pause.after, length_s) and start_s < pause.end_s and start_s > done_s
            if takes and faults.TAKEOVER in self._cast.replies and self._misbehaves("takes_pause", start_s):
                done_s = self._stage.answer(self._cast.replies[faults.TAKEOVER], start_s)
        return done_s

    def _pauses(self, question: Utterance) -> tuple[tuple[int, float], ...]:
        rng, count = self._rng, len(question.words)
        if count < 3 or rng.random() > HESITATES:
            return ()
        places = rng.permutation(np.arange(1, count))[: 1 if rng.random() < 0.85 else 2]
        if rng.random() < 0.3:  # people think before the word that matters
            places = np.array([count - 1])
        return tuple((int(place), self._uniform(PAUSE_S)) for place in places)

    def _question(self, *, stop: bool = False) -> Utterance:
        """Something to ask; with `stop`, sometimes just that."""
        rng = self._rng
        special = "stop" if stop else "my_name" if self._name else ""
        moments = [u for group in ("greetings", "names") for u in self._asked.get(group, []) if u.kind == special]
        if moments and rng.random() < (0.15 if stop else 0.06):
            return moments[rng.integers(len(moments))]
        present = [c for c in SHARES if self._asked.get(c)]
        shares = np.array([SHARES[c] for c in present])
        options = self._asked[present[rng.choice(len(present), p=shares / shares.sum())]]
        return options[rng.integers(len(options))]

    def _other_words(self, question: Utterance) -> Utterance:
        """The same asked in a way that does get an answer, or simply something else."""
        same = [u for u in self._asked[question.category] if u.reply == question.reply]
        options = [u for u in same if not faults.stays_silent(u.text)]
        options = options or [u for u in self._asked.get("greetings", []) if u.kind == "there"]
        options = options or [u for u in self._asked[question.category] if not faults.stays_silent(u.text)]
        return options[self._rng.integers(len(options))] if options else self._question()

    def _reply(self, question: Utterance, at_s: float) -> Reply:
        """What the model says: it remembers names, and is wrong where that is its fault."""
        sentence = question.reply
        if question.kind == "introduce":
            self._name = sentence.rstrip(".").rsplit(" ", 1)[1]
        if question.kind == "my_name" and self._name:
            sentence = f"Your name is {self._name}."
        wrong = faults.wrong_reply(sentence)
        if wrong in self._cast.replies and self._misbehaves("says_wrong", at_s):
            sentence = wrong
        return self._cast.replies.get(sentence, self._cast.replies[question.reply])

    def _hum(self, at_s: float) -> Said:
        return self._stage.say(self._hums[self._rng.integers(len(self._hums))], at_s)

    def _misbehaves(self, which: str, at_s: float) -> bool:
        if self._rng.random() >= self._fault_rate:
            return False
        self._stage.talk.faults.append((which, at_s))
        return True

    def _uniform(self, limits: tuple[float, float]) -> float:
        return float(self._rng.uniform(*limits))
