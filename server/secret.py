"""The one secret of a server: it signs cookies and makes a keyed hash of who calls.

It lives in memory until something durable is written that a hash of it goes into; then it is kept beside that, so that
the same caller has the same hash after a restart. `python -m server.secret NAME` says what stands for somebody in the
journal. It knows nothing of callers.
"""

import argparse
import hmac
import logging
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from server.durable import private_folder, sync_folder
from server.errors import ConfigError

__all__ = ["ServerSecret", "main"]

log = logging.getLogger(__name__)

_BYTES: Final = 32
_FILE: Final = "user.key"


class ServerSecret:
    """The secret in `data_dir`, or a new one. Raises `ConfigError` when the file there is not one."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / _FILE
        kept = _read(self._path)
        self.is_kept = kept is not None
        """Whether it was there: without, nothing was ever kept that holds a hash of anybody."""
        self._secret = kept or secrets.token_bytes(_BYTES)

    def keep(self) -> None:
        """Write the secret down, durably, unless it is. Blocks. Raises `OSError`."""
        private_folder(self._path.parent)
        draft = self._path.with_suffix(f".{os.getpid()}.new")
        _write(draft, self._secret)
        try:
            os.link(draft, self._path)
        except FileExistsError:
            if self._path.read_bytes() != self._secret:
                log.warning("%s is another server's: who calls now is not known again after a restart", self._path)
        finally:
            draft.unlink()
        sync_folder(self._path.parent)

    def sign(self, purpose: str, message: bytes) -> bytes:
        """HMAC-SHA256 of a message, 32 bytes, with a key of its own for each purpose."""
        key = hmac.digest(self._secret, purpose.encode(), "sha256")
        return hmac.digest(key, message, "sha256")

    def user_hash(self, name: str) -> str:
        """What stands for somebody in everything that is kept: 64 hexadecimal digits; empty for an empty name."""
        return self.sign("user", name.encode()).hex() if name else ""


def _read(path: Path) -> bytes | None:
    try:
        secret = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise ConfigError(
            "data_dir", got=f"{path}, which cannot be read ({problem.strerror})", expected="a file of one's own"
        ) from problem
    if len(secret) != _BYTES:
        raise ConfigError("data_dir", got=f"{path} with {len(secret)} bytes", expected=f"{_BYTES} random bytes in it")
    return secret


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what stands for somebody in the journal: for `duologue-align journal delete --user`."""
    parser = argparse.ArgumentParser(prog="python -m server.secret", description=main.__doc__)
    parser.add_argument("name", help="the name in the token file")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="the server's data folder")
    asked = parser.parse_args(arguments)
    try:
        secret = ServerSecret(asked.data_dir)
    except ConfigError as problem:
        print(f"python -m server.secret: {problem}", file=sys.stderr)
        return 2
    if not secret.is_kept:
        print(f"python -m server.secret: nothing of anybody was ever kept in {asked.data_dir}", file=sys.stderr)
        return 1
    print(secret.user_hash(asked.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
