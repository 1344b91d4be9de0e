"""One engine's places for adapters: what is ready in them, what is being read, and what was refused.

Files are read by a thread of its own, in slices with rests between, so that neither the tick nor whoever follows the
registry waits for a disk. Nothing is tried twice: an adapter that was refused stays refused as long as its hash is the
same. It knows neither calls nor states.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from server.adapter_plan import Version
from server.engine import Engine
from server.errors import AdapterRoomError, DuologueError
from server.journal.registry import AdapterRow, folder_of

__all__ = ["Refusal", "Shelf"]

log = logging.getLogger(__name__)

_SLICE_S: Final = 0.001
_REST_S: Final = 0.003
"""After each slice of work. The interpreter's lock is then the tick's for the asking."""
_WEIGHTS: Final = "lora.safetensors"

_Key = tuple[str, str]


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that cannot be used, and why, in a sentence."""

    row: AdapterRow
    reason: str


class Shelf:
    """Adapters of one engine. One thread at a time calls `want`, `settle` and `forget`; anybody may look.

    `on_read` runs in the reading thread whenever there is something to settle.
    """

    def __init__(self, engine: Engine, data_dir: Path, on_read: Callable[[], None]) -> None:
        self.engine = engine
        self.crowded = False
        """The last adapter that was wanted found no room."""
        self._data_dir = data_dir
        self._ready: dict[_Key, Version] = {}
        self._sizes: dict[int, int] = {}
        self._refused: dict[_Key, str] = {}
        self._reading: dict[_Key, tuple[AdapterRow, Future[int]]] = {}
        self._on_read = on_read
        self._has_read = threading.Event()
        self._reader = ThreadPoolExecutor(1, "duologue-staging")

    @property
    def ready(self) -> dict[str, Version]:
        """What may speak, by id."""
        return {version.id: version for version in list(self._ready.values())}

    @property
    def staged_bytes(self) -> int:
        """Bytes of the files that are ready."""
        return sum(list(self._sizes.values()))

    @property
    def reading(self) -> frozenset[str]:
        """Ids that are being read."""
        return frozenset(adapter for adapter, _ in list(self._reading))

    def get(self, row: AdapterRow) -> Version | None:
        """An adapter that is ready."""
        return self._ready.get(_key(row))

    def problem(self, row: AdapterRow) -> str:
        """Why an adapter is refused; empty where it is not."""
        return self._refused.get(_key(row), "")

    def want(self, row: AdapterRow) -> None:
        """Begin to read an adapter, unless it is ready, being read or refused, or there is no room: see `crowded`."""
        key = _key(row)
        if key in self._ready or key in self._refused or key in self._reading:
            return
        self.crowded = len(self.engine.adapters) + len(self._reading) >= self.engine.adapter_places
        if not self.crowded:
            self._has_read.clear()
            reading = self._reader.submit(self._read, row)
            self._reading[key] = row, reading
            reading.add_done_callback(self._tell)

    def settle(self) -> list[Refusal]:
        """Take over what has been read. Returns what was refused for good."""
        refusals = []
        for key, (row, reading) in list(self._reading.items()):
            if not reading.done():
                continue
            try:
                self._ready[key] = Version(id=row.id, number=reading.result())
                self._sizes[self._ready[key].number] = self._size(row)
            except AdapterRoomError:
                self.crowded = True
            except Exception as problem:  # noqa: BLE001 - a file nobody thought of must not keep others from a rollback
                reason = _sentence(problem)
                self._refused[key] = reason
                refusals.append(Refusal(row=row, reason=reason))
            del self._reading[key]
        return refusals

    def wait(self, timeout_s: float) -> None:
        """Wait until something that is being read has been, if anything is. Blocks."""
        if self._reading:
            self._has_read.wait(timeout_s)

    def forget(self, numbers: Iterable[int]) -> None:
        """Note that the engine has dropped these."""
        gone = frozenset(numbers)
        self._ready = {key: version for key, version in self._ready.items() if version.number not in gone}
        self._sizes = {number: size for number, size in self._sizes.items() if number not in gone}

    def stop(self) -> None:
        """Read no more. Blocks until what is being read has been."""
        self._reader.shutdown(cancel_futures=True)

    def _read(self, row: AdapterRow) -> int:
        began = time.monotonic()
        folder = folder_of(self._data_dir, row)
        number = self.engine.load_adapter(folder, sha256=row.sha256, pause=_Slices())
        log.info("adapter %s is ready, after %.0f ms", row.id, 1000 * (time.monotonic() - began))
        return number

    def _tell(self, _reading: Future[int]) -> None:
        self._has_read.set()
        self._on_read()

    def _size(self, row: AdapterRow) -> int:
        with contextlib.suppress(DuologueError, OSError):
            return (folder_of(self._data_dir, row) / _WEIGHTS).stat().st_size
        return 0


class _Slices:
    """Rests when a slice's time is used up."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self._began >= _SLICE_S:
            time.sleep(_REST_S)
            self._began = time.monotonic()


def _sentence(problem: Exception) -> str:
    if isinstance(problem, DuologueError | OSError):
        return str(problem)
    log.error("an adapter could not be read", exc_info=problem)
    return f"{type(problem).__name__}: {problem}"


def _key(row: AdapterRow) -> _Key:
    return row.id, row.sha256
