"""Opus packets to Ogg pages (RFC 3533, RFC 7845), one packet a page. It knows bytes, no sound and no sockets."""

import struct
import zlib
from collections.abc import Iterable
from typing import Final

__all__ = ["OggWriter"]

_PAGE: Final = struct.Struct("<4sBBqIIIB")
_BEGINS: Final = 0x02
_SERIAL: Final = 42
_GRANULE_HZ: Final = 48_000
"""RFC 7845 counts samples at 48 kHz whatever the rate."""
_CHECKSUM_AT: Final = 22
_LACE: Final = 255
_LONGEST_PACKET: Final = 255 * _LACE - 1

_REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class OggWriter:
    """One stream: two header pages, then a page for every packet. Joined, the outputs are one valid Ogg file.

    Nothing but two counters grows with the stream: the granule, of 64 bits, and the page number, which goes round
    after 2**32 pages (5 years of 40 ms), as libogg's does.
    """

    def __init__(self, *, head: bytes, packet_ms: int) -> None:
        """`head` is the packet that begins with `OpusHead`, as the encoder gives it."""
        self._head = head
        self._step = _GRANULE_HZ * packet_ms // 1000
        self._granule = 0
        self._number = 0

    def write(self, packets: Iterable[bytes]) -> bytes:
        """Wrap Opus packets of `packet_ms` each. The first output begins with the headers."""
        pages = [] if self._number else self._headers()
        for packet in packets:
            self._granule += self._step
            pages.append(self._page(packet, granule=self._granule))
        return b"".join(pages)

    def _headers(self) -> list[bytes]:
        tags = struct.pack("<8sI8sI", b"OpusTags", 8, b"duologue", 0)
        return [self._page(self._head, granule=0, flags=_BEGINS), self._page(tags, granule=0)]

    def _page(self, packet: bytes, *, granule: int, flags: int = 0) -> bytes:
        assert len(packet) <= _LONGEST_PACKET, "an Opus packet of 40 ms has at most 2,551 bytes"
        laces, rest = divmod(len(packet), _LACE)
        number = self._number & 0xFFFFFFFF
        head = _PAGE.pack(b"OggS", 0, flags, granule, _SERIAL, number, 0, laces + 1)
        page = head + bytes([_LACE] * laces + [rest]) + packet
        self._number += 1
        return page[:_CHECKSUM_AT] + _checksum(page) + page[_CHECKSUM_AT + 4 :]


def _checksum(page: bytes) -> bytes:
    """Give Ogg's CRC-32 of a page whose own field is zero, little-endian.

    It is zlib's with the bits in the other order, an initial value of zero and nothing inverted at the end; turning
    every byte round, before and after, lets zlib do the work in C.
    """
    mirrored = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return mirrored.to_bytes(4, "big").translate(_REVERSED)
