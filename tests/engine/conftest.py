"""Small checkpoints, written once per run, and engines and references that are loaded once per test class."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.engine import Engine
from server.engine.checkpoint import MINI
from server.engine.engine import Work
from tests.engine.promises import SLOTS
from tests.engine.stock import Stock
from tests.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_24k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Moshi's own rate, two frames of delay, and one codebook more for the user than for the model."""
    overrides = {"n_q": 7, "dep_q": 3, "delays": [0, 0, 2, 2, 0, 2, 2, 2], "depformer_context": 3}
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny24"), seed=7, sample_rate=24000, lm_overrides=overrides)


@pytest.fixture(scope="session")
def mini() -> Path:
    return MINI


@pytest.fixture(scope="class")
def folder(request: pytest.FixtureRequest) -> Path:
    chosen: Path = request.getfixturevalue(getattr(request.cls, "checkpoint", "tiny"))
    return chosen


@pytest.fixture(scope="class")
def work(request: pytest.FixtureRequest) -> Work:
    """What does the work on the class's frames."""
    chosen: Work = getattr(request.cls, "work", "auto")
    return chosen


@pytest.fixture(scope="class")
def loaded(folder: Path, work: Work) -> Engine:
    return Engine.load(folder, slots=SLOTS, device="cpu", work=work)


@pytest.fixture(scope="class")
def stock(folder: Path) -> Stock:
    return Stock(folder)


@pytest.fixture
def engine(loaded: Engine) -> Iterator[Engine]:
    """The class's engine, with every slot closed before and after."""
    yield loaded
    for slot in loaded.open_slots:
        loaded.close(slot)
