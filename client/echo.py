"""Echo cancellation: what the loudspeakers play is taken out of what the microphone hears.

The work is WebRTC's (AEC3, by `pywebrtc-audio`); docs/decisions/0051-echo-cancellation.md has what it was measured to
do. It removes the model's voice almost fully, and while both speak it takes some of the user with it: with headphones
it is better off.

Shapes: float32 [samples] at 24 kHz, any multiple of 10 ms. The result is about 9 ms later than what went in.
"""

from typing import Any, Final, Protocol

import numpy as np

from client.errors import DeviceError
from client.sound import SAMPLE_RATE_HZ, Pcm

__all__ = ["HEADPHONES_ADVICE", "EchoCanceller", "NoCancellation", "WebRtcCanceller"]

_HOP: Final = SAMPLE_RATE_HZ // 100

HEADPHONES_ADVICE: Final = (
    "Echo cancellation is off: wear headphones, or the model hears itself and takes its own voice for yours."
)


class EchoCanceller(Protocol):
    """Takes the far end out of the near end."""

    def process(self, near: Pcm, far: Pcm) -> Pcm:
        """Clean the microphone's `near` of `far`, what was played at the same time or shortly before."""


class NoCancellation:
    """For headphones: the microphone as it is."""

    def process(self, near: Pcm, far: Pcm) -> Pcm:  # noqa: ARG002 - the far end does not matter
        """Return `near`."""
        return near


class WebRtcCanceller:
    """AEC3. It finds the delay between loudspeakers and microphone itself, and follows it."""

    def __init__(self) -> None:
        """Raises DeviceError when the package is missing."""
        try:
            import pywebrtc_audio  # noqa: PLC0415 - only talk needs it, and not with headphones
        except ImportError as problem:
            raise DeviceError(
                f"Echo cancellation is not installed ({problem}): `pip install pywebrtc-audio`, or wear headphones and "
                "give --echo-cancellation off."
            ) from problem
        self._processor: Any = pywebrtc_audio.AudioProcessor(SAMPLE_RATE_HZ, 1, echo_cancellation=True)

    def process(self, near: Pcm, far: Pcm) -> Pcm:
        """Clean `near`, 10 ms at a time."""
        assert near.shape == far.shape, "both ends are of the same time"
        assert len(near) % _HOP == 0, "whole hops of 10 ms"
        hops = range(0, len(near), _HOP)
        cleaned = [self._processor.process(near[at : at + _HOP], far[at : at + _HOP]) for at in hops]
        return np.concatenate(cleaned)
