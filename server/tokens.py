"""Who holds which token, and what each may do: read from a file or the environment, and found in constant time.

A line is `NAME:TOKEN` or `NAME:TOKEN:ROLE`. The token is written out, or as `sha256=` and 64 hexadecimal digits. Blank
lines and lines that begin with `#` are skipped. One name may have several lines, so that a token can be replaced
without an hour in which neither works. `python -m server.tokens NAME` makes a token and its line.

Tokens are long and random, not chosen by people: one plain SHA-256 of them gives nothing away.
"""

import argparse
import hashlib
import hmac
import os
import re
import secrets
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from server.errors import TokenError

__all__ = [
    "SHORTEST_TOKEN",
    "Holder",
    "Role",
    "TokenBook",
    "digest",
    "main",
    "read_lone_token",
    "read_token",
    "read_token_file",
    "read_tokens",
]

SHORTEST_TOKEN: Final = 16
"""Characters. Of a random token, 16 are enough that nobody guesses it at any rate a server can answer."""

_LONGEST_TOKEN: Final = 512
_NAME: Final = re.compile(r"[A-Za-z0-9._@+-]{1,64}")
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_HASHED: Final = re.compile(r"sha256=([0-9a-fA-F]{64})")
_FORM: Final = "NAME:TOKEN or NAME:TOKEN:ROLE, the token plain or as sha256=<64 hexadecimal digits>"
_NEW_TOKEN_BYTES: Final = 32


class Role(StrEnum):
    """What the holder of a token may do."""

    CALLER = "caller"
    """Call, and read what the server says of itself to callers."""
    WATCH = "watch"
    """Read figures and the list of calls, as Prometheus does; not call."""
    ADMIN = "admin"
    """Everything, changing adapters among it."""

    @property
    def may_call(self) -> bool:
        """Whether calls are for this role."""
        return self is not Role.WATCH

    @property
    def may_watch(self) -> bool:
        """Whether figures are for this role."""
        return self is not Role.CALLER


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """One line. Of the token only its SHA-256 is kept."""

    name: str
    digest: bytes
    role: Role = Role.CALLER

    @property
    def mark(self) -> str:
        """Tells a cookie made for this token from one made for another."""
        return hashlib.sha256(b"mark\0" + self.digest).hexdigest()[:16]


class TokenBook(msgspec.Struct, frozen=True):
    """Everybody who holds a token."""

    holders: tuple[Holder, ...] = ()

    def find(self, token: str) -> Holder | None:
        """Whose token this is. Takes as long for every token, right or wrong."""
        wanted, found = digest(token), None
        for holder in self.holders:
            if hmac.compare_digest(holder.digest, wanted):
                found = holder
        return found

    def marked(self, mark: str) -> Holder | None:
        """Whose cookie this mark was put into, if that token still holds."""
        wanted, found = mark.encode(errors="surrogatepass"), None
        for holder in self.holders:
            if hmac.compare_digest(holder.mark.encode(), wanted):
                found = holder
        return found


def digest(token: str) -> bytes:
    """SHA-256 of a token, as it is kept."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def read_token_file(path: Path) -> tuple[Holder, ...]:
    """Read a file of lines. Raises `TokenError`, which names the line and never shows a token."""
    return read_tokens(_read(path).splitlines(), source=str(path))


def read_tokens(lines: Iterable[str], *, source: str) -> tuple[Holder, ...]:
    """Read lines; `source` says in an error where they came from. Raises `TokenError`."""
    numbered = ((number, line.strip()) for number, line in enumerate(lines, start=1))
    holders = tuple(
        _holder(line, f"line {number} of {source}") for number, line in numbered if line and not line.startswith("#")
    )
    digests = [holder.digest for holder in holders]
    if len(set(digests)) < len(digests):
        raise TokenError(source, got="one token twice", expected="a token of one's own in every line")
    return holders


def read_token(text: str, *, source: str) -> bytes:
    """Read a lone token, plain or hashed, and give its SHA-256. Raises `TokenError`."""
    return _digest(text.strip(), source)


def read_lone_token(path: Path) -> bytes:
    """Read a file with one token and nothing else, as `read_token` does."""
    return read_token(_read(path), source=str(path))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        why = getattr(problem, "strerror", None) or "it is not UTF-8"
        raise TokenError(str(path), got=f"a file that cannot be read ({why})", expected=_FORM) from problem


def _holder(line: str, source: str) -> Holder:
    name, _, rest = line.partition(":")
    token, colon, role = rest.partition(":")
    if not _NAME.fullmatch(name):
        expected = "first a name of at most 64 letters, digits and . _ @ + -, then a colon"
        raise TokenError(source, got="a line without a name that could be one", expected=expected)
    try:
        return Holder(name=name, digest=_digest(token, source), role=Role(role) if colon else Role.CALLER)
    except ValueError as problem:
        raise TokenError(source, got="an unknown role", expected="caller, watch or admin after the token") from problem


def _digest(token: str, source: str) -> bytes:
    if hashed := _HASHED.fullmatch(token):
        return bytes.fromhex(hashed[1])
    if token.startswith("sha256="):
        raise TokenError(source, got="a hash of the wrong length", expected="64 hexadecimal digits after sha256=")
    if not (SHORTEST_TOKEN <= len(token) <= _LONGEST_TOKEN and _TOKEN.fullmatch(token)):
        expected = (
            f"{SHORTEST_TOKEN} to {_LONGEST_TOKEN} letters, digits and . _ ~ + / -, as `python -m server.tokens` makes"
        )
        raise TokenError(source, got="a token that cannot be one", expected=expected)
    return digest(token)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a token: the line for the server's file on standard output, the token itself for its holder."""
    parser = argparse.ArgumentParser(prog="python -m server.tokens", description=main.__doc__)
    parser.add_argument("name", help="whose it is; deletion and limits go by this name")
    parser.add_argument("--role", type=Role, choices=list(Role), default=Role.CALLER)
    parser.add_argument("--out", type=Path, metavar="PATH", help="a new file for the token; default: standard error")
    asked = parser.parse_args(arguments)
    if not _NAME.fullmatch(asked.name):
        parser.error("a name has at most 64 letters, digits and . _ @ + -")
    token = secrets.token_urlsafe(_NEW_TOKEN_BYTES)
    role = "" if asked.role is Role.CALLER else f":{asked.role}"
    if asked.out is None:
        print(f"token for {asked.name}, shown this once: {token}", file=sys.stderr)
    elif problem := _write_new(asked.out, token):
        print(f"python -m server.tokens: cannot write {asked.out}: {problem}", file=sys.stderr)
        return 2
    print(f"{asked.name}:sha256={digest(token).hex()}{role}")
    return 0


def _write_new(path: Path, token: str) -> str:
    """Write a file that its owner alone can read. Returns what is wrong, if anything is."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token + "\n")
    except OSError as problem:
        return problem.strerror or str(problem)
    return ""


if __name__ == "__main__":
    sys.exit(main())
