"""Who speaks: the user's turns from voice probabilities, the model's from its sound and its words.

Each side is a `Track` of turns with exact starts and ends; short silences inside a turn are bridged. The tracks know
nothing of each other.
"""

import math
from collections import deque
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from server.signals.thresholds import Thresholds
from server.signals.vad import HOP_S, Hop

__all__ = ["ModelTrack", "Turn", "UserTrack"]

_BLOCK_S: Final = 0.02
_ONSET_MEMORY: Final = 5
_EARLIER: Final = 6
_BACKGROUND: Final = 32
_BACKGROUND_PERCENTILE: Final = 80
_HINT_OF_VOICE: Final = 0.1
_ONSET_DB: Final = 4.0
_SOFT_DB: Final = 10.0
_ABOVE_BACKGROUND_DB: Final = 10.0
_DOUBTED_DB: Final = 1.0
_FADE_DB: Final = 12.0
_FADE_S: Final = 0.2
_LEVEL_WEIGHT: Final = 0.2
_NUCLEUS_DIP_DB: Final = 3.0
_SYLLABLES_PER_WORD: Final = 1.5


class Turn(msgspec.Struct, eq=False):
    """One turn of one side. It grows until its track says that it has ended."""

    t0: float
    t1: float
    """The end of its last sound so far."""
    sound_s: float = 0.0
    words: int = 0
    """The model's: words written. The user's: estimated from its syllables."""
    level_dbfs: float = -100.0
    ended: bool = False

    @property
    def length_s(self) -> float:
        """From its first to its last sound."""
        return self.t1 - self.t0


class UserTrack:
    """The user's turns. Speech far below his own level is somebody else's and makes none."""

    def __init__(self, thresholds: Thresholds) -> None:
        self._limits = thresholds
        self._recent: deque[tuple[float, Hop]] = deque(maxlen=_BACKGROUND + _EARLIER + _ONSET_MEMORY)
        self._own_dbfs = thresholds.usual_dbfs
        self._is_known = False
        self._near_at = 0.0
        self._syllables = _Syllables()
        self.turn: Turn | None = None
        """The latest one, ended or not."""

    @property
    def speaking(self) -> bool:
        """Whether a turn is open."""
        return self.turn is not None and not self.turn.ended

    def minds(self, t0: float, hop: Hop) -> bool:
        """Whether a hop at `t0` is loud and voiced enough to begin a turn, or to go on with one."""
        slack_db = self._slack_db(t0) if self.speaking else 0.0
        return hop.probability >= self._limits.voice_off and self._is_near(hop.level_dbfs + slack_db)

    def feed(self, t0: float, hop: Hop) -> None:
        """Note the hop of `HOP_S` that begins at `t0`."""
        if self.turn is not None and self.speaking:
            self._go_on(self.turn, t0, hop)
        else:
            self._watch(t0, hop)

    def stray(self) -> None:
        """Forget what might have become a start: it was not the user."""
        self._recent.clear()

    def _go_on(self, turn: Turn, t0: float, hop: Hop) -> None:
        if self.minds(t0, hop):
            if self._is_near(hop.level_dbfs):
                self._near_at = t0
            turn.t1 = t0 + HOP_S
            turn.sound_s += HOP_S
            turn.level_dbfs = max(turn.level_dbfs, hop.level_dbfs)
            self._learn(hop.level_dbfs)
            self._syllables.feed(hop.level_dbfs)
            turn.words = math.ceil(self._syllables.count / _SYLLABLES_PER_WORD)
        elif t0 + HOP_S - turn.t1 >= self._limits.user_gap_s:
            turn.ended = True
            self._own_dbfs += _LEVEL_WEIGHT * (turn.level_dbfs - self._own_dbfs)

    def _watch(self, t0: float, hop: Hop) -> None:
        self._recent.append((t0, hop))
        newest = list(self._recent)[-_ONSET_MEMORY:]
        voiced = [(at, each) for at, each in newest if each.probability >= self._limits.voice_on]
        own = [(at, each) for at, each in voiced if self._is_near(each.level_dbfs + _ONSET_DB)]
        if len(own) < self._limits.onset_hops:
            if len(voiced) >= self._limits.onset_hops and self.turn is None:
                self._own_dbfs -= self._limits.doubt_db
            return
        loudest = max(each.level_dbfs for _, each in own)
        if self._is_known or self._own_dbfs < self._limits.usual_dbfs - _DOUBTED_DB:
            self._learn(loudest)  # not at all sure that it is he: somebody farther away has talked for some time
        else:  # what he was taken for was a guess, and would break his first words into pieces if he is not so loud
            self._own_dbfs = loudest
        self._is_known = True
        self._near_at = t0
        self._syllables = _Syllables()
        began = self._first_hint(own[0][0])
        self.turn = Turn(t0=began, t1=t0 + HOP_S, sound_s=HOP_S * len(own), level_dbfs=loudest)
        self._recent.clear()

    def _first_hint(self, t0: float) -> float:
        """Go back from the first voiced hop over those that may be the word's soft beginning.

        A beginning may be far softer than the word where nothing else is heard: it must stand out from the second
        before. Where somebody else talks all the time, only what is nearly as loud as the user belongs to him.
        """
        earlier = [(at, hop) for at, hop in self._recent if at < t0]
        before = [hop.level_dbfs for _, hop in earlier[:-_EARLIER]]
        background = float(np.percentile(before, _BACKGROUND_PERCENTILE)) if before else 0.0
        for at, hop in reversed(earlier[-_EARLIER:]):
            soft = self._is_near(hop.level_dbfs + _SOFT_DB) or hop.level_dbfs >= background + _ABOVE_BACKGROUND_DB
            if hop.probability < _HINT_OF_VOICE or not soft:
                break
            t0 = at
        return t0

    def _slack_db(self, t0: float) -> float:
        """A word may fade away, but not for long: what then goes on quietly is somebody else."""
        return _FADE_DB if t0 - self._near_at <= _FADE_S else 0.0

    def _is_near(self, level_dbfs: float) -> bool:
        return level_dbfs >= self._own_dbfs - self._limits.distant_db

    def _learn(self, level_dbfs: float) -> None:
        """Know the user's loudest: louder at once, quieter slowly, at the end of a turn."""
        self._own_dbfs = max(self._own_dbfs, level_dbfs)


