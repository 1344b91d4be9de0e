"""What every command about a journal that must be there does: open it, do it, close it, and say what is wrong."""

import argparse
import sys

from server.errors import DuologueError
from server.journal import JournalError, open_journal
from server.journal.database import exists

__all__ = ["do_on_journal"]


def do_on_journal(asked: argparse.Namespace) -> int:
    """Call `asked.do(journal, asked)` with the journal of `asked.data_dir` and `asked.journal_url`.

    Returns its exit code, or 1, after a sentence, when something is refused or not there.
    """
    try:
        if not exists(asked.data_dir, asked.journal_url):
            raise JournalError(
                got=f"{asked.data_dir}, where no call was ever kept",
                expected="the data folder of a server",
                remedy="name it with --data-dir, or the database with --journal-url",
            )
        journal = open_journal(asked.data_dir, asked.journal_url)
        try:
            code: int = asked.do(journal, asked)
            return code
        finally:
            journal.engine.dispose()
    except DuologueError as problem:
        print(f"duologue-align: {problem}", file=sys.stderr)
        return 1
