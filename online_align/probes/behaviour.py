"""What a model did in the probes, in numbers: whether, when, how long and what it spoke.

Text stream and sound are both looked at: words that nobody hears and sound without words are faults of their own. It
knows no limits and no adapters.
"""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import msgspec
import numpy as np

from online_align.probes.play import Played
from online_align.probes.scenes import ProbeKind

__all__ = ["NEVER_S", "Measure", "behaviour"]

NEVER_S = 3.0
"""Seconds that a model which never yields counts for, as in the project's results."""

_LOUD_DBFS = -45.0
_GAP_S = 0.5
_NEAR_WORD_S = 1.0
_REPEATED_WORDS = 4


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One number. `value` is None where nothing could be counted; `of` says how many calls it rests on."""

    value: float | None
    of: int
    unit: str = "share"
    each: tuple[bool, ...] = ()
    """Of a share over all calls of a kind: what each was, so that two models can be compared call by call."""


def behaviour(played: Sequence[Played]) -> dict[str, Measure]:
    """Every number, by name; `docs/gate.md` says what each is."""
    by_kind: dict[ProbeKind, list[Played]] = {kind: [] for kind in ProbeKind}
    for each in played:
        by_kind[each.probe.kind].append(each)
    asked, paused = by_kind[ProbeKind.QUESTION], by_kind[ProbeKind.PAUSE]
    return (
        _answers(asked)
        | _delivery([each for each in asked if each.words])
        | {"pauses_taken": _share(paused, _early), "right_after_pause": _share(paused, _right)}
        | _interruptions(by_kind[ProbeKind.INTERRUPTION])
        | {"told_on_through_hum": _share(by_kind[ProbeKind.HUM], _told_on)}
        | {"spoke_to_nobody": _share(by_kind[ProbeKind.NOBODY], lambda each: bool(each.words) or _seconds(each) > 0.5)}
        | {"sound_without_words": _mean([_wordless(each) for each in played], "share")}
    )


def _answers(asked: Sequence[Played]) -> dict[str, Measure]:
    gaps = [float(each.spoken_s[0] - each.probe.end_s) for each in asked if len(each.spoken_s)]
    in_time = [gap for gap in gaps if gap >= 0]
    return {
        "answered": _share(asked, lambda each: bool(each.words_after)),
        "right": _share(asked, _right),
        "began_early": _share(asked, _early),
        "gap_p50_s": Measure(value=_quantile(in_time, 0.5), of=len(in_time), unit="s"),
        "gap_p90_s": Measure(value=_quantile(in_time, 0.9), of=len(in_time), unit="s"),
    }


def _delivery(answered: Sequence[Played]) -> dict[str, Measure]:
    """How answers are spoken, over the questions that got one."""
    stretches = [_stretches(each) for each in answered]
    lengths = [length for each in stretches for length in each]
    said = [each.words for each in answered]
    short = [words.split(".")[0] for words in said]
    return {
        "speech_s": _mean([_seconds(each) for each in answered], "s"),
        "stretches": _mean([float(len(each)) for each in stretches], "count"),
        "stretch_s": _mean(lengths, "s"),
        "question_endings": _of_answers(answered, lambda each: each.words.endswith("?")),
        "repeating": _of_answers(answered, lambda each: _repeats(each.words)),
        "distinct": Measure(value=len(set(short)) / len(short) if short else None, of=len(short)),
    }


def _interruptions(cut_in: Sequence[Played]) -> dict[str, Measure]:
    """Over those who were talking when the caller cut in."""
    talking = [each for each in cut_in if _was_talking(each)]
    yields = [min(NEVER_S, _yield_s(each)) for each in talking]
    return {
        "yield_s": _mean(yields, "s"),
        # What it told before the caller cut in is no answer that came too early.
        "right_after_interruption": _share(cut_in, lambda each: each.words_after.endswith(each.probe.expected)),
    }


def _right(each: Played) -> bool:
    return (each.words_after.endswith(each.probe.expected) and not _early(each)) or each.words == each.probe.expected


def _early(each: Played) -> bool:
    return bool(len(each.spoken_s)) and float(each.spoken_s[0]) < each.probe.end_s


def _told_on(each: Played) -> bool:
    """Whether it still spoke a second and a half after the hum, and took no longer rest before."""
    after = each.spoken_s[each.spoken_s > each.probe.moment_s]
    before = each.spoken_s[each.spoken_s <= each.probe.moment_s]
    if not len(before) or not len(after):
        return False
    return float(after[0] - before[-1]) < 2.0 and float(after[-1]) > each.probe.moment_s + 1.5


def _was_talking(each: Played) -> bool:
    return bool(np.any((each.spoken_s > each.probe.moment_s - 1.0) & (each.spoken_s <= each.probe.moment_s)))


def _yield_s(each: Played) -> float:
    """From the caller's onset to the end of the last token that was begun before the caller's end."""
    before = each.spoken_s[each.spoken_s < each.probe.end_s]
    return max(0.0, float(before[-1] + each.frame_s - each.probe.moment_s))


def _loud_T(each: Played) -> np.ndarray:
    loud: np.ndarray = each.level_T > _LOUD_DBFS
    return loud


def _seconds(each: Played) -> float:
    """Of audible sound."""
    return float(_loud_T(each).sum() * each.frame_s)


def _stretches(each: Played) -> list[float]:
    """Seconds of each stretch of sound; rests shorter than half a second are inside one."""
    steps = np.flatnonzero(_loud_T(each))
    if not len(steps):
        return []
    limit = round(_GAP_S / each.frame_s)
    breaks = [i for i, (one, other) in enumerate(pairwise(steps), 1) if other - one > limit]
    parts = np.split(steps, breaks)
    return [float((part[-1] - part[0] + 1) * each.frame_s) for part in parts]


def _wordless(each: Played) -> float:
    """Share of the call in which there is sound and no word within a second."""
    loud_s = (np.flatnonzero(_loud_T(each)) + 1) * each.frame_s
    if not len(loud_s):
        return 0.0
    if not len(each.spoken_s):
        return len(loud_s) / len(each.level_T)
    far = np.abs(loud_s[:, None] - each.spoken_s[None]).min(axis=1) > _NEAR_WORD_S
    return float(far.sum() / len(each.level_T))


def _repeats(words: str) -> bool:
    """Whether four words follow each other twice, or one follows itself twice."""
    each = re.findall(r"[^\W_]+", words.lower())
    runs = [tuple(each[i : i + _REPEATED_WORDS]) for i in range(len(each) - _REPEATED_WORDS + 1)]
    stuck = any(one == other == third for one, other, third in zip(each, each[1:], each[2:], strict=False))
    return stuck or len(set(runs)) < len(runs)


def _share(found: Sequence[Played], which: Callable[[Played], bool]) -> Measure:
    each = tuple(which(one) for one in found)
    return Measure(value=sum(each) / len(each) if each else None, of=len(each), each=each)


def _of_answers(found: Sequence[Played], which: Callable[[Played], bool]) -> Measure:
    """A share over calls that may be others with another model: not comparable one by one."""
    return msgspec.structs.replace(_share(found, which), each=())


def _mean(values: Sequence[float], unit: str) -> Measure:
    return Measure(value=float(np.mean(values)) if values else None, of=len(values), unit=unit)


def _quantile(values: Sequence[float], share: float) -> float | None:
    return float(np.quantile(values, share)) if values else None
