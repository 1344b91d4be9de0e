"""The ranges of sampling parameters, by hand and from JSON."""

from typing import Any

import msgspec
import pytest

from server.engine import SamplingParams
from server.errors import SamplingError

GOOD = [
    {"use_sampling": False},
    {"text_temperature": 0},
    {"text_temperature": 0.01, "audio_temperature": 5},
    {"text_topk": 0, "audio_topk": 500},
    {"pad_mult": -4, "repetition_penalty": 2, "repetition_penalty_context": 200},
    {"repetition_penalty_context": 0},
]
BAD: list[tuple[str, Any]] = [
    ("use_sampling", 1),
    ("text_temperature", -0.1),
    ("text_temperature", 0.001),
    ("text_temperature", "0.7"),
    ("text_temperature", True),
    ("text_temperature", None),
    ("audio_temperature", 5.1),
    ("audio_temperature", float("nan")),
    ("audio_temperature", float("inf")),
    ("text_topk", -1),
    ("text_topk", 2.5),
    ("audio_topk", True),
    ("audio_topk", 10**9),
    ("pad_mult", float("-inf")),
    ("pad_mult", 101),
    ("repetition_penalty", 0),
    ("repetition_penalty", 5.5),
    ("repetition_penalty_context", 257),
    ("repetition_penalty_context", -1),
]


def test_defaults_are_moshis() -> None:
    assert msgspec.to_builtins(SamplingParams()) == {
        "use_sampling": True,
        "text_temperature": 0.7,
        "text_topk": 25,
        "audio_temperature": 0.8,
        "audio_topk": 250,
        "pad_mult": 0.0,
        "repetition_penalty": 1.0,
        "repetition_penalty_context": 64,
    }


@pytest.mark.parametrize("values", GOOD)
def test_good_values(values: dict[str, Any]) -> None:
    params = SamplingParams(**values)
    assert {field: getattr(params, field) for field in values} == values
    assert msgspec.convert(values, SamplingParams) == params


@pytest.mark.parametrize(("field", "value"), BAD)
def test_bad_values(field: str, value: Any) -> None:
    with pytest.raises(SamplingError, match=field) as refusal:
        SamplingParams(**{field: value})
    assert refusal.value.field == field
    assert refusal.value.value is value
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert({field: value}, SamplingParams)


def test_greedy_per_stream() -> None:
    assert SamplingParams(text_temperature=0).text_greedy
    assert not SamplingParams(text_temperature=0).audio_greedy
    assert SamplingParams(audio_temperature=0).audio_greedy
    both = SamplingParams(use_sampling=False)
    assert both.text_greedy
    assert both.audio_greedy


def test_frozen() -> None:
    with pytest.raises(AttributeError):
        SamplingParams().text_topk = 3  # type: ignore[misc]
