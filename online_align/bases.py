"""Which base model an adapter was learned on, and which one people's calls have: both as rows of the journal name it.

Another base is put in while calls go on (`/api/base`), and what was learned on the old one speaks in no new call. It
moves nothing and loads no model.
"""

import json
from typing import Any

import msgspec
from sqlalchemy import select

from server.journal import Journal, schema
from server.journal.registry import AdapterRow

__all__ = ["Base", "base_of", "newest_base"]


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """A base model."""

    checkpoint: str
    """Its name."""
    sha256: str = ""
    """Of its language model's weights; empty where that was not noted."""

    def is_same(self, other: "Base") -> bool:
        """Whether these are the same weights; known by the name alone where one of the hashes was not noted."""
        if self.sha256 and other.sha256:
            return self.sha256 == other.sha256
        return self.checkpoint == other.checkpoint


def base_of(row: AdapterRow) -> Base:
    """What an adapter was learned on; its manifest has the hash."""
    try:
        told: dict[str, Any] = json.loads(row.manifest)
    except ValueError:
        told = {}
    return Base(checkpoint=row.checkpoint, sha256=told.get("base_sha256", ""))


def newest_base(journal: Journal) -> Base | None:
    """What the call that began last has or had, of those that are kept; None while none is."""
    table = schema.sessions
    query = select(table.c.checkpoint, table.c.base_sha256).order_by(table.c.started_at.desc(), table.c.id).limit(1)
    with journal.engine.connect() as connection:
        found = connection.execute(query).first()
    return None if found is None else Base(checkpoint=found[0], sha256=found[1])
