"""Opus of all callers in one call: PyAV's packets to the last bit, nobody's fault another's, no memory that grows."""

import gc
import importlib.util
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import sphn

from client.sound import read_frames
from kernels.cpu import OpusError, find_libopus, load_library
from kernels.cpu import opus as binding
from server.boxes import DueFrame
from server.config import ServerConfig
from server.encoding import EncodedStep, EncodingThread
from server.engine import Engine, StageSeconds
from server.generations import describe
from server.metrics import Metrics
from server.ogg import OggWriter
from server.parameters import read_parameters
from server.session import ModelInfo, Session
from server.sound import OPUS_RATES_HZ, PACKET_MS, Frame, Resampler, SoundEncoder, encode_all
from server.tick import Answer, Step

SPEECH = sorted((Path(__file__).parents[1] / "assets" / "speech").glob("*.opus"))
STATM = Path("/proc/self/statm")


def speech(rate: int, *, file: int = 0, frames: int = 25) -> list[Frame]:
    """What somebody says, over and over if need be: float32 `[frames][rate * 2 // 25]`."""
    resample, said = Resampler(24_000, rate), list(read_frames(SPEECH[file % len(SPEECH)]))
    return [resample(said[at % len(said)]).copy() for at in range(frames)]


def distance_db(sound: Frame, packets: list[bytes], head: bytes) -> float:
    """Mean log-spectral distance of what the packets say to the sound at 24 kHz, the encoder's delay taken out."""
    ogg, decoder = OggWriter(head=head, packet_ms=PACKET_MS), sphn.OpusStreamReader(24_000)
    heard = np.asarray(decoder.append_bytes(ogg.write(packets)), np.float32)[156:]
    spectra = []
    for each in (sound[: heard.size], heard[: sound.size]):
        blocks = each[: each.size // 480 * 480].reshape(-1, 480) * np.hanning(480)
        spectra.append(10 * np.log10(np.abs(np.fft.rfft(blocks)) ** 2 + 1e-5))
    return float(np.mean(np.sqrt(np.mean((spectra[0] - spectra[1]) ** 2, axis=1))))


@pytest.fixture(autouse=True)
def compiled() -> None:
    """These tests are about compiled code. A machine without a compiler cannot run them, and does not pass them."""
    assert find_libopus() is not None


@pytest.fixture(scope="module")
def model(tiny: Path) -> ModelInfo:
    return describe(Engine.load(tiny, slots=1, device="cpu"))


@pytest.mark.parametrize("file", range(len(SPEECH)))
def test_packets_are_pyavs_to_the_last_bit(file: int) -> None:
    ours, peer = SoundEncoder(sample_rate=24_000), SoundEncoder(sample_rate=24_000, compiled=False)
    assert (ours.stream is None, peer.stream is None) == (False, True)
    assert ours.head == peer.head
    frames = speech(24_000, file=file)
    assert [ours.encode(frame) for frame in frames] == [peer.encode(frame) for frame in frames]


@pytest.mark.parametrize("rate", OPUS_RATES_HZ)
def test_what_is_resampled_is_the_filters_and_as_near_to_the_sound_as_pyavs(rate: int) -> None:
    """Sums are rounded in another order than numpy's, which libopus sometimes hears."""
    ours, peer = SoundEncoder(sample_rate=rate), SoundEncoder(sample_rate=rate, compiled=False)
    resample, wide = Resampler(rate, 24_000), []
    packets: tuple[list[bytes], list[bytes]] = ([], [])
    for frame in speech(rate):
        wide.append(resample(frame).copy())
        packets[0].extend(ours.encode(frame))
        packets[1].extend(peer.encode(frame))
        assert ours.stream is not None
        if rate != 24_000:
            np.testing.assert_allclose(ours.stream._resampled[: wide[-1].size], wide[-1], atol=2e-6)
    assert len(packets[0]) == len(packets[1]) == 50
    distances = [distance_db(np.concatenate(wide), each, ours.head) for each in packets]
    assert distances[0] == pytest.approx(distances[1], abs=0.02)
    assert distances[0] < distance_db(np.concatenate(wide), packets[0][::-1], ours.head) / 2, "it can tell them apart"


def test_what_a_row_gives_does_not_depend_on_its_company() -> None:
    rates = [OPUS_RATES_HZ[row % len(OPUS_RATES_HZ)] for row in range(30)]
    said = [speech(rate, file=row, frames=10) for row, rate in enumerate(rates)]
    together, alone = ([SoundEncoder(sample_rate=rate) for rate in rates] for _ in range(2))
    for step in range(10):
        some = [row for row in range(30) if (row + step) % 3]
        done = encode_all([(together[row], said[row][step]) for row in some])
        assert done == [alone[row].encode(said[row][step]) for row in some]


def test_a_row_that_fails_fails_alone() -> None:
    encoders, said = [SoundEncoder(sample_rate=24_000) for _ in range(4)], speech(24_000)
    control = SoundEncoder(sample_rate=24_000)
    refusing = encoders[3].stream
    assert refusing is not None
    refusing._stream.packet_samples = 640  # three packets of a length that Opus does not have
    bad = [said[0], said[0][:-1], np.zeros(0, np.float32), said[0]]
    done = encode_all(list(zip(encoders, bad, strict=True)))
    assert done[0] == control.encode(said[0])
    for failed, reason in zip(done[1:], ("shape (1919,)", "shape (0,)", "libopus: invalid argument (-1)"), strict=True):
        assert isinstance(failed, OpusError)
        assert reason in str(failed)
    refusing._stream.packet_samples = 960
    assert [encoder.encode(said[1]) for encoder in encoders[:1]] == [control.encode(said[1])]
    assert len(encoders[1].encode(said[1])) == len(encoders[3].encode(said[1])) == 2, "the next frame is another matter"


@pytest.mark.parametrize("length", [959, 961, 4801, 9600])
def test_no_block_is_read_or_written_past_its_end(length: int) -> None:
    with pytest.raises(OpusError, match="one to 4 whole packets"):
        SoundEncoder(sample_rate=24_000).encode(np.zeros(length, np.float32))
    with pytest.raises(OpusError, match="one to 4 whole packets"):
        SoundEncoder(sample_rate=24_000).encode(np.zeros((2, 960), np.float32))


def test_the_loudest_noise_fits_into_a_packet_and_other_layouts_are_copied() -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (1920, 2)).astype(np.float32)
    ours, peer = SoundEncoder(sample_rate=24_000), SoundEncoder(sample_rate=24_000, compiled=False)
    for sound in (noise[:, 0], 1000 * noise[:, 1], np.zeros(1920, np.float32)):
        assert ours.encode(sound) == peer.encode(np.ascontiguousarray(sound, np.float32))


