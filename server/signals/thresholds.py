"""Every number that decides what is a signal, in one place, with where it comes from.

FDB is Full-Duplex-Bench v1 (arXiv 2503.04721), FDB 1.5 its successor (arXiv 2507.23159), FD-Bench is arXiv 2507.19040.
Times are seconds, levels dBFS (RMS against full scale).
"""

from typing import Final

import msgspec

__all__ = ["DEFAULT", "Thresholds"]


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """Read-only; `DEFAULT` is what the server uses and what `kinds.DETECTOR` names."""

    voice_on: float = 0.5
    """Probability of speech at which the user may have started (Silero's own default)."""
    voice_off: float = 0.35
    """Probability below which a speaking user is silent (Silero's default: 0.15 below `voice_on`)."""
    onset_hops: int = 3
    """Voiced hops of 32 ms among the last five that make a start: a click has one."""
    user_gap_s: float = 0.6
    """A shorter silence of the user is inside his turn. FDB 1.5, `get_timing.py`: user gaps up to 0.6 s are merged."""
    gate_dbfs: float = -58.0
    """Quieter hops are not speech and are not looked at."""
    distant_db: float = 14.0
    """Speech whose loudest 32 ms are so far below the caller's loudest are somebody else's: it makes no signal."""
    usual_dbfs: float = -16.0
    """What the caller's loudest 32 ms are taken for before he is known."""
    doubt_db: float = 0.02
    """That is lowered by so much with every hop of nearer speech that is missing: a quiet microphone is soon heard."""

    model_on_dbfs: float = -45.0
    """Level of 20 ms of the model's sound from which it speaks."""
    model_off_dbfs: float = -52.0
    """What is quieter is no part of a turn that goes on: a last consonant may be softer than any beginning."""
    model_onset_s: float = 0.06
    """So much sound makes a start."""
    model_gap_s: float = 1.0
    """A shorter silence of the model is inside its turn: the embedded model rests 0.8 s between sentences."""
    model_gap_over_user_s: float = 0.5
    """The same while the user speaks. FDB 1.5, `get_timing.py`: model gaps up to 0.5 s are merged."""

    overlap_reach_s: float = 0.2
    """A user who starts so soon after the model's last sound has still started while it spoke: hence signed yields."""
    barge_in_s: float = 0.5
    """A sound over the model's voice is a barge-in from this length on (provisional until `backchannel_s`)."""
    backchannel_s: float = 1.0
    """What stays shorter and has at most `backchannel_words` words is a backchannel. FDB: shorter than 1 s and, in its
    code, at most two words."""
    backchannel_words: int = 2
    announce_s: float = 0.2
    """A sound over the model's voice is announced, provisionally, from this length on."""
    no_yield_s: float = 1.5
    """A model that talks so long after a barge-in's start does not yield."""

    cut_off_s: float = 0.5
    """The model started more than this before the user's end. FD-Bench: 8,000 samples at 16 kHz make an early
    interrupt; less is a response with a negative latency."""
    takeover_s: float = 1.0
    takeover_words: int = 3
    """Taking the turn means so long a reply or more words than this. FDB v1: shorter than 1 s and at most three words
    is no takeover."""
    pause_s: float = 1.3
    """A user who goes on so soon after his own end had paused; later, he speaks anew."""
    noticed_late_s: float = 0.4
    """A beginning is known so much later than it was, at most: that long after `pause_s` a response is still open."""
    no_response_s: float = 2.5
    """Silence after the user's end. FD-Bench: a gap of more than 2.5 s."""
    shortest_turn_s: float = 0.25
    """A shorter sound of the user asks for no answer."""
    monologue_s: float = 20.0
    monologue_gap_s: float = 2.0
    """A longer silence of the model starts its talking anew."""

    echo_share: float = 0.17
    """Share of the sound's whitened energy that the model's own voice explains, from which it is echo."""
    echo_sound_s: float = 0.2
    """Less sound than that is not judged yet: it waits for the next frame."""
    echo_reach_s: float = 1.6
    """Longest way of the model's voice back to us: network, buffers, loudspeaker, room."""


DEFAULT: Final = Thresholds()
