"""What an adapter is put through before anybody hears it: frozen calls, with and without it, and what is counted.

`scenes` makes the calls, `play` runs them through the real engine, `behaviour` counts what the model did, `drift`
compares distributions frame by frame, `preferences` asks which side of people's pairs the model prefers, `recorded`
plays people's own calls on from where something was wrong or right.
"""

from online_align.probes.behaviour import Measure, behaviour
from online_align.probes.drift import Drift, drift, text_logits, using
from online_align.probes.play import Played, play
from online_align.probes.preferences import Agreement, agreement, margins
from online_align.probes.recorded import Moment, Recorded, play_moments
from online_align.probes.scenes import Probe, ProbeKind, ProbeSet, Sizes, probe_set

__all__ = [
    "Agreement",
    "Drift",
    "Measure",
    "Moment",
    "Played",
    "Probe",
    "ProbeKind",
    "ProbeSet",
    "Recorded",
    "Sizes",
    "agreement",
    "behaviour",
    "drift",
    "margins",
    "play",
    "play_moments",
    "probe_set",
    "text_logits",
    "using",
]
