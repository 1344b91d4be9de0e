"""One key per session, in files of their own: who destroys the key has destroyed every copy of the session.

Tokens are sealed with AES-256-GCM under a fresh random nonce; the row's place is authenticated with it, so that rows
cannot be swapped. Back the journal up and the keys not, or delete from both. It knows nothing of tables.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from server.durable import private_folder, sync_folder
from server.journal.errors import JournalError, KeyGoneError

__all__ = ["KeyRing", "SessionKey"]

_KEY_BITS: Final = 256
_NONCE: Final = 12
_SUFFIX: Final = ".key"


class SessionKey:
    """Seals and opens what belongs to one session."""

    def __init__(self, session: str, secret: bytes) -> None:
        self._cipher = AESGCM(secret)
        self._session = session
        self._place = session.encode()

    def seal(self, place: str, plain: bytes) -> bytes:
        """Encrypt; `place` says where it belongs. 28 bytes longer than `plain`."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, plain, self._place + b"/" + place.encode())

    def open(self, place: str, sealed: bytes) -> bytes:
        """Decrypt. Raises `JournalError` when the bytes are not what was sealed there."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], self._place + b"/" + place.encode())
        except (InvalidTag, ValueError) as problem:
            raise JournalError(
                got=f"damaged or foreign bytes at {place} of session {self._session}",
                expected="what was sealed there",
                remedy="restore the journal from a backup, or delete the session",
            ) from problem


class KeyRing:
    """The folder of keys, readable by its owner alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        private_folder(folder)

    def __iter__(self) -> Iterator[str]:
        """Every session that has a key."""
        return (path.stem for path in sorted(self._folder.glob("*/*" + _SUFFIX)))

    def __contains__(self, session: str) -> bool:
        return self._path(session).is_file()

    def create(self, session: str) -> SessionKey:
        """Make a session's key, durable before it is used. A session that has one keeps it."""
        path = self._path(session)
        if not path.is_file():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            draft = path.with_suffix(".new")
            _write_durably(draft, AESGCM.generate_key(_KEY_BITS))
            draft.rename(path)
            sync_folder(path.parent)
        return self.get(session)

    def get(self, session: str) -> SessionKey:
        """Give a session's key. Raises `KeyGoneError`."""
        try:
            return SessionKey(session, self._path(session).read_bytes())
        except FileNotFoundError as problem:
            raise KeyGoneError(session) from problem

    def destroy(self, session: str) -> bool:
        """Overwrite and remove a session's key. Returns whether there was one."""
        path = self._path(session)
        if not path.is_file():
            return False
        _write_durably(path, secrets.token_bytes(path.stat().st_size))
        path.unlink()
        sync_folder(path.parent)
        return True

    def _path(self, session: str) -> Path:
        if not session.isalnum():
            raise JournalError(got=f"session {session!r}", expected="letters and digits", remedy="copy the id whole")
        return self._folder / session[:2] / (session + _SUFFIX)


def _write_durably(path: Path, content: bytes) -> None:
    """Write over what is there, in place, and wait for the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
