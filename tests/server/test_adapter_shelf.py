"""How a running server reads an adapter: in slices, each with a rest after it, in a thread of its own."""

import threading
import time
from pathlib import Path

import pytest

from server import adapter_shelf
from server.adapter_shelf import Shelf
from server.engine import Engine
from tests.server.adapter_files import shop

_REST_S = 0.000123


def test_it_rests_after_every_slice_and_hands_over_what_it_has_read(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice of no length ends wherever one may end."""
    rests: list[str] = []
    sleep = time.sleep

    def noted(seconds: float) -> None:
        if seconds == _REST_S:
            rests.append(threading.current_thread().name)
        sleep(seconds)

    monkeypatch.setattr(adapter_shelf, "_SLICE_S", 0.0)
    monkeypatch.setattr(adapter_shelf, "_REST_S", _REST_S)
    monkeypatch.setattr(time, "sleep", noted)
    engine = Engine.load(tiny, slots=1, device="cpu", max_adapters=2)
    with shop(tmp_path / "data", tiny, tmp_path / "files") as store:
        (tmp_path / "files").mkdir(exist_ok=True)
        store.stage("one", seed=1)
        row = store.registry.get("one")
    told = threading.Event()
    shelf = Shelf(engine, tmp_path / "data", told.set)
    try:
        shelf.want(row)
        assert told.wait(60.0)
        assert shelf.settle() == []
        assert shelf.get(row) is not None
    finally:
        shelf.stop()
    assert len(rests) >= len(engine.adapter_layers), "at least one for every layer"
    assert {name.rpartition("_")[0] for name in rests} == {"duologue-staging"}
