"""What an operator asks of the registry of adapters beside a server, and the two words that move one there.

Each move is the registry's own; here the server has followed it, or has refused the files, by the time the answer
comes. All of it blocks, for a moment or as long as files are read. It knows neither HTTP nor engines.
"""

import logging

from server.adapters import Adapters
from server.journal.adapter_records import refused
from server.journal.registry import AdapterRegistry, AdapterRow, VerdictRow

__all__ = ["AdapterOperator"]

log = logging.getLogger(__name__)


class AdapterOperator:
    """Asks and moves on behalf of a person; `adapters` follows."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters

    def rows(self) -> tuple[AdapterRow, ...]:
        """What is registered, the newest first. Raises `SQLAlchemyError`, `DuologueError` or `OSError`."""
        registry = self._adapters.registry()
        return registry.list() if registry is not None else ()

    def get(self, adapter_id: str) -> tuple[AdapterRow, tuple[VerdictRow, ...]]:
        """One adapter and what was said about it. Raises as `rows` does, and `RegistryError` for an unknown one."""
        registry = self._existing(adapter_id)
        return registry.get(adapter_id), registry.verdicts(adapter_id)

    def promote(self, adapter_id: str, *, reason: str) -> AdapterRow:
        """Take an adapter a step on, and wait until this server has it, or has refused it. Raises as `get` does."""
        row = self._existing(adapter_id).promote(adapter_id, reason=reason)
        log.info("adapter %s is %s: %s", row.id, row.state, reason)
        self._adapters.settle(adapter_id)
        return row

    def roll_back(self, adapter_id: str, *, reason: str) -> AdapterRow:
        """Take an adapter back. When this returns, no call of this server speaks with it. Raises as `get` does."""
        registry = self._existing(adapter_id)
        registry.roll_back(adapter_id, reason=reason)
        self._adapters.refresh()
        log.info("adapter %s was taken back: %s", adapter_id, reason)
        return registry.get(adapter_id)

    def _existing(self, adapter_id: str) -> AdapterRegistry:
        registry = self._adapters.registry()
        if registry is None:
            raise refused(f"adapter {adapter_id[:80]!r}", "a journal, and there is none yet", "let a call be kept")
        return registry
