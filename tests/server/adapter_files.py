"""Adapters as a learner and a gate would leave them: files in the data folder, a row, and a verdict."""

import functools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Select

from server.engine.adapters import ADAPTER_WEIGHTS, file_sha256
from server.journal.database import connect
from server.journal.registry import AdapterRegistry, AdapterRow, VerdictRow, VerdictStage
from tests.engine.lora import tensors, write_adapter


@functools.cache
def made(base: Path, folder: Path, seed: int) -> Path:
    """An adapter with random numbers, large enough to change what is said; written once."""
    return write_adapter(folder / f"seed-{seed}", base, tensors(base, seed=seed))


class Shop:
    """A data folder with a journal, into which adapters are put."""

    def __init__(self, data_dir: Path, base: Path, files: Path) -> None:
        self.data_dir = data_dir
        self._base = base
        self._files = files
        self._database = connect(data_dir)
        self.registry = AdapterRegistry(self._database)

    def stage(self, name: str, *, seed: int, judged: bool = True, checkpoint: str | None = None) -> Path:
        """Put an adapter's files there and enter it as staged; the gate has passed it. Returns its folder."""
        folder = self.data_dir / "adapters" / name
        shutil.copytree(made(self._base, self._files, seed), folder)
        self.enter(name, folder, checkpoint=checkpoint or self._base.name, judged=judged)
        return folder

    def enter(self, name: str, folder: Path, *, checkpoint: str, judged: bool = True) -> None:
        """Enter an adapter whose files are there."""
        row = AdapterRow(
            id=name, checkpoint=checkpoint, path=f"adapters/{name}", sha256=file_sha256(folder / ADAPTER_WEIGHTS)
        )
        self.registry.add(row)
        if judged:
            self.pass_gate(name)

    def pass_gate(self, name: str) -> None:
        """Let the gate say yes."""
        self.registry.add_verdict(
            VerdictRow(adapter_id=name, stage=VerdictStage.GATE, passed=True, reason="as good as the base")
        )

    def canary(self, name: str, *, seed: int) -> Path:
        """Make a new adapter the canary."""
        folder = self.stage(name, seed=seed)
        self.registry.promote(name, reason="test")
        return folder

    def live(self, name: str, *, seed: int) -> Path:
        """Make a new adapter live."""
        folder = self.canary(name, seed=seed)
        self.registry.promote(name, reason="test")
        return folder

    def scalars(self, query: Select[tuple[str]]) -> list[str]:
        """Ask the journal."""
        with self._database.connect() as connection:
            return list(connection.scalars(query))

    def close(self) -> None:
        self._database.dispose()


@contextmanager
def shop(data_dir: Path, base: Path, files: Path) -> Iterator[Shop]:
    """Open for as long as the block lasts."""
    opened = Shop(data_dir, base, files)
    try:
        yield opened
    finally:
        opened.close()
