"""What the caller permits: asked once for every server, in plain words, and remembered in a file of the user's.

The default is no. Permission to keep is one question and permission to train another: who says no to the first is not
asked the second. It knows a file and a terminal, no sockets (docs/decisions/0053-consent.md).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
import platformdirs

from client.errors import SettingsError
from server.protocol import Consent

__all__ = ["ConsentFile", "ask", "consent_of", "query_value"]

_FILE_NAME: Final = "consent.json"

_EXPLANATION: Final = """\
You are about to talk to {server}.

To serve you it must hear you. Beyond that it asks for two permissions.
You can refuse both and talk all the same.

  1. To keep your conversations: your voice, as codes from which it can be
     heard again, and what the model says. They are kept encrypted, for as
     long as the server's operator keeps calls (30 days unless changed).
  2. To train on what was kept, so that the model gets better, also for
     others.

Your answer is remembered in
  {path}
`duologue talk --consent ask` asks again, `--consent none` refuses. What was
kept is deleted by the operator when you ask for it.
"""
_KEEP: Final = "May it keep your conversations? [y/N] "
_TRAIN: Final = "May it train on them? [y/N] "


class _Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """The file. `servers` has a host and port each; what one operator may do says nothing of another."""

    version: int = 1
    servers: dict[str, Consent] = {}


class ConsentFile:
    """What was answered before. `path` is only read until there is an answer to remember."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or platformdirs.user_config_path("duologue") / _FILE_NAME

    def get(self, url: str) -> Consent | None:
        """What was permitted to the server at `url`; None when it was never asked. Raises SettingsError."""
        return self._read().servers.get(_server(url))

    def put(self, url: str, consent: Consent) -> None:
        """Remember it. Raises SettingsError."""
        servers = self._read().servers | {_server(url): consent}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(msgspec.json.format(msgspec.json.encode(_Remembered(servers=servers))) + b"\n")
        except OSError as problem:
            raise SettingsError(
                f"Cannot remember the answer in {self.path} ({problem}): make it writable, or say --consent each time."
            ) from problem

    def _read(self) -> _Remembered:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=_Remembered)
        except FileNotFoundError:
            return _Remembered()
        except (OSError, msgspec.DecodeError) as problem:
            raise SettingsError(
                f"Cannot read {self.path} ({problem}): expected what `duologue talk` wrote there. Delete it to be "
                "asked again."
            ) from problem


def consent_of(
    choice: str | None, url: str, file: ConsentFile, *, asking: Callable[[str], str] | None, tell: Callable[[str], None]
) -> Consent:
    """Find out what the server at `url` may do.

    `choice` is the flag: `none`, `keep`, `train` (which includes keep) for this call, `ask`, or None for what was
    answered before. `asking` is `input`, or None where nobody can be asked: then nothing is permitted. Raises
    SettingsError.
    """
    if choice not in (None, "ask"):
        return Consent(keep=choice in ("keep", "train"), train=choice == "train")
    remembered = file.get(url)
    if remembered is not None and choice is None:
        return remembered
    if asking is None:
        return Consent()
    consent = ask(url, file.path, asking, tell)
    file.put(url, consent)
    return consent


def ask(url: str, path: Path, asking: Callable[[str], str], tell: Callable[[str], None]) -> Consent:
    """Explain, and ask both questions. What is not clearly a yes is a no."""
    tell(_EXPLANATION.format(server=_server(url), path=path))
    keep = _is_yes(asking(_KEEP))
    return Consent(keep=keep, train=keep and _is_yes(asking(_TRAIN)))


def query_value(consent: Consent) -> dict[str, str]:
    """Give the query parameter of `/api/chat`; nothing when nothing is permitted."""
    words = [word for word, given in (("keep", consent.keep), ("train", consent.train)) if given]
    return {"consent": ",".join(words)} if words else {}


def _is_yes(answer: str) -> bool:
    return answer.strip().lower() in ("y", "yes")


def _server(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2] or url
