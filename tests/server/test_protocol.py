"""The wire's messages, byte for byte."""

import json
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import protocol
from server.protocol import CloseCode, Consent, ConsentChange, Kind, QueuePosition, SessionStart, Stats


def test_messages_are_a_byte_of_kind_and_a_body() -> None:
    assert protocol.HANDSHAKE == b"\x00"
    assert protocol.PING == b"\x06"
    assert protocol.audio(b"OggS") == b"\x01OggS"
    assert protocol.audio(b"") == b"\x01"
    assert protocol.text(" é") == b"\x02 \xc3\xa9"
    assert protocol.error("no") == b"\x05no"
    assert protocol.metadata(QueuePosition(position=2, eta_s=1.5)) == b'\x04{"type":"queue","position":2,"eta_s":1.5}'


def test_no_kind_that_the_stock_page_throws_on() -> None:
    assert max(Kind) < 8


def test_the_session_message_has_the_documented_fields() -> None:
    message = SessionStart(id="a1", max_speed=2.0, consent=Consent(keep=True))
    assert json.loads(protocol.metadata(message)[1:]) == {
        "type": "session",
        "id": "a1",
        "adapter": None,
        "sample_rate": 24000,
        "frame_ms": 80,
        "max_speed": 2.0,
        "resume_token": None,
        "consent": {"keep": True, "train": False},
    }


@pytest.mark.parametrize(
    "message",
    [
        SessionStart(id="x"),
        QueuePosition(position=1, eta_s=0.5),
        QueuePosition(position=1),
        Stats(lag_ms=80, dropped_ms=160, skipped_ms=0),
        ConsentChange(keep=True, train=False),
    ],
)
def test_metadata_comes_back(message: protocol.Metadata) -> None:
    kind, body = protocol.split(protocol.metadata(message))
    assert kind is Kind.METADATA
    assert protocol.read_metadata(body) == message
    newer = json.dumps(json.loads(body) | {"new_field": [1]}).encode()
    assert protocol.read_metadata(newer) == message, "fields of a later version are tolerated"


@given(st.binary(max_size=40))
def test_anything_can_be_taken_apart(message: bytes) -> None:
    kind, body = protocol.split(message)
    if not message or message[0] > 6:
        assert (kind, body) == (None, b"")
    else:
        assert bytes([Kind(message[0])]) + body == message


@given(st.binary(max_size=60) | st.recursive(st.none() | st.text(), st.lists).map(msgspec.json.encode))
def test_metadata_that_is_not_ours_is_none(body: bytes) -> None:
    assert protocol.read_metadata(body) is None


def test_private_close_codes_are_in_the_private_range() -> None:
    assert {code for code in CloseCode if code >= 4000} == {4400, 4401, 4408, 4409, 4410, 4429}


def test_a_client_needs_neither_torch_nor_moshi_nor_numpy() -> None:
    program = (
        "import sys, server, server.protocol; print(sorted({'torch', 'moshi', 'numpy', 'aiohttp'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
