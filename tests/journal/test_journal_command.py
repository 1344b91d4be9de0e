"""`duologue-align journal` where there is nothing, and where there is a call."""

from pathlib import Path

import pytest

from online_align.__main__ import main
from server.journal import Journal
from tests.journal.calls import record


@pytest.mark.parametrize("what", [["stats"], ["verify"], ["sweep", "--days", "1"], ["delete", "--session", "abc"]])
def test_where_nothing_was_kept_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: list[str]
) -> None:
    assert main(["journal", "--data-dir", str(tmp_path / "data"), *what]) == 1
    assert "where no call was ever kept; expected the data folder of a server" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_what_is_there_is_counted_deleted_and_counted_again(
    sqlite_journal: Journal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(sqlite_journal, ["abc", "def"], 12)
    where = ["journal", "--data-dir", str(tmp_path / "data")]
    assert main([*where, "stats"]) == 0
    assert "sessions   2" in capsys.readouterr().out
    assert main([*where, "delete", "--session", "abc"]) == 0
    assert main([*where, "delete", "--session", "abc"]) == 1
    assert "got session 'abc'; expected one that is in the journal" in capsys.readouterr().err
    assert main([*where, "stats", "--json"]) == 0
    assert '"deleted":1' in capsys.readouterr().out


def test_a_url_that_cannot_be_read_is_refused_and_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUOLOGUE_JOURNAL_URL", "postgresql+psycopg://duologue:cor@rect:horse@127.0.0.1/duologue")
    assert main(["journal", "--data-dir", str(tmp_path), "stats"]) == 1
    said = capsys.readouterr().err
    assert "expected postgresql+psycopg://USER:PASSWORD@HOST/NAME; write @, : and / in the password as %40" in said
    assert "rect" not in said
    assert "horse" not in said


def test_a_journal_of_a_newer_version_is_refused(
    sqlite_journal: Journal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite_journal.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    assert main(["journal", "--data-dir", str(tmp_path / "data"), "stats"]) == 1
    assert "got a journal that cannot be opened (Can't locate revision identified by '9999')" in capsys.readouterr().err


@pytest.mark.parametrize("what", [["journal", "stats"], ["adapters", "list"], ["pairs", "--list"]])
def test_the_databases_url_may_come_from_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: list[str]
) -> None:
    """It may hold a password, which a command line shows to everybody on the machine; an error shows none either."""
    monkeypatch.setenv("DUOLOGUE_JOURNAL_URL", "postgresql+psycopg://duologue:correct-horse@127.0.0.1:1/duologue")
    command, *rest = what
    assert main([command, "--data-dir", str(tmp_path), *rest]) == 1
    said = capsys.readouterr().err
    assert "got a journal that cannot be opened" in said
    assert "correct-horse" not in said
