"""The calls of the gate: recorded people who ask, pause, cut in, hum, and rooms without anybody. Always the same ones.

Only voices that the embedded model was trained on: those it never heard are for evaluation, and a gate that looked at
them would choose adapters by what they are evaluated on. It knows no model.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from enum import StrEnum

import msgspec
import numpy as np

from online_align.evaluate.people import Pcm, Utterance, lay, people
from online_align.evaluate.situations import ASK_AT_S, Situation, hesitations, hums, interruptions, nobody

__all__ = ["Probe", "ProbeKind", "ProbeSet", "Sizes", "probe_set"]

_GROUP = "trained"
_LISTEN_S = 4.0
_TELLING_S = 10.5
_PAUSES_S = (0.7, 1.0)


class ProbeKind(StrEnum):
    """What happens in a call."""

    QUESTION = "question"
    PAUSE = "pause"
    INTERRUPTION = "interruption"
    HUM = "hum"
    NOBODY = "nobody"


class Probe(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One call. Times are its seconds."""

    kind: ProbeKind
    sound: Pcm
    """float32 `[frames, 1280]` at 16 kHz."""
    moment_s: float
    """When the caller pauses, cuts in or hums; otherwise his end."""
    end_s: float
    """When the caller has said everything."""
    expected: str
    """The right answer, to the last question."""
    plain: bool
    """Whether nothing in it runs into what `recipes/mini/faults.toml` teaches on purpose."""


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How many calls of each kind."""

    question: int = 64
    pause: int = 48
    interruption: int = 24
    hum: int = 24
    nobody: int = 8


class ProbeSet(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Calls, and the SHA-256 of all their sound: two verdicts compare only if they judged by the same."""

    probes: tuple[Probe, ...]
    sha256: str

    def of(self, *kinds: ProbeKind) -> tuple[Probe, ...]:
        """Those of some kinds."""
        return tuple(probe for probe in self.probes if probe.kind in kinds)


def probe_set(sizes: Sizes | None = None) -> ProbeSet:
    """The calls, from the recordings that ship: about half a second of work."""
    wanted = sizes or Sizes()
    probes = (
        *_questions(wanted.question),
        *_pauses(wanted.pause),
        *_halves(ProbeKind.INTERRUPTION, wanted.interruption),
        *_each(ProbeKind.HUM, hums(_GROUP, wanted.hum)),
        *_each(ProbeKind.NOBODY, nobody(wanted.nobody)),
    )
    digest = hashlib.sha256()
    for probe in probes:
        digest.update(probe.sound.astype("<f4").tobytes())
    return ProbeSet(probes=probes, sha256=digest.hexdigest())


def _questions(count: int) -> list[Probe]:
    """Questions of every category in turn, so that a few of them speak for all."""
    by_category: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in people():
        if utterance.group == _GROUP and utterance.category != "hum":
            by_category[utterance.category].append(utterance)
    rng = np.random.default_rng(11)
    shuffled = [[group[i] for i in rng.permutation(len(group))] for _, group in sorted(by_category.items())]
    picked = [group[turn] for turn in range(max(map(len, shuffled))) for group in shuffled if turn < len(group)]
    return [_question(utterance, rng) for utterance in picked[:count]]


def _question(asked: Utterance, rng: np.random.Generator) -> Probe:
    patience_s = _TELLING_S if asked.category == "tellings" else _LISTEN_S
    end_s = ASK_AT_S + asked.end_s
    return Probe(
        kind=ProbeKind.QUESTION,
        sound=lay([(ASK_AT_S, asked.sound())], ASK_AT_S + asked.seconds + patience_s, rng),
        moment_s=end_s,
        end_s=end_s,
        expected=asked.expected,
        plain=asked.fault is None,
    )


def _pauses(count: int) -> list[Probe]:
    """Half of them after words whose pauses the faulty model takes; shorter and longer ones."""
    share = -(-count // 4)
    found = [
        situation
        for seed, pause_s in enumerate(_PAUSES_S)
        for faulty in (False, True)
        for situation in hesitations(_GROUP, share, pause_s=pause_s, faulty=faulty, seed=20 + seed)
    ]
    return _each(ProbeKind.PAUSE, found)[:count]


def _halves(kind: ProbeKind, count: int) -> list[Probe]:
    half = -(-count // 2)
    found = [s for faulty in (False, True) for s in interruptions(_GROUP, half, faulty=faulty, seed=30)]
    return _each(kind, found)[:count]


def _each(kind: ProbeKind, found: Iterable[Situation]) -> list[Probe]:
    return [
        Probe(
            kind=kind,
            sound=each.sound,
            moment_s=each.moment_s,
            end_s=each.end_s,
            expected=each.expected,
            plain=not each.faulty,
        )
        for each in found
    ]
