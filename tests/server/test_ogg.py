"""Pages against a reader written from the RFC, and against `sphn`."""

import struct

import numpy as np
import sphn
from hypothesis import given
from hypothesis import strategies as st

from server.ogg import OggWriter
from server.sound import PACKET_MS, SoundEncoder
from tests.server.caller import voice
from tests.server.ogg import pages

HEAD = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 312, 24000, 0, 0)


def _packet(page: bytes) -> bytes:
    return page[27 + page[26] :]


@given(st.lists(st.lists(st.binary(max_size=1300), max_size=3), max_size=6))
def test_what_goes_in_as_packets_comes_out_of_the_pages(writes: list[list[bytes]]) -> None:
    writer = OggWriter(head=HEAD, packet_ms=40)
    stream = pages(b"".join(writer.write(packets) for packets in writes))  # which checks lengths and checksums
    packets = [packet for packets in writes for packet in packets]
    assert [_packet(page) for page in stream[2:]] == packets
    if stream:
        assert _packet(stream[0]) == HEAD
        assert _packet(stream[1]).startswith(b"OpusTags")
    assert [struct.unpack_from("<q", page, 6)[0] for page in stream[2:]] == [
        1920 * (n + 1) for n in range(len(packets))
    ]
    assert all(struct.unpack_from("<I", page, 18)[0] == number for number, page in enumerate(stream))


def test_lengths_at_the_edges_of_the_lacing() -> None:
    for size in (0, 1, 254, 255, 256, 509, 510, 511, 2551):
        writer = OggWriter(head=HEAD, packet_ms=40)
        (*_, page) = pages(writer.write([bytes([7]) * size]))
        assert len(_packet(page)) == size


def test_a_stream_of_years_goes_on() -> None:
    """Page numbers have 32 bits and go round; granules have 64 and do not."""
    writer = OggWriter(head=HEAD, packet_ms=40)
    writer.write([])
    writer._number, writer._granule = 2**32 - 1, 1920 * (2**32 - 3)
    last, first = pages(writer.write([b"a", b"b"]))
    assert [struct.unpack_from("<I", page, 18)[0] for page in (last, first)] == [2**32 - 1, 0]
    assert struct.unpack_from("<q", first, 6)[0] == 1920 * (2**32 - 1)


def test_packets_may_be_missing() -> None:
    """What a slow caller loses never was in the stream: pages stay whole and numbered, and the rest is heard."""
    encoder = SoundEncoder(sample_rate=24000)
    writer, decoder = OggWriter(head=encoder.head, packet_ms=PACKET_MS), sphn.OpusStreamReader(24000)
    packets = [encoder.encode(frame) for frame in voice(30)]
    kept = packets[:8] + packets[20:]
    stream = b"".join(writer.write(each) for each in kept)
    assert [struct.unpack_from("<I", page, 18)[0] for page in pages(stream)] == list(range(2 + 2 * len(kept)))
    heard = np.asarray(decoder.append_bytes(stream))
    assert heard.size == len(kept) * 1920
    assert np.sqrt(np.mean(heard[12 * 1920 :] ** 2)) > 0.1