class _Syllables:
    """Counts the humps of a level: an estimate without a recogniser."""

    def __init__(self) -> None:
        self.count = 0
        self._peak = -100.0
        self._dip = -100.0
        self._rising = True

    def feed(self, level_dbfs: float) -> None:
        if self._rising:
            if level_dbfs > self._peak:
                self._peak = level_dbfs
            elif level_dbfs < self._peak - _NUCLEUS_DIP_DB:
                self.count += 1
                self._rising, self._dip = False, level_dbfs
        elif level_dbfs < self._dip:
            self._dip = level_dbfs
        elif level_dbfs > self._dip + _NUCLEUS_DIP_DB:
            self._rising, self._peak = True, level_dbfs


class ModelTrack:
    """The model's turns, from the energy of its sound in steps of 20 ms and the words of its text."""

    def __init__(self, thresholds: Thresholds, *, sample_rate: int) -> None:
        self._limits = thresholds
        self._block = round(_BLOCK_S * sample_rate)
        self._on = 10 ** (thresholds.model_on_dbfs / 10)
        self._off = 10 ** (thresholds.model_off_dbfs / 10)
        self._since: float | None = None
        self._loud_s = 0.0
        self._last = 0.0
        self._word_times: deque[float] = deque(maxlen=8)
        self.turn: Turn | None = None
        """The latest one, ended or not."""

    @property
    def speaking(self) -> bool:
        """Whether a turn is open: it sounded a moment ago."""
        return self.turn is not None and not self.turn.ended

    def feed(self, t0: float, pcm: NDArray[np.float32], *, word: bool, over_user: bool) -> None:
        """Note one frame that begins at `t0`, float32 `[samples]`.

        `word`: a word was written in it. `over_user`: the user speaks.
        """
        gap_s = self._limits.model_gap_over_user_s if over_user else self._limits.model_gap_s
        if word:
            self._word_times.append(t0)
            if self.turn is not None and self.speaking:
                self.turn.words += 1
        for index, level in enumerate(self._powers(pcm)):
            self._step(t0 + index * _BLOCK_S, level, gap_s)

    def _powers(self, pcm: NDArray[np.float32]) -> list[float]:
        """Of each block's movement: a constant offset, as a codec's silence may have, is nothing that anybody hears."""
        blocks = pcm[: len(pcm) // self._block * self._block].reshape(-1, self._block)
        powers: list[float] = blocks.var(axis=1).tolist()
        return powers

    def _step(self, t0: float, power: float, gap_s: float) -> None:
        loud = power > self._on
        if self.turn is not None and self.speaking:
            if power > self._off:
                self.turn.t1 = t0 + _BLOCK_S
                self.turn.sound_s += _BLOCK_S
            elif t0 + _BLOCK_S - self.turn.t1 >= gap_s:
                self.turn.ended = True
                self._since = None
        elif loud:
            self._begin(t0)
        elif self._since is not None and t0 - self._last > 2 * self._limits.model_onset_s:
            self._since = None

    def _begin(self, t0: float) -> None:
        """Start a turn once there is enough sound; its start is that of the first."""
        if self._since is None:
            self._since, self._loud_s = t0, 0.0
        self._loud_s += _BLOCK_S
        self._last = t0 + _BLOCK_S
        if self._loud_s >= self._limits.model_onset_s:
            # Text runs ahead of its sound by a frame or two.
            early = sum(at >= self._since - 0.25 for at in self._word_times)
            self.turn = Turn(t0=self._since, t1=self._last, sound_s=self._loud_s, words=early)
