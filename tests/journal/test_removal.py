"""Deletion reaches rows, log, key, lineage and the backups that were made before."""

import shutil
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select

from server.journal import Journal, JournalError, KeyGoneError, KeyRing, UnknownSessionError, open_journal, schema
from server.journal.batch import Batch
from server.journal.removal import Removal
from tests.journal.calls import barge_in, record, recording, session, tick


def adapter(name: str) -> dict[str, object]:
    texts = dict.fromkeys(("parent", "checkpoint", "path", "sha256", "manifest"), "")
    return {"id": name, "state": "live", "made_at": 1.0, "changed_at": 1.0, "withdrawn": False, **texts}


def test_nothing_of_a_deleted_session_is_left_and_its_adapters_are_marked(journal: Journal) -> None:
    record(journal, ["abc", "def"], 12)
    with journal.engine.begin() as connection:
        connection.execute(insert(schema.adapters), [adapter("one"), adapter("two")])
        lineage = [("one", "abc"), ("one", "def"), ("two", "def")]
        connection.execute(insert(schema.adapter_sessions), [{"adapter_id": a, "session_id": s} for a, s in lineage])
    assert journal.removal.session("abc") == 1
    with pytest.raises(UnknownSessionError):
        journal.reader.session("abc")
    with pytest.raises(KeyGoneError):
        journal.keys.get("abc")
    with journal.engine.connect() as connection:
        rows = connection.execute(select(schema.adapters.c.id, schema.adapters.c.withdrawn))
        marked = {name: withdrawn for name, withdrawn in rows}  # noqa: C416 - rows are no pairs to dict()
        stones = connection.execute(select(schema.tombstones.c.session_id, schema.tombstones.c.adapters)).all()
    assert marked == {"one": True, "two": False}
    assert [tuple(stone) for stone in stones] == [("abc", 1)]
    assert len(journal.reader.columns("def").ticks_T) == 12


def test_its_bytes_are_in_no_file_and_a_backup_cannot_be_opened(sqlite_journal: Journal, tmp_path: Path) -> None:
    journal, data = sqlite_journal, tmp_path / "data"
    record(journal, ["abc", "def"], 24)
    with journal.engine.connect() as connection:
        table = schema.frames
        sealed = [bytes(row) for row in connection.scalars(select(table.c.sealed).where(table.c.session_id == "abc"))]
        connection.exec_driver_sql("VACUUM INTO '" + str(tmp_path / "backup.sqlite") + "'")
    secret = (data / "keys" / "ab" / "abc.key").read_bytes()

    def found(what: bytes) -> set[str]:
        return {path.name for path in data.rglob("*") if path.is_file() and what in path.read_bytes()}

    assert found(sealed[0])
    assert found(secret) == {"abc.key"}
    journal.removal.session("abc")
    assert not any(found(piece[start : start + 24]) for piece in sealed for start in range(0, len(piece) - 24, 24))
    assert not found(secret)

    restored = tmp_path / "restored"
    restored.mkdir()
    shutil.copy(tmp_path / "backup.sqlite", restored / "journal.sqlite")
    shutil.copytree(data / "keys", restored / "keys")
    backup = open_journal(restored)
    with pytest.raises(KeyGoneError):
        backup.reader.columns("abc")
    assert len(backup.reader.columns("def").ticks_T) == 24
    backup.engine.dispose()


def test_what_was_said_is_never_in_clear(sqlite_journal: Journal, tmp_path: Path) -> None:
    record(sqlite_journal, ["abc"], 12)
    plain = sqlite_journal.reader.columns("abc").tokens_TK.astype("<i2").tobytes()
    for path in (tmp_path / "data").rglob("*"):
        assert path.is_dir() or not any(
            plain[start : start + 18] in path.read_bytes() for start in range(0, len(plain), 18)
        )


