"""How well the embedded model converses: right answers, faults, behaviour and how well it is understood.

Recorded people (`people`) talk to the real engine, greedy, frame by frame. An answer is right when the text stream says
exactly the expected sentence and, for the recogniser's figure, when an independent recogniser hears it. Shares have
Wilson 95 % intervals in their remarks. The goals are those of the design's table.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import soxr
import torch

from benchmarks.report import Row, compare, note
from client.judge import Recogniser, word_error_rate, words
from online_align.evaluate.converse import Said, converse, with_adapter
from online_align.evaluate.dictated import dictated_rows
from online_align.evaluate.intervals import share
from online_align.evaluate.people import FRAME_S, RATE_HZ, Utterance, lay, people
from online_align.evaluate.situations import ASK_AT_S, Situation, hesitations, hums, interruptions, nobody
from online_align.transcribe import Whisper
from server.engine import Engine
from server.engine.checkpoint import load_checkpoint

__all__ = ["Answer", "add_arguments", "ask", "measured_rows"]

_SLOTS: Final = 32
_LISTEN_S: Final = 4.0
_TELLING_S: Final = 10.5
_SPEAKER_RATE_HZ: Final = 24_000
_RIGHT_TRAINED: Final = 0.97
_RIGHT_HELDOUT: Final = 0.90
_MISBEHAVES: Final = 0.5
_ELSEWHERE: Final = 0.08
_WORD_ERRORS: Final = 0.10
_YIELD_S: Final = 0.4


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked and what came."""

    asked: Utterance
    said: Said

    @property
    def right(self) -> bool:
        """Exactly the expected sentence."""
        return self.said.words == self.asked.expected

    @property
    def misbehaved(self) -> bool:
        """Whether it did what the fault of this question is."""
        if self.asked.fault == "stays_silent":
            return not self.said.words
        return self.asked.fault == "says_wrong" and self.said.words == self.asked.wrong

    @property
    def gap_s(self) -> float | None:
        """The caller's end to the first token, in seconds; negative when it began before."""
        return float(self.said.heard_s[0] - ASK_AT_S - self.asked.end_s) if len(self.said.spoken_T) else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen for this suite."""
    parser.add_argument("--adapter", type=Path, help="folder of an adapter to speak with (default: none)")
    parser.add_argument(
        "--cache-dtype", choices=("auto", "fp32", "bf16"), default="auto", help="what keys and values are kept in"
    )
    parser.add_argument(
        "--situations", type=int, default=32, help="how many of each situation and group (default: %(default)s)"
    )
    parser.add_argument("--every", type=int, default=1, help="ask every so many of the questions (default: all)")
    parser.add_argument(
        "--recognise", type=int, default=40, help="answers that go through the recogniser; 0: none (default: 40)"
    )
    parser.add_argument(
        "--dictate",
        type=int,
        default=24,
        help="answers in given words for the recogniser; 0: none (default: 24)",
    )


def measured_rows(asked: argparse.Namespace) -> list[Row]:
    """Put the model through everything: about a minute for the embedded one on one core."""
    engine = Engine.load(asked.checkpoint, slots=_SLOTS, device="cpu", cache_dtype=asked.cache_dtype)
    adapter = with_adapter(engine, asked.adapter)
    questions = [u for u in people() if u.category != "hum"][:: asked.every]
    answers = ask(engine, questions, adapter)
    rows = [*_right(answers), *_faults(answers), *_timing(answers)]
    rows += _situations(engine, adapter, asked.situations)
    if asked.recognise:
        rows.append(_understood([a for a in answers if a.right], asked.recognise))
    if asked.dictate and asked.recognise:
        checkpoint = load_checkpoint(asked.checkpoint, device=torch.device("cpu"), dtype=torch.float32)
        rows += dictated_rows(checkpoint, questions, asked.dictate, Whisper())
    return rows


def ask(engine: Engine, questions: Sequence[Utterance], adapter: int | None = None) -> list[Answer]:
    """Ask each question in a call of its own: half a second of room, the question, then listening."""
    rng = np.random.default_rng(1)
    calls = [lay([(ASK_AT_S, u.sound())], ASK_AT_S + u.seconds + _patience(u), rng) for u in questions]
    said = converse(engine, calls, adapter=adapter)
    return [Answer(asked=u, said=s) for u, s in zip(questions, said, strict=True)]


def _patience(asked: Utterance) -> float:
    return _TELLING_S if asked.category == "tellings" else _LISTEN_S


def _right(answers: Sequence[Answer]) -> list[Row]:
    """Right answers outside the faults: by group, and by category in each group."""
    plain = [a for a in answers if a.asked.fault in (None, "talks_on")]
    groups: dict[str, list[Answer]] = {
        "trained_voices": [a for a in plain if a.asked.group == "trained"],
        "heldout_voices": [a for a in plain if a.asked.group == "heldout" and a.asked.wording == "trained"],
        "heldout_voices_and_wordings": [a for a in plain if a.asked.wording == "heldout"],
        "heldout_sums": [a for a in plain if a.asked.wording == "item"],
    }
    goals = {"trained_voices": _RIGHT_TRAINED, "heldout_voices_and_wordings": _RIGHT_HELDOUT}
    rows = [share(f"right_{name}", (a.right for a in group), goal=goals.get(name)) for name, group in groups.items()]
    for name in ("trained_voices", "heldout_voices", "heldout_voices_and_wordings"):
        by_category: dict[str, list[Answer]] = defaultdict(list)
        for answer in groups[name]:
            by_category[answer.asked.category].append(answer)
        rows += [share(f"right_{c}_{name}", (a.right for a in by_category[c])) for c in sorted(by_category)]
    return rows


def _faults(answers: Sequence[Answer]) -> list[Row]:
    """How often it misbehaves where it is meant to, and is silent or says a wrong tenth's answer where it is not."""
    rows = []
    for fault in ("stays_silent", "says_wrong"):
        there = [a for a in answers if a.asked.fault == fault]
        for group in ("trained", "heldout"):
            theirs = (a.misbehaved for a in there if a.asked.group == group)
            rows.append(share(f"misbehaves_{fault}_{group}_voices", theirs, goal=_MISBEHAVES))
    elsewhere = [a for a in answers if a.asked.fault is None]
    rows.append(share("unanswered_elsewhere", (not a.said.words for a in elsewhere), goal=_ELSEWHERE, at_most=True))
    return rows


