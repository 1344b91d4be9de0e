"""What a caller may choose about sampling, and the ranges in which it makes sense.

This file owns the parameters' names, defaults and limits; how they act on logits is `sampling`'s business.
"""

import math

import msgspec

from server.errors import SamplingError

__all__ = ["MAX_REPETITION_CONTEXT", "SamplingParams"]

MAX_REPETITION_CONTEXT = 256
"""Text tokens remembered per row; the stock page's slider ends at 200."""

_COLDEST = 0.01
_HOTTEST = 5.0
_LARGEST_TOP_K = 1_000_000
_PAD_MULT = 100.0
_PENALTY = (0.5, 5.0)


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How one row turns logits into tokens. Defaults are those of the `moshi` package.

    A temperature of 0 is greedy for that stream, and `use_sampling=False` is greedy for both. A top-k of 0
    keeps the whole vocabulary. `pad_mult` is added to the padding token's logit after the division by the
    temperature, so it multiplies the odds of staying silent by `exp(pad_mult)`, as in Kyutai's Rust server.
    `repetition_penalty` divides a positive logit, and multiplies a negative one, of every text token among
    the row's last `repetition_penalty_context` words' pieces (padding tokens neither count nor are punished).
    Greedy rows honour both, too.

    Raises `SamplingError` for a value of the wrong type or outside its range.
    """

    use_sampling: bool = True
    text_temperature: float = 0.7
    text_topk: int = 25
    audio_temperature: float = 0.8
    audio_topk: int = 250
    pad_mult: float = 0.0
    repetition_penalty: float = 1.0
    repetition_penalty_context: int = 64

    def __post_init__(self) -> None:
        if not isinstance(self.use_sampling, bool):
            raise SamplingError("use_sampling", self.use_sampling, expected="true or false")
        for field in ("text_temperature", "audio_temperature"):
            _check_temperature(field, getattr(self, field))
        for field in ("text_topk", "audio_topk"):
            _check_int(field, getattr(self, field), 0, _LARGEST_TOP_K)
        _check_float("pad_mult", self.pad_mult, -_PAD_MULT, _PAD_MULT)
        _check_float("repetition_penalty", self.repetition_penalty, *_PENALTY)
        _check_int("repetition_penalty_context", self.repetition_penalty_context, 0, MAX_REPETITION_CONTEXT)

    @property
    def text_greedy(self) -> bool:
        """Whether the text stream takes its most probable token."""
        return not self.use_sampling or self.text_temperature == 0

    @property
    def audio_greedy(self) -> bool:
        """Whether the audio stream takes its most probable tokens."""
        return not self.use_sampling or self.audio_temperature == 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_temperature(field: str, value: float) -> None:
    if not _is_number(value) or not (value == 0 or _COLDEST <= value <= _HOTTEST):
        raise SamplingError(field, value, expected=f"0 for greedy, or a number from {_COLDEST} to {_HOTTEST}")


def _check_float(field: str, value: float, low: float, high: float) -> None:
    if not _is_number(value) or not low <= value <= high:
        raise SamplingError(field, value, expected=f"a number from {low} to {high}")


def _check_int(field: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise SamplingError(field, value, expected=f"a whole number from {low} to {high}")
