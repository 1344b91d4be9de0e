"""The places for adapters beside a model: which are taken and by which adapter, and how one gets in and out.

Another thread may read one in while the engine steps. Which slot speaks with which is the engine's business.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from kernels.cpu import AdapterMemory
from server.engine.adapters import AdapterFile, Widths, read_adapter
from server.errors import AdapterError, AdapterRoomError

__all__ = ["NO_ADAPTER", "AdapterInfo", "AdapterPlaces"]

NO_ADAPTER: Final = 0
"""The model as it was loaded."""


class AdapterInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that is ready."""

    name: str
    """Its folder's."""
    sha256: str
    rank: int
    scaling: float


class AdapterPlaces:
    """Places 1 to `count` in a `memory`; none where the work on a frame keeps no adapters (None)."""

    def __init__(self, memory: AdapterMemory | None) -> None:
        self._memory = memory
        self._ready: dict[int, AdapterInfo] = {}
        self._reserved: set[int] = set()
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """How many can be ready at once."""
        return self._memory.count if self._memory is not None else 0

    @property
    def layers(self) -> dict[str, Widths]:
        """The linear layers that an adapter has parts for, by name."""
        return {} if self._memory is None else {name: Widths(*self._memory.widths(name)) for name in self._memory.sites}

    @property
    def ready(self) -> dict[int, AdapterInfo]:
        """Those that are, by number."""
        with self._lock:
            return dict(self._ready)

    def checked(self, adapter: int | None) -> int:
        """The number of an adapter that is ready, or of none. Raises `AdapterError`."""
        if adapter is None:
            return NO_ADAPTER
        if isinstance(adapter, bool) or adapter not in self._ready:
            ready = ", ".join(map(str, sorted(self._ready))) or "none is loaded"
            raise AdapterError(adapter, expected=f"None, or one that is ready ({ready})", remedy="load it first")
        return adapter

    def load(
        self, folder: Path, *, base_sha256: Callable[[], str], sha256: str | None, pause: Callable[[], None]
    ) -> int:
        """Read a folder and keep it ready, as `Engine.load_adapter` does. Raises `AdapterError`, `AdapterRoomError`.

        The base's hash, which may take a while to make, is asked for only where there is a place.
        """
        memory = self._memory
        if memory is None or not memory.count:
            raise AdapterError(
                str(folder), expected="none: this engine keeps no adapters", remedy="use the compiled step on a CPU"
            )
        number = self._reserve(str(folder))
        try:
            file = read_adapter(
                folder, self.layers, base_sha256=base_sha256(), max_rank=memory.rank, sha256=sha256, pause=pause
            )
            memory.write(number, file.parts, file.scaling, pause=pause)
            with self._lock:
                self._ready[number] = _about(file)
        finally:
            with self._lock:
                self._reserved.discard(number)
        return number

    def drop(self, number: int) -> None:
        """Forget one that is ready."""
        if self._memory is not None:
            self._memory.clear(number)
        with self._lock:
            del self._ready[number]

    def _reserve(self, folder: str) -> int:
        """Take a place that nobody else may write to. Raises `AdapterRoomError`."""
        with self._lock:
            taken = self._reserved | set(self._ready)
            free = [number for number in range(1, 1 + self.count) if number not in taken]
            if not free:
                expected = f"at most {self.count} at once"
                raise AdapterRoomError(folder, expected=expected, remedy="drop one that nobody uses")
            self._reserved.add(free[0])
            return free[0]


def _about(file: AdapterFile) -> AdapterInfo:
    return AdapterInfo(name=file.folder.name, sha256=file.sha256, rank=file.rank, scaling=file.scaling)
