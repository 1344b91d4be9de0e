"""The engine's promises on the embedded model."""

import pytest

from server.engine import Engine
from tests.engine.promises import EnginePromises

pytestmark = pytest.mark.mini


class TestMini(EnginePromises):
    checkpoint = "mini"


def test_loads_by_name() -> None:
    engine = Engine.load("mini", slots=1, device="cpu")
    assert engine.sample_rate == 16000
    assert engine.frame_size == 1280
    assert engine.context_frames >= 60 * engine.frame_rate, "the design asks for a minute of context"
