"""Query parameters. Refusals over the wire are in `test_bad_input`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine import SamplingParams
from server.errors import ParameterError
from server.parameters import CallParameters, read_parameters
from server.protocol import Consent

STOCK_PAGE = {
    "text_temperature": "0.7",
    "text_topk": "25",
    "audio_temperature": "0.8",
    "audio_topk": "250",
    "pad_mult": "0",
    "text_seed": "299792",
    "audio_seed": "458299",
    "repetition_penalty_context": "64",
    "repetition_penalty": "1.0",
}


def test_nothing_asked_is_every_default() -> None:
    assert read_parameters({}) == CallParameters(sampling=SamplingParams())


def test_what_the_stock_page_sends_by_default_is_the_default() -> None:
    parameters = read_parameters(STOCK_PAGE | {"worker_auth_id": "x", "email": "y", "image_url": "z"})
    assert parameters.sampling == SamplingParams()
    assert parameters.seed is not None


def test_what_is_left_out_is_as_the_checkpoint_recommends() -> None:
    recommended = SamplingParams(text_temperature=0, audio_topk=7)
    sampling = read_parameters({"audio_topk": "9"}, recommended).sampling
    assert sampling == SamplingParams(text_temperature=0, audio_topk=9)
    with pytest.raises(ParameterError, match="audio_topk"):
        read_parameters({"audio_topk": "-9"}, recommended)


def test_each_parameter_arrives() -> None:
    for name in set(STOCK_PAGE) - {"text_seed", "audio_seed"}:
        changed = read_parameters({name: "3"}).sampling
        assert getattr(changed, name) == 3, name


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_seeds_are_repeatable_in_range_and_both_matter(text: int, audio: int) -> None:
    both = read_parameters({"text_seed": str(text), "audio_seed": str(audio)}).seed
    assert both == read_parameters({"text_seed": str(text), "audio_seed": str(audio)}).seed
    assert both is not None
    assert 0 <= both < 2**63
    other = read_parameters({"text_seed": str(text), "audio_seed": str(audio ^ 1)}).seed
    assert both != other
    assert read_parameters({"text_seed": str(text)}).seed == text


def test_consent_is_given_in_words() -> None:
    given_words = ("", "none", "keep", "keep,train", " train , keep ")
    assert [read_parameters({"consent": words}).consent for words in given_words] == [
        Consent(),
        Consent(),
        Consent(keep=True),
        Consent(keep=True, train=True),
        Consent(keep=True, train=True),
    ]


def test_a_refusal_names_what_was_got_and_what_is_allowed() -> None:
    with pytest.raises(ParameterError) as caught:
        read_parameters({"text_topk": "-4"})
    assert (caught.value.name, caught.value.close_code) == ("text_topk", 4400)
    assert "got text_topk = '-4'; expected a whole number from 0 to " in str(caught.value)


def test_a_long_value_is_not_repeated_in_full() -> None:
    with pytest.raises(ParameterError) as caught:
        read_parameters({"text_seed": "x" * 10_000})
    assert len(str(caught.value)) < 300
