"""Ogg pages, read and written from RFC 3533, independent of the code under test."""

import struct


def crc(data: bytes) -> int:
    """Ogg's CRC-32: polynomial 0x04c11db7, no reflection, initial value and final xor 0."""
    value = 0
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        value &= 0xFFFFFFFF
    return value


def page(packet: bytes, *, flags: int, sequence: int, granule: int = 0, serial: int = 1) -> bytes:
    """One page with one packet of less than 255 bytes."""
    assert len(packet) < 255
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, granule, serial, sequence, 0, 1) + bytes([len(packet)])
    return head[:22] + struct.pack("<I", crc(head + packet)) + head[26:] + packet


def pages(stream: bytes) -> list[bytes]:
    """Cut a stream into its pages, checking each capture pattern, length and checksum."""
    found = []
    while stream:
        assert stream.startswith(b"OggS"), stream[:8]
        segments = stream[26]
        length = 27 + segments + sum(stream[27 : 27 + segments])
        one, stream = stream[:length], stream[length:]
        assert len(one) == length, "a page is cut short"
        assert crc(one[:22] + bytes(4) + one[26:]) == struct.unpack_from("<I", one, 22)[0], "checksum"
        found.append(one)
    return found
