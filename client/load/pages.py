"""Ogg pages, written and followed without a codec, so that a caller costs next to nothing.

Packets are Opus and stay as they are: nothing here encodes or decodes. Formats: RFC 3533 (Ogg), RFC 6716 section
3.1 (a packet's first byte), RFC 7845 (Opus in Ogg, whose granule positions count samples at 48 kHz).
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

from client.errors import CallLostError

__all__ = ["GRANULES_PER_FRAME", "PageReader", "PageWriter", "packet_granules", "packets"]

GRANULES_PER_FRAME: Final = 3_840
"""An 80 ms frame in samples at 48 kHz."""

_MAGIC: Final = b"OggS"
_HEAD: Final = struct.Struct("<4sBBqIIIB")
_CRC_AT: Final = 22
_SEGMENTS_AT: Final = 26
_FIRST: Final = 0x02
_NO_PACKET_ENDS: Final = -1
_MIRRORED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

_GRANULES_BY_CONFIG: Final = (480, 960, 1920, 2880) * 3 + (480, 960) * 2 + (120, 240, 480, 960) * 4
"""RFC 6716, table 2: SILK 10 to 60 ms, hybrid 10 and 20 ms, CELT 2.5 to 20 ms."""


class PageWriter:
    """One caller's stream: pages with its own serial number, counted and with their checksums."""

    def __init__(self, *, serial: int, headers: Sequence[bytes]) -> None:
        """`headers` are the packets OpusHead and OpusTags."""
        self._serial = serial
        self._sequence = 0
        self._granule = 0
        self._head = self._page(headers[:1], flags=_FIRST) + self._page(headers[1:])

    def page(self, frame: Sequence[bytes]) -> bytes:
        """Wrap the packets of one 80 ms frame. The first page comes with the stream's two header pages."""
        self._granule += GRANULES_PER_FRAME
        head, self._head = self._head, b""
        return head + self._page(frame)

    def _page(self, packets: Sequence[bytes], flags: int = 0) -> bytes:
        lacing = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets)
        head = _HEAD.pack(_MAGIC, 0, flags, self._granule, self._serial, self._sequence, 0, len(lacing))
        page = bytearray(b"".join((head, lacing, *packets)))
        struct.pack_into("<I", page, _CRC_AT, _checksum(page))
        self._sequence += 1
        return bytes(page)


class PageReader:
    """Counts the frames in a stream of pages as it comes, whatever the messages are cut into."""

    def __init__(self) -> None:
        self.frames = 0
        """Whole 80 ms frames so far, by the pages' own granule positions."""
        self._rest = b""

    def feed(self, data: bytes) -> int:
        """Take the next bytes. Returns how many frames they complete. Raises CallLostError when it is not Ogg."""
        self._rest += data
        before = self.frames
        while (length := _page_length(self._rest)) is not None and length <= len(self._rest):
            granule = int(_HEAD.unpack_from(self._rest)[3])
            if granule != _NO_PACKET_ENDS:
                self.frames = max(self.frames, granule // GRANULES_PER_FRAME)
            self._rest = self._rest[length:]
        return self.frames - before


def packets(stream: bytes) -> Iterator[bytes]:
    """Give the packets of a whole Ogg stream, headers first. Raises CallLostError when it is not Ogg."""
    packet = b""
    while stream:
        length = _page_length(stream)
        if length is None or length > len(stream):
            raise CallLostError(f"Got an Ogg stream whose last {len(stream)} bytes are no whole page.")
        segments = stream[_SEGMENTS_AT]
        body = _SEGMENTS_AT + 1 + segments
        for size in stream[_SEGMENTS_AT + 1 : body]:
            packet += stream[body : body + size]
            body += size
            if size < 255:
                yield packet
                packet = b""
        stream = stream[length:]


def packet_granules(packet: bytes) -> int:
    """Count the samples at 48 kHz in an Opus packet, from its first bytes."""
    code = packet[0] & 3
    frames = 1 if code == 0 else 2 if code < 3 else packet[1] & 0x3F
    return frames * _GRANULES_BY_CONFIG[packet[0] >> 3]


def _page_length(data: bytes) -> int | None:
    """Bytes in the page that `data` begins with; None until its head is complete."""
    if not data.startswith(_MAGIC[: len(data)]):
        raise CallLostError(f"The server sent sound that is not Ogg: it begins with {data[:4]!r}, expected {_MAGIC!r}.")
    body = _SEGMENTS_AT + 1
    if len(data) < body or len(data) < body + data[_SEGMENTS_AT]:
        return None
    segments = data[_SEGMENTS_AT]
    return body + segments + sum(data[body : body + segments])


def _checksum(page: bytes | bytearray) -> int:
    """Compute Ogg's CRC-32, which is zlib's with all bits in the other order, no initial value and no final xor."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_MIRRORED), "big")
