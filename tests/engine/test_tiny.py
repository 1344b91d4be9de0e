"""The engine's promises on random weights: the embedded model's layout in small, and Moshi's rate."""

from tests.engine.promises import EnginePromises


class TestTiny(EnginePromises):
    checkpoint = "tiny"


class TestTwentyFourKilohertz(EnginePromises):
    checkpoint = "tiny_24k"


class TestTinyUpstream(EnginePromises):
    checkpoint = "tiny"
    work = "upstream"


class TestTwentyFourKilohertzUpstream(EnginePromises):
    checkpoint = "tiny_24k"
    work = "upstream"
