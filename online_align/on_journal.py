"""What every command about a journal that must be there does: find it, open it, do it, close it, say what is wrong."""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Final

from server.errors import DuologueError
from server.journal import JournalError, open_journal
from server.journal.database import exists

__all__ = ["add_place", "at_least_one", "check_exists", "device", "do_on_journal", "port", "shown"]


_HIGHEST_PORT: Final = 65535


def shown(text: str) -> str:
    """Text of others, in one line for a terminal: what would move a cursor, colour or hide something is spelled out."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def add_place(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """Add the flags that say where the journal is: `--data-dir`, and `--journal-url` or `DUOLOGUE_JOURNAL_URL`.

    The URL may hold a password, and whoever is on the machine reads command lines. With `again` they may be given to
    a command below one that has them, and count there, too.
    """
    folder = argparse.SUPPRESS if again else Path("data")
    parser.add_argument("--data-dir", type=Path, default=folder, help="the server's data folder")
    url = argparse.SUPPRESS if again else os.environ.get("DUOLOGUE_JOURNAL_URL")
    purpose = "the database, where it is not in the data folder (default: DUOLOGUE_JOURNAL_URL of the environment)"
    parser.add_argument("--journal-url", default=url, help=purpose)


def at_least_one(text: str) -> int:
    """For `argparse`: a whole number from 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number from 1")
    return number


def port(text: str) -> int:
    """For `argparse`: a TCP port, or 0 for any."""
    if not (text.isascii() and text.isdigit() and int(text) <= _HIGHEST_PORT):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a port from 1 to {_HIGHEST_PORT}, or 0 for any")
    return int(text)


def device(text: str) -> str:
    """For `argparse`: where a model is."""
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,2})?", text):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected cpu, cuda or cuda:NUMBER")
    return text


def check_exists(asked: argparse.Namespace) -> None:
    """Raises `JournalError` where there is no journal: nothing is made by looking for it."""
    if not exists(asked.data_dir, asked.journal_url):
        raise JournalError(
            got=f"{asked.data_dir}, where no call was ever kept",
            expected="the data folder of a server",
            remedy="name it with --data-dir, or the database with --journal-url",
        )


def do_on_journal(asked: argparse.Namespace) -> int:
    """Call `asked.do(journal, asked)` with the journal of `asked.data_dir` and `asked.journal_url`.

    Returns its exit code, or 1, after a sentence, when something is refused or not there.
    """
    try:
        check_exists(asked)
        journal = open_journal(asked.data_dir, asked.journal_url)
        try:
            code: int = asked.do(journal, asked)
            return code
        finally:
            journal.engine.dispose()
    except DuologueError as problem:
        print(f"duologue-align: {shown(str(problem))}", file=sys.stderr)
        return 1
