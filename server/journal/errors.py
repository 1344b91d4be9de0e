"""What can go wrong with the journal."""

from server.errors import DuologueError

__all__ = ["JournalError", "JournalLockedError", "KeyGoneError", "UnknownSessionError"]


class JournalError(DuologueError):
    """Anything the journal refuses."""


class JournalLockedError(JournalError):
    """Another process records calls into the same journal."""

    def __init__(self, where: str) -> None:
        super().__init__(
            got=f"a second server that records into {where}",
            expected="one at a time",
            remedy="stop the other one, or choose another data folder",
        )


class KeyGoneError(JournalError):
    """A sealed row whose key was destroyed, or was never here."""

    def __init__(self, session: str) -> None:
        super().__init__(
            got=f"no key for session {session}", expected="its key file", remedy="there is none for a deleted session"
        )
        self.session = session


class UnknownSessionError(JournalError):
    """No such session in the journal. It may never have been kept, or is deleted."""

    def __init__(self, session: str) -> None:
        super().__init__(
            got=f"session {session!r}", expected="one that is in the journal", remedy="`journal stats` lists the newest"
        )
        self.session = session
