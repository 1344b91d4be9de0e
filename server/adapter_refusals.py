"""What a server says in the registry of its own accord: files that it refuses, and a live adapter that it takes back.

An adapter whose row names another base model than an engine's has nothing wrong with it, and nothing is said. Whether
and when to look is `adapters`' business; why a file is refused, the engine's.
"""

import logging

from server.adapter_shelf import Refusal, Shelf
from server.engine import Engine, model_name
from server.journal.adapter_records import BY_SERVER
from server.journal.registry import AdapterRegistry, AdapterRow, AdapterState, VerdictRow, VerdictStage

__all__ = ["note_refusal", "retired", "take_back"]

log = logging.getLogger(__name__)


def note_refusal(registry: AdapterRegistry, engine: Engine, refusal: Refusal) -> None:
    """Append the refusal to what was said of the adapter, once. Raises `SQLAlchemyError`."""
    row, reason = refusal.row, _reason(refusal.reason)
    log.error("adapter %s, which is %s, does not speak: %s", row.id, row.state, refusal.reason)
    if not _is_of(row, engine):
        return
    said = registry.verdicts(row.id)
    if not said or said[-1].reason != reason:
        word = VerdictRow(adapter_id=row.id, stage=VerdictStage.CANARY, passed=False, reason=reason, figures=BY_SERVER)
        registry.add_verdict(word)


def take_back(registry: AdapterRegistry, shelf: Shelf, row: AdapterRow) -> bool:
    """Take what is live back when its files are refused and one that was live before can be used. Says whether it was.

    Where none can, the base model speaks, and the table stays as it is: a folder that is not there may come back.
    Raises `RegistryError` when somebody else was faster; the next look sees what they did.
    """
    problem = shelf.problem(row)
    if not problem or not _is_of(row, shelf.engine):
        return False
    good = next((each for each in retired(registry, shelf.engine) if not shelf.problem(each)), None)
    if good is None:
        return False
    shelf.want(good)
    if shelf.get(good) is None:
        return False
    registry.roll_back(row.id, reason=_reason(problem), figures=BY_SERVER, expected=AdapterState.LIVE)
    log.error("adapter %s is taken back, for it was live and cannot be read: %s", row.id, problem)
    return True


def retired(registry: AdapterRegistry, engine: Engine) -> list[AdapterRow]:
    """What a rollback could bring back to this engine's calls, the newest first."""
    rows = [row for row in registry.list() if row.state is AdapterState.RETIRED and not row.withdrawn]
    return sorted((row for row in rows if _is_of(row, engine)), key=lambda row: -row.changed_at)


def _is_of(row: AdapterRow, engine: Engine) -> bool:
    """Whether the row names the engine's base model."""
    return model_name(row.checkpoint) == model_name(engine.checkpoint)


def _reason(problem: str) -> str:
    return f"a server refuses its files: {problem}"