@pytest.fixture
def nothing_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_library.cache_clear()
    find_libopus.cache_clear()
    yield monkeypatch
    load_library.cache_clear()
    find_libopus.cache_clear()


@pytest.mark.parametrize("missing", ["compiler", "libopus", "not a library"])
def test_where_something_is_missing_pyav_does_the_work(
    missing: str, nothing_loaded: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    control, frames = SoundEncoder(sample_rate=24_000, compiled=False), speech(24_000)
    if missing == "compiler":
        nothing_loaded.setenv("CC", "no-such-compiler")
    elif missing == "libopus":
        nothing_loaded.setattr(importlib.util, "find_spec", lambda _: None)
    else:
        (tmp_path / "libopus.so").write_bytes(b"no library")
        nothing_loaded.setattr(binding, "_path", lambda: tmp_path / "libopus.so")
    encoders = [SoundEncoder(sample_rate=24_000) for _ in range(2)]
    assert [encoder.stream for encoder in encoders] == [None, None]
    assert caplog.text.count("Opus is made by PyAV, one row after the other") == 1
    for frame in frames:
        done = encode_all([(encoders[0], frame), (encoders[1], frame[:-1])])
        assert done[0] == control.encode(frame)
        assert isinstance(done[1], ValueError)


@pytest.mark.skipif(not STATM.exists(), reason="what a process has resident is read from Linux")
def test_memory_does_not_grow_over_10000_frames() -> None:
    """Nor with callers who come and go: an encoder's memory is Python's."""
    encoders, frames = [SoundEncoder(sample_rate=16_000) for _ in range(10)], speech(16_000, frames=10)
    sizes = []
    for many in range(1000):
        encode_all([(encoder, frames[many % 10]) for encoder in encoders])
        encoders[many % 10] = SoundEncoder(sample_rate=16_000)
        if many % 200 == 199:
            gc.collect()
            sizes.append(int(STATM.read_text().split()[1]) * 4)
    assert sizes[-1] - sizes[0] < 4_000, f"kilobytes: {sizes}; one encoder has 45, and 800 were made"


def test_an_encoder_is_gone_with_its_call() -> None:
    encoder = SoundEncoder(sample_rate=16_000)
    encode_all([(encoder, speech(16_000)[0])])
    stream = encoder.stream
    assert stream is not None
    gone = weakref.ref(stream)
    del encoder, stream
    assert gone() is None


def test_threads_with_encoders_of_their_own_do_not_meet() -> None:
    said = [speech(rate, file=at, frames=40) for at, rate in enumerate(OPUS_RATES_HZ)]
    wanted = [[SoundEncoder(sample_rate=rate)] for rate in OPUS_RATES_HZ]
    expected = [[each[0].encode(frame) for frame in frames] for each, frames in zip(wanted, said, strict=True)]
    found: dict[int, list[object]] = {}

    def talk(at: int) -> None:
        encoders = [SoundEncoder(sample_rate=OPUS_RATES_HZ[at]) for _ in range(3)]
        found[at] = [encode_all([(encoder, frame) for encoder in encoders]) for frame in said[at]]

    threads = [threading.Thread(target=talk, args=(at,)) for at in range(len(OPUS_RATES_HZ))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {at: [[packets] * 3 for packets in each] for at, each in enumerate(expected)}


def test_other_threads_run_while_packets_are_made() -> None:
    """The call holds no lock of the interpreter: Python goes on in the middle of it."""
    stream, pcm = SoundEncoder(sample_rate=24_000).stream, speech(24_000)[3]
    libopus = find_libopus()
    assert stream is not None
    assert libopus is not None
    stream.give(pcm)
    began, ended, counted = threading.Event(), threading.Event(), []

    def count() -> None:
        began.wait()
        while not ended.is_set():
            counted.append(ended.is_set())

    other = threading.Thread(target=count)
    other.start()
    places = [stream] * 5000  # about a second: the same block again and again
    began.set()
    libopus.encode(places)
    during = len(counted)
    ended.set()
    other.join()
    assert during > 1000


def session_of(model: ModelInfo) -> Session:
    return Session(
        model=model, parameters=read_parameters({}), config=ServerConfig(), metrics=Metrics(), on_frame=lambda: None
    )


def step_of(sessions: list[Session], sound: list[Frame | None]) -> Step:
    now = time.monotonic()
    heard = DueFrame(pcm=np.zeros(1280, np.float32), at=now, due_at=now)
    return Step(
        answers=[
            Answer(session=session, slot=slot, frame=heard, pcm=pcm, token=slot, adapter="")
            for slot, (session, pcm) in enumerate(zip(sessions, sound, strict=True))
        ],
        began_at=now,
        stepped_at=now,
        stages=StageSeconds(encode=0.0, temporal=0.0, depth=0.0, decode=0.0),
        tokens_BK=np.zeros((len(sound), 1), np.int64),
        logprob_B=np.zeros(len(sound), np.float32),
        damaged=0,
    )


@pytest.fixture
def encode() -> Iterator[Callable[[list[Step]], list[EncodedStep]]]:
    """Have steps encoded by the thread, and give what it delivered, in its order."""
    delivered: queue.SimpleQueue[EncodedStep] = queue.SimpleQueue()
    thread = EncodingThread(delivered.put)

    def all_of(steps: list[Step]) -> list[EncodedStep]:
        for step in steps:
            thread.put(step)
        return [delivered.get(timeout=30) for _ in steps]

    yield all_of
    thread.stop()


def test_steps_keep_their_order_and_every_row_its_sound(
    model: ModelInfo, encode: Callable[[list[Step]], list[EncodedStep]]
) -> None:
    sessions, said = [session_of(model) for _ in range(5)], [speech(16_000, file=row) for row in range(5)]
    steps = [step_of(sessions, [frames[at] for frames in said]) for at in range(25)]
    done = encode(steps)
    assert [each.step for each in done] == steps
    for row, frames in enumerate(said):
        control = SoundEncoder(sample_rate=16_000)
        assert [each.replies[row].reply.sound for each in done] == [control.encode(frame) for frame in frames]
        assert {each.replies[row].session for each in done} == {sessions[row]}
        assert {each.replies[row].reply.token for each in done} == {row}


def test_rows_without_sound_or_socket_and_rows_that_fail_are_replies_too(
    model: ModelInfo, encode: Callable[[list[Step]], list[EncodedStep]], caplog: pytest.LogCaptureFixture
) -> None:
    sessions, frame = [session_of(model) for _ in range(4)], speech(16_000)[3]
    sessions[1].detach()
    old = sessions[3].encoder
    (done,) = encode([step_of(sessions, [None, frame, frame[:-1], frame])])
    assert [len(each.reply.sound) for each in done.replies] == [0, 0, 0, 2]
    assert done.replies[3].encoder is old
    assert f"a reply of call {sessions[2].id} could not be encoded" in caplog.text
    assert "shape (1279,)" in caplog.text
    sessions[3].detach()
    sessions[3].attach()
    (again,) = encode([step_of(sessions, [frame, None, frame, frame])])
    assert [len(each.reply.sound) for each in again.replies] == [2, 0, 2, 2]
    assert again.replies[3].encoder is sessions[3].encoder is not old
    assert again.replies[3].reply.sound == done.replies[3].reply.sound, "a stream that begins anew"
