"""Everything that can end a call badly, each with the exit code of the command line.

Every message is a whole sentence: what happened, what was expected, what to do.
"""

from typing import ClassVar

__all__ = [
    "CallLostError",
    "CertificateError",
    "CertificateFileError",
    "ClientError",
    "DeviceError",
    "HungUpError",
    "NotAuthorisedError",
    "RefusedError",
    "RemoteLoadError",
    "ReportFileError",
    "ServerBusyError",
    "SettingsError",
    "SoundFileError",
    "TokenFileError",
    "UnreachableError",
]


class ClientError(Exception):
    """Base of the tree: a call or a file failed in a way that the user can act upon."""

    exit_code: ClassVar[int] = 1


class SoundFileError(ClientError):
    """A sound file cannot be read or written."""

    exit_code = 2


class TokenFileError(ClientError):
    """The file with the access token cannot be read."""

    exit_code = 2


class CertificateFileError(ClientError):
    """The file with the certificate to believe cannot be read."""

    exit_code = 2


class ReportFileError(ClientError):
    """A report or a picture cannot be written."""

    exit_code = 2


class SettingsError(ClientError):
    """The file in which the client remembers what it was told cannot be read or written."""

    exit_code = 2


class RemoteLoadError(ClientError):
    """A load was meant for a server that is not on this machine."""

    exit_code = 2


class UnreachableError(ClientError):
    """Nothing answers at the server's address, or what answers is not a dialogue server."""

    exit_code = 3


class CertificateError(UnreachableError):
    """The server's certificate is nobody's that this machine believes."""


class NotAuthorisedError(ClientError):
    """The server does not let this caller in (HTTP 401 or 403 before the upgrade)."""

    exit_code = 4


class RefusedError(ClientError):
    """The server refused this call and said why."""

    exit_code = 5

    def __init__(self, reason: str, *, code: int) -> None:
        super().__init__(f"The server refused the call: {reason or 'it gave no reason'} (close code {code}).")
        self.reason = reason
        self.code = code


class ServerBusyError(RefusedError):
    """The server takes no call now, for the reason it gave: it is full, loads its model, or is about to stop."""

    exit_code = 6


class CallLostError(ClientError):
    """The connection ended or fell silent before the call was over."""

    exit_code = 7


class HungUpError(CallLostError):
    """The server ended the call in good order, and gave no reason."""


class DeviceError(ClientError):
    """No microphone or loudspeakers: the sound system, the device or its settings do not work."""

    exit_code = 8
