"""Who calls, and which server is believed: the token and TLS options that every command of `duologue` takes.

A token comes from `--token-file`, the environment variable `DUOLOGUE_TOKEN`, or `--token`, which other users of the
machine can see in its list of processes. This file knows command lines and files; the connection is `client.link`.
"""

import argparse
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from client.errors import CertificateFileError, TokenFileError

__all__ = ["NOTHING", "Credentials", "add_credentials", "read_credentials"]


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What a call shows, and what it believes. `tls` is None for the certificates that the system knows."""

    token: str | None = None
    tls: ssl.SSLContext | None = None

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that show the token."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


NOTHING: Final = Credentials()


def add_credentials(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command's parser."""
    group = parser.add_argument_group("credentials")
    one = group.add_mutually_exclusive_group()
    one.add_argument("--token-file", type=Path, metavar="PATH", help="file with the server's access token")
    one.add_argument("--token", metavar="TOKEN", help="the token itself; better in the variable DUOLOGUE_TOKEN")
    believed = group.add_mutually_exclusive_group()
    believed.add_argument(
        "--ca", type=Path, metavar="PEM", help="believe this certificate: a server's data/tls/cert.pem"
    )
    believed.add_argument("--insecure", action="store_true", help="believe any certificate, and anybody in between")


def read_credentials(arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Credentials:
    """Read what the options name. Raises TokenFileError or CertificateFileError."""
    token = _read_token(arguments.token_file) if arguments.token_file else arguments.token
    return Credentials(token=token or environment.get("DUOLOGUE_TOKEN", "").strip() or None, tls=_context(arguments))


def _read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise TokenFileError(f"Cannot read the token in {path} ({problem}).") from problem


def _context(arguments: argparse.Namespace) -> ssl.SSLContext | None:
    if arguments.insecure:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if arguments.ca is None:
        return None
    try:
        return ssl.create_default_context(cafile=str(arguments.ca))
    except OSError as problem:
        why = getattr(problem, "reason", None) or problem.strerror
        raise CertificateFileError(
            f"Cannot read a certificate in {arguments.ca} ({why}): give a PEM file."
        ) from problem
