"""What is kept of a call: the reply, the two-channel recording, and who spoke when.

Any of the files may be left out. Sound goes to disk as it comes; only one level per 10 ms stays in memory.
"""

from collections.abc import Sequence
from pathlib import Path

from client.activity import HOP_S, LevelMeter, Turn, speech_spans, turns
from client.sound import CallWriter, Closing, Pcm, WavWriter

__all__ = ["Recording"]


class Recording(Closing):
    """Both sides of a call, each appended in its own time. Close it (or use `with`) to finish the files."""

    def __init__(self, *, reply: Path | None = None, call: Path | None = None) -> None:
        """`reply` gets the model alone, `call` the caller on the left and the model on the right.

        Both begin with the call's clock, so `reply` is the right side of `call`.
        """
        self._reply = WavWriter(reply) if reply else None
        self._call = CallWriter(call) if call else None
        self._user_levels = LevelMeter()
        self._model_levels = LevelMeter()

    def user(self, pcm: Pcm) -> None:
        """Append float32 [samples] of the caller."""
        self._user_levels.add(pcm)
        if self._call:
            self._call.user(pcm)

    def model(self, pcm: Pcm) -> None:
        """Append float32 [samples] of the model."""
        self._model_levels.add(pcm)
        if self._reply:
            self._reply.write(pcm)
        if self._call:
            self._call.model(pcm)

    def model_quiet_for_s(self) -> float | None:
        """Seconds of silence since the model last spoke; None when it has not spoken yet."""
        levels = self._model_levels.levels_dbfs
        spans = speech_spans(levels)
        return len(levels) * HOP_S - spans[-1].end_s if spans else None

    def turns(self, text_times_s: Sequence[float], *, heard_after_s: float | None) -> list[Turn]:
        """Pair turns and answers so far; see `client.activity.turns`."""
        user, model = (speech_spans(meter.levels_dbfs) for meter in (self._user_levels, self._model_levels))
        return turns(user, model, text_times_s, heard_after_s=heard_after_s)

    def close(self) -> None:
        """Finish the files."""
        for writer in (self._reply, self._call):
            if writer:
                writer.close()
