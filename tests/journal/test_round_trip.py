"""What is handed over comes back, on both databases, also to a reader beside the writer."""

import itertools
import time

import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from server.journal import AdapterChange, Journal, JournalError, UnknownSessionError, export
from server.journal.database import upgrade
from server.journal.schema import METADATA
from tests.journal.calls import CODEBOOKS, barge_in, record, recording, session, tick, tokens


def test_every_frame_comes_back(journal: Journal) -> None:
    writer = record(journal, ["abc", "def"], 50)
    assert writer.figures.durable_frames == 100
    for name in ("abc", "def"):
        columns = journal.reader.columns(name)
        assert columns.ticks_T.tolist() == list(range(50))
        assert np.array_equal(columns.tokens_TK, np.stack([tokens(name, number) for number in range(50)]))
        assert np.allclose(columns.logprob_T, [-number / 8 for number in range(50)])
        about = journal.reader.session(name)
        assert (about.end_reason, about.seed, about.codebooks, about.train) == ("hang_up", 7, CODEBOOKS, True)
    assert not list(journal.reader.verify())


def test_the_last_revision_of_a_signal_holds(journal: Journal) -> None:
    with recording(journal) as writer:
        writer.begin(session("abc"))
        writer.signal("abc", barge_in(1))
        writer.signal("abc", barge_in(1, revision=1, confidence=0.9))
        writer.signal("nobody", barge_in(1))
    (signal,) = journal.reader.signals("abc")
    assert signal == barge_in(1, revision=1, confidence=0.9)
    assert journal.reader.stats().signals == {"barge_in": 2}


def test_the_migrations_give_the_schema_and_run_twice(journal: Journal) -> None:
    upgrade(journal.engine)
    with journal.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


@pytest.mark.parametrize("table", METADATA.sorted_tables, ids=lambda table: str(table.name))
def test_every_table_and_column_says_what_it_holds(table: object) -> None:
    assert table.comment  # type: ignore[attr-defined]
    assert all(column.comment for column in table.columns)  # type: ignore[attr-defined]


def test_readers_read_while_the_writer_writes(journal: Journal) -> None:
    with recording(journal) as writer:
        writer.begin(session("abc"))
        seen = []
        for number in itertools.count():
            writer.frames(tick(["abc"], number))
            time.sleep(0.002)
            if number % 20 == 19 and writer.figures.durable_frames:
                seen.append(len(journal.reader.columns("abc").ticks_T))
                if seen[-1] > seen[0]:
                    break
        assert seen == sorted(seen)
    assert len(journal.reader.columns("abc").ticks_T) == number + 1


def test_an_export_has_all_of_it(journal: Journal) -> None:
    record(journal, ["abc"], 3)
    text = export(journal.reader, "abc").decode()
    assert '"tokens_format":"base64 of int16 little-endian [3, 9]"' in text
    assert '"end_reason":"hang_up"' in text


def test_nothing_is_taken_without_permission(journal: Journal) -> None:
    with recording(journal) as writer:
        with pytest.raises(JournalError, match="without permission"):
            writer.begin(session("abc", keep=False))
        writer.frames(tick(["abc"], 0))
        writer.signal("abc", barge_in(1))
        writer.end("abc", "hang_up")
    assert journal.reader.stats().sessions == 0
    assert writer.figures.commits == 0
    assert "abc" not in journal.keys
    with pytest.raises(UnknownSessionError, match="'abc'"):
        journal.reader.columns("abc")


def test_an_adapter_that_took_over_is_noted_with_its_step(journal: Journal) -> None:
    with recording(journal) as writer:
        writer.begin(session("abc"))
        writer.adapter("abc", 7, "second")
        writer.adapter("abc", 19, "")
        writer.adapter("nobody", 3, "second")
        writer.end("abc", "hang_up")
    changes = [AdapterChange(step=7, adapter="second"), AdapterChange(step=19, adapter="")]
    assert journal.reader.adapter_changes("abc") == changes
    assert '"adapter_changes":[{"step":7,"adapter":"second"}' in export(journal.reader, "abc").decode()
    journal.removal.session("abc")
    assert journal.reader.adapter_changes("abc") == []


def test_a_changed_mind_is_noted_and_ends_the_recording(journal: Journal) -> None:
    with recording(journal) as writer:
        writer.begin(session("abc"))
        for number in range(12):
            writer.frames(tick(["abc"], number))
        writer.consent("abc", keep=True, train=False)
        for number in range(12, 24):
            writer.frames(tick(["abc"], number))
        writer.consent("abc", keep=False, train=False)
        writer.frames(tick(["abc"], 24))
    about = journal.reader.session("abc")
    assert not about.train
    assert not about.keep
    assert len(journal.reader.columns("abc").ticks_T) == 24
