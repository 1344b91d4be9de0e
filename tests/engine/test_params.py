"""The ranges of sampling parameters, by hand and from JSON."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.engine import Engine, SamplingParams
from server.errors import CheckpointError, SamplingError
from tests.tiny_checkpoint import write_tiny_checkpoint

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


def test_a_checkpoint_recommends_its_own_sampling(tmp_path: Path) -> None:
    """`lm_gen_config` speaks of `LMGen`; `open` without parameters samples as it says."""
    folder = write_tiny_checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["lm_gen_config"] = {"temp": 0.5, "temp_text": 0.0, "top_k": 7}
    (folder / "config.json").write_text(json.dumps(config))
    engine = Engine.load(folder, slots=1, device="cpu")
    assert engine.recommended_sampling == SamplingParams(audio_temperature=0.5, text_temperature=0, audio_topk=7)


def test_a_checkpoint_with_impossible_sampling_is_refused(tmp_path: Path) -> None:
    """The file and the field are named."""
    folder = write_tiny_checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["lm_gen_config"] = {"temp": -1}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="audio_temperature"):
        Engine.load(folder, slots=1, device="cpu")