def test_a_session_deleted_while_it_is_recorded_stays_deleted(journal: Journal) -> None:
    with recording(journal) as writer:
        writer.begin(session("abc"))
        writer.begin(session("def"))
        for number in range(60):
            writer.frames(tick(["abc", "def"], number))
            while number == 30 and writer.figures.durable_frames < 40:
                pass
            if number == 30:
                journal.removal.session("abc")
        writer.end("abc", "hang_up")
    assert writer.healthy
    with journal.engine.connect() as connection:
        table = schema.frames
        assert not connection.scalars(select(table.c.first_tick).where(table.c.session_id == "abc")).all()
    assert len(journal.reader.columns("def").ticks_T) == 60


def test_a_session_deleted_in_the_middle_of_a_commit_leaves_nothing(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion waits until the commit is through: rows that it did not see would stay for good."""
    looked, goes_on = threading.Event(), threading.Event()
    write = Batch.write

    def held_up(batch: Batch, connection: Connection) -> None:
        if batch.frames:
            looked.set()
            assert goes_on.wait(30)
        write(batch, connection)

    monkeypatch.setattr(Batch, "write", held_up)
    deleting = threading.Thread(target=journal.removal.session, args=("abc",))
    with recording(journal) as writer:
        writer.begin(session("abc"))
        while not writer.figures.commits:
            time.sleep(0.01)
        for number in range(12):
            writer.frames(tick(["abc"], number))
        writer.signal("abc", barge_in(1))
        assert looked.wait(30)
        deleting.start()
        deleting.join(0.5)
        waited = deleting.is_alive()
        goes_on.set()
        deleting.join()
    assert waited
    assert writer.healthy
    with journal.engine.connect() as connection:
        for table in (schema.sessions.c.id, schema.frames.c.session_id, schema.signals.c.session_id):
            assert not connection.scalars(select(table)).all()


def test_a_user_and_what_is_old_can_be_deleted(journal: Journal) -> None:
    with recording(journal) as writer:
        for name, user, at in (("a1", "me", 100.0), ("a2", "me", 900.0), ("b1", "you", 100.0), ("c1", "", 950.0)):
            writer.begin(session(name, user_hash=user, started_at=at))
            writer.frames(tick([name], 0))
            writer.end(name, "hang_up")
    removal = Removal(journal.engine, journal.keys, clock=lambda: 1000.0)
    assert removal.user("") == []
    assert sorted(removal.sweep(older_than_s=500.0)) == ["a1", "b1"]
    assert removal.sweep(older_than_s=500.0) == []
    assert removal.user("me") == ["a2"]
    assert [row.id for row in journal.reader.sessions()] == ["c1"]
    assert list(journal.keys) == ["c1"]


def test_a_key_that_outlived_its_rows_is_destroyed_later(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    record(journal, ["abc"], 3)
    with monkeypatch.context() as crash:
        crash.setattr(KeyRing, "destroy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            journal.removal.session("abc")
    assert list(journal.keys) == ["abc"]
    assert [fault.what for fault in journal.reader.verify()] == ["a key without a session"]
    assert journal.removal.finish() == ["abc"]
    assert not list(journal.keys)


def test_a_changed_byte_and_a_swapped_row_are_noticed(journal: Journal) -> None:
    record(journal, ["abc"], 24)
    table = schema.frames
    with journal.engine.begin() as connection:
        first, second = connection.execute(select(table.c.sealed).order_by(table.c.first_tick).limit(2)).scalars()
        connection.execute(table.update().where(table.c.first_tick == 0).values(sealed=second))
    (fault,) = journal.reader.verify()
    assert "damaged or foreign bytes at frames/0" in fault.what
    with pytest.raises(JournalError):
        journal.reader.columns("abc")
    with journal.engine.begin() as connection:
        spoilt = bytes([first[0] ^ 1]) + bytes(first[1:])
        connection.execute(table.update().where(table.c.first_tick == 0).values(sealed=spoilt))
    assert len(list(journal.reader.verify())) == 1
