"""Which adapter a call is to speak with: what is ready, who is live and canary, and which users hear a canary.

A plan is made by whoever follows the registry, and obeyed where the engine steps. Nothing here moves: no threads, no
engine, no files.
"""

import hashlib
from typing import Final

import msgspec

from server.metrics import AdapterRole

__all__ = ["NOBODYS", "Plan", "Version", "hears_canary"]

_BITS: Final = 64


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that is ready in one engine."""

    id: str
    number: int
    """By which that engine knows it."""


def hears_canary(user: str, canary: str, share: float) -> bool:
    """Whether a user is among the `share` (0 to 1) of users who hear this canary.

    The same user hears it or not in every call, at every server; another canary finds other users. `user` is the
    caller's `user_hash`, or the call's id where the caller is anonymous: either is a keyed hash or random, so
    nobody can choose to be among them.
    """
    digest = hashlib.sha256(f"{canary}\0{user}".encode()).digest()
    return int.from_bytes(digest[: _BITS // 8]) < share * 2.0**_BITS


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What every call is to speak with from now on."""

    live: Version | None = None
    """None is the base model."""
    canary: Version | None = None
    share: float = 0.0
    """Of users who hear the canary."""
    allowed: frozenset[str] = frozenset()
    """Adapters that calls may go on with; whoever speaks with another is moved at once."""
    pending: bool = False
    """Another one is to be live and is not ready yet."""
    crowded: bool = False
    """There is no room for an adapter that is to speak: calls give up older ones when they fall silent."""

    def choose(self, user: str) -> Version | None:
        """What a user's call speaks with; None for the base model."""
        if self.canary is not None and hears_canary(user, self.canary.id, self.share):
            return self.canary
        return self.live

    def role(self, version: Version | None) -> AdapterRole:
        """What a version is at present."""
        if version is None:
            return AdapterRole.BASE
        if version == self.live:
            return AdapterRole.LIVE
        return AdapterRole.CANARY if version == self.canary else AdapterRole.OLDER

    def speaking(self) -> dict[AdapterRole, str]:
        """Ids by role, of what new calls may get."""
        roles = {AdapterRole.LIVE: self.live, AdapterRole.CANARY: self.canary}
        named = {role: version.id for role, version in roles.items() if version is not None}
        return named if AdapterRole.LIVE in named else {AdapterRole.BASE: ""} | named


NOBODYS: Final = Plan()
"""The base model for everybody."""
