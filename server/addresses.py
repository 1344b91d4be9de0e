"""Where a request comes from: the address that limits are counted by, and whether it came over TLS.

What `X-Forwarded-For` and `X-Forwarded-Proto` say counts only from a proxy that the operator trusts; anybody can send
them. It knows requests and no limits.
"""

import ipaddress
from collections.abc import Sequence
from typing import Final

import msgspec
from aiohttp import web

from server.errors import ConfigError

__all__ = ["Addresses", "Visitor"]

_FORWARDED: Final = ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via")
_MOST_HOPS: Final = 16
_HOUSE_BITS: Final = 64
"""An IPv6 customer has a whole /64 to call from: they are one."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Visitor(msgspec.Struct, frozen=True, kw_only=True):
    """Who is at the other end, as far as an address tells."""

    address: str
    """An IPv4 address, or the /64 of an IPv6 one; `unknown` where there is none, as on a Unix socket."""
    local: bool = False
    """On this very machine, with nobody in between who says so."""
    secure: bool = False
    """Over TLS, to us or to a trusted proxy."""


class Addresses:
    """Tells where requests come from. Raises `ConfigError` for a proxy that is neither address nor network."""

    def __init__(self, trusted_proxies: Sequence[str]) -> None:
        self._trusted = [_network(text) for text in trusted_proxies]

    def visitor(self, request: web.Request) -> Visitor:
        """Look at a request. Never raises for what a peer sends."""
        peer = _address(request.remote or "")
        if peer is None:
            return Visitor(address="unknown")
        trusted = self._is_trusted(peer)
        forwarded = any(name in request.headers for name in _FORWARDED)
        by_proxy = trusted and request.headers.get("X-Forwarded-Proto", "").lower() == "https"
        origin = self._through_proxies(peer, request) if trusted else peer
        return Visitor(
            address=_house(origin), local=origin.is_loopback and not forwarded, secure=request.secure or by_proxy
        )

    def limited(self, peer: str) -> str | None:
        """The address a connection is counted by; None for this machine and trusted proxies, which speak for many."""
        address = _address(peer)
        if address is None or address.is_loopback or self._is_trusted(address):
            return None
        return _house(address)

    def _through_proxies(self, peer: Address, request: web.Request) -> Address:
        """Go back hop by hop until one is not trusted: further back, anybody can have written anything."""
        hops = ",".join(request.headers.getall("X-Forwarded-For", [])).rsplit(",", _MOST_HOPS)
        nearest = peer
        for hop in reversed(hops):
            if (address := _address(hop.strip())) is None:
                return nearest
            nearest = address
            if not self._is_trusted(address):
                return nearest
        return nearest

    def _is_trusted(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self._trusted)


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError as problem:
        raise ConfigError(
            "trusted_proxies", got=repr(text), expected="an address such as 10.0.0.7 or a network such as 10.0.0.0/8"
        ) from problem


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _house(address: Address) -> str:
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.ip_network((address, _HOUSE_BITS), strict=False))
