"""What a caller asks for in the query string of `/api/chat`, checked. It knows names and ranges, no sockets."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from server.engine import SamplingParams
from server.errors import ParameterError, SamplingError
from server.protocol import Consent

__all__ = ["CallParameters", "read_parameters"]

_FRACTIONS: Final = ("text_temperature", "audio_temperature", "pad_mult", "repetition_penalty")
_WHOLE: Final = ("text_topk", "audio_topk", "repetition_penalty_context")
_SEEDS: Final = ("text_seed", "audio_seed")
_LARGEST_SEED: Final = 2**63 - 1
_LONGEST_TOKEN: Final = 256


class CallParameters(msgspec.Struct, frozen=True, kw_only=True):
    """One caller's wishes. `seed` is None when the engine is to draw one."""

    sampling: SamplingParams
    seed: int | None = None
    consent: Consent = Consent()
    resume_token: str | None = None
    """Names a lost call to go on with. The other wishes are then those it began with."""


def read_parameters(query: Mapping[str, str], recommended: SamplingParams | None = None) -> CallParameters:
    """Check the stock page's nine sampling parameters, `consent` and `resume_token`; others are ignored.

    What the caller leaves out is as `recommended` by the checkpoint. Raises `ParameterError`.
    """
    return CallParameters(
        sampling=_sampling(query, recommended or SamplingParams()),
        seed=_seed(query),
        consent=_consent(query.get("consent", "")),
        resume_token=_resume_token(query.get("resume_token")),
    )


def _sampling(query: Mapping[str, str], recommended: SamplingParams) -> SamplingParams:
    numbers: dict[str, Any] = {name: _number(name, query[name], float) for name in _FRACTIONS if name in query}
    numbers |= {name: _number(name, query[name], int) for name in _WHOLE if name in query}
    try:
        return msgspec.structs.replace(recommended, **numbers)
    except SamplingError as problem:
        raise ParameterError(problem.field, query[problem.field], expected=problem.expected) from problem


def _number(name: str, value: str, kind: type[float]) -> float:
    try:
        return kind(value)
    except ValueError as problem:
        expected = "a whole number" if issubclass(kind, int) else "a number"
        raise ParameterError(name, value, expected=expected) from problem


def _seed(query: Mapping[str, str]) -> int | None:
    """Make one seed of the page's two: the engine has one source of randomness per row."""
    given = [_one_seed(name, query[name]) for name in _SEEDS if name in query]
    if not given:
        return None
    return given[0] if len(given) == 1 else (given[0] * 1_000_003 + given[1]) % (_LARGEST_SEED + 1)


def _one_seed(name: str, value: str) -> int:
    expected = f"a whole number from 0 to {_LARGEST_SEED}"
    if not (value.isascii() and value.isdecimal() and len(value) <= 19 and int(value) <= _LARGEST_SEED):
        raise ParameterError(name, value, expected=expected)
    return int(value)


def _consent(value: str) -> Consent:
    words = {word.strip() for word in value.split(",")} - {"", "none"}
    if unknown := words - {"keep", "train"}:
        raise ParameterError("consent", ",".join(sorted(unknown)), expected="keep, train, both with a comma, or none")
    return Consent(keep="keep" in words, train="train" in words)


def _resume_token(value: str | None) -> str | None:
    if value is not None and not (value.isascii() and value.isprintable() and 0 < len(value) <= _LONGEST_TOKEN):
        raise ParameterError("resume_token", value, expected=f"1 to {_LONGEST_TOKEN} printable ASCII characters")
    return value
