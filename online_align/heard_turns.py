"""Turns of both sides as far as signals tell of them: for counting complaints of many calls without opening any.

A signal says when one side began or ended, rarely both. What it leaves open is assumed here, once, with a number;
whoever needs the turns themselves has the sound decoded (`transcribe`). It knows no journal.
"""

from collections.abc import Sequence
from typing import Final

from online_align.conversation import Turn
from server.signals import Signal, SignalKind, State

__all__ = ["heard_turns"]

_ASKS_S: Final = 1.5
"""A caller's turn of which only the end is known is taken to have begun so long before it: a short question."""
_SAYS_S: Final = 3.0
"""A model's turn of which only the beginning is known lasts so long, or until the caller speaks."""
_SAME_S: Final = 0.3
"""Two signals that put a caller's end so near to each other speak of one turn."""


def heard_turns(signals: Sequence[Signal]) -> tuple[list[Turn], list[Turn]]:
    """The caller's turns and the model's, in order. Signals that were never settled tell nothing."""
    user: list[tuple[float, float]] = []
    starts: list[float] = []
    for signal in signals:
        if signal.state is not State.FINAL:
            continue
        match signal.kind:
            case SignalKind.RESPONSE:
                late = (signal.latency_s or 0.0) >= 0
                ended, began = (signal.t0, signal.t1) if late else (signal.t1, signal.t0)
                user.append((ended - _ASKS_S, ended))
                starts.append(began)
            case SignalKind.CUT_OFF | SignalKind.PAUSE_TAKEOVER:
                user.append((min(signal.t0, signal.t1 - _ASKS_S), signal.t1))
                starts.append(signal.t0)
            case SignalKind.NO_RESPONSE:
                user.append((signal.t0 - _ASKS_S, signal.t0))
            case SignalKind.BARGE_IN:
                user.append((signal.t0, signal.t1))
            case _:
                pass
    asked = _apart(user)
    return [_turn(t0, t1) for t0, t1 in asked], [_turn(t0, _until(t0, asked)) for t0 in sorted(starts)]


def _apart(user: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """One of each, none beginning before the one before it has ended."""
    found: list[tuple[float, float]] = []
    for t0, t1 in sorted(user, key=lambda turn: turn[1]):
        before_s = found[-1][1] if found else 0.0
        if not found or t1 - before_s > _SAME_S:
            found.append((max(t0, before_s), t1))
    return found


def _until(began_s: float, asked: Sequence[tuple[float, float]]) -> float:
    return min([began_s + _SAYS_S, *(t0 for t0, _ in asked if t0 > began_s)])


def _turn(t0: float, t1: float) -> Turn:
    return Turn(t0=t0, t1=t1, first=0, last=0)