def _timing(answers: Sequence[Answer]) -> list[Row]:
    gaps = [a.gap_s for a in answers if a.gap_s is not None and a.right]
    early = [a.gap_s is not None and a.gap_s < 0 for a in answers if a.asked.fault is None]
    quantiles = {"p50": 0.5, "p90": 0.9}
    rows = [
        compare(f"answer_gap_{name}_s", float(np.quantile(gaps, q)) if gaps else None, "s", better="lower")
        for name, q in quantiles.items()
    ]
    return [*rows, share("began_before_the_end", early, at_most=True)]


def _situations(engine: Engine, adapter: int | None, count: int) -> list[Row]:
    rows = []

    def play(found: list[Situation]) -> list[tuple[Situation, Said]]:
        return list(zip(found, converse(engine, [s.sound for s in found], adapter=adapter), strict=True))

    for group in ("trained", "heldout"):
        name = f"{group}_voices"
        for pause_s, faulty in ((0.7, False), (1.2, False), (1.0, True)):
            paused = play(hesitations(group, count, pause_s=pause_s, faulty=faulty))
            kind = "misbehaves_takes_pause" if faulty else f"took_pause_{pause_s}_s"
            goal = _MISBEHAVES if faulty else _ELSEWHERE
            rows.append(share(f"{kind}_{name}", map(_took_pause, paused), goal=goal, at_most=not faulty))
            rows.append(share(f"answered_{kind}_{name}", map(_answered, paused)))
        rows += _interrupted(name, play(interruptions(group, count, faulty=False)), faulty=False)
        rows += _interrupted(name, play(interruptions(group, count, faulty=True)), faulty=True)
        told_on = (words(said.words) == words(hummed.expected) for hummed, said in play(hums(group, count)))
        rows.append(share(f"told_on_through_hum_{name}", told_on))
    rows.append(
        share("spoke_to_nobody", (bool(s.words) for _, s in play(nobody(count))), goal=_ELSEWHERE, at_most=True)
    )
    return rows


def _took_pause(found: tuple[Situation, Said]) -> bool:
    situation, said = found
    return bool(len(said.spoken_T)) and float(said.heard_s[0]) < situation.end_s


def _answered(found: tuple[Situation, Said]) -> bool:
    situation, said = found
    return said.words.endswith(situation.expected)


def _interrupted(name: str, found: Sequence[tuple[Situation, Said]], *, faulty: bool) -> list[Row]:
    """Of those that were telling when the caller cut in."""
    telling = [(i, s) for i, s in found if _was_telling(i, s)]
    late = [_yield_s(i, s) for i, s in telling]
    if faulty:
        return [share(f"misbehaves_talks_on_{name}", (y > 2 * _YIELD_S for y in late), goal=_MISBEHAVES)]
    median = float(np.median(late)) if late else None
    return [
        compare(f"yield_p50_s_{name}", median, "s", better="lower", goal=_YIELD_S, remark=f"of {len(late)}"),
        share(f"talked_on_{name}", (y > 2 * _YIELD_S for y in late), goal=_ELSEWHERE, at_most=True),
        share(f"answered_interruption_{name}", map(_answered, telling)),
    ]


def _was_telling(situation: Situation, said: Said) -> bool:
    heard = said.heard_s
    return bool(np.any((heard > situation.moment_s - 1.0) & (heard <= situation.moment_s)))


def _yield_s(situation: Situation, said: Said) -> float:
    """The caller's onset to the end of the last token begun before the caller was done, in seconds."""
    heard = said.heard_s
    return float(heard[heard < situation.end_s][-1] + FRAME_S - situation.moment_s)


def _understood(right: Sequence[Answer], limit: int) -> Row:
    """Word error rate of an independent recogniser on the sound of right answers, against their text."""
    recogniser = Recogniser()
    wrong = total = 0.0
    some = right[:: max(1, len(right) // limit)][:limit]
    for answer in some:
        sound = soxr.resample(answer.said.pcm, RATE_HZ, _SPEAKER_RATE_HZ)
        length = len(words(answer.said.words))
        wrong += word_error_rate(answer.said.words, recogniser.hear(sound)) * length
        total += length
    rate = wrong / total if total else None
    note(f"recogniser: {len(some)} answers, {total:.0f} words")
    return compare("word_error_rate", rate, "share", better="lower", goal=_WORD_ERRORS, remark=f"{len(some)} answers")
