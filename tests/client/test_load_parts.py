"""The parts of `duologue load` by themselves: pages, the frames' journeys, lateness, the server's histograms."""

import asyncio
import random
import time
from pathlib import Path

import numpy as np
import pytest
import sphn
from hypothesis import given
from hypothesis import strategies as st

from client.errors import CallLostError
from client.load.caller import Call
from client.load.clock import LateLoop
from client.load.figures import Outcome, summarise
from client.load.journey import Journey, model_delay, starvation
from client.load.pages import PageReader, PageWriter, packet_granules, packets
from client.load.script import Script, read_script
from client.load.server_metrics import read_metrics, stages_between
from server.metrics import Metrics, Stage
from tests.server.ogg import pages

QUESTION = Path(__file__).parent.parent / "assets" / "speech" / "demo_2.opus"
FRAME_S = 0.08


@pytest.fixture(scope="module")
def script() -> Script:
    return read_script([QUESTION])


def test_a_spliced_call_is_a_legal_stream_that_decodes_to_its_sound(script: Script) -> None:
    writer = PageWriter(serial=77, headers=script.headers)
    frames = script.frames(random.Random(1))
    stream = [writer.page(next(frames)) for _ in range(100)]
    found = pages(b"".join(stream))  # checks every checksum, by an implementation of its own
    assert [int.from_bytes(page[18:22], "little") for page in found] == list(range(102))
    assert {int.from_bytes(page[14:18], "little") for page in found} == {77}
    assert [int.from_bytes(page[6:14], "little") for page in found] == [0, 0, *(3840 * n for n in range(1, 101))]
    assert [page[5] for page in found[:3]] == [2, 0, 0]
    decoder = sphn.OpusStreamReader(24000)
    sound = [np.asarray(decoder.append_bytes(page)) for page in stream]
    assert {len(frame) for frame in sound} == {1920}, "a page is a frame: none is complete before its page or after it"
    loud = [bool(np.abs(frame).max() > 0.05) for frame in sound]
    assert 10 < sum(loud) < 60, "questions and pauses"
    assert max(float(np.abs(frame).max()) for frame in sound) < 1.0, "splices do not crack"


def test_callers_of_one_seed_say_the_same_again_and_others_do_not(script: Script) -> None:
    def said(seed: int) -> list[tuple[bytes, ...]]:
        frames = script.frames(random.Random(seed))
        return [next(frames) for _ in range(200)]

    assert said(3) == said(3)
    assert said(3) != said(4)


@given(cuts=st.lists(st.integers(1, 700), min_size=1, max_size=40))
def test_frames_are_counted_whatever_the_messages_are_cut_into(cuts: list[int]) -> None:
    writer = sphn.OpusStreamWriter(24000)
    stream = b"".join(bytes(writer.append_pcm(np.zeros(1920, np.float32))) for _ in range(9))
    reader, at, told = PageReader(), 0, 0
    while at < len(stream):
        size = cuts[at % len(cuts)]
        told += reader.feed(stream[at : at + size])
        at += size
    assert told == reader.frames == 9


def test_what_is_no_ogg_is_refused() -> None:
    with pytest.raises(CallLostError, match="not Ogg"):
        PageReader().feed(b"RIFF....")
    with pytest.raises(CallLostError, match="no whole page"):
        list(packets(b"OggS\x00"))


@pytest.mark.parametrize(
    ("packet", "granules"),
    [(b"\x6a", 1920), (b"\x68", 960), (b"\x08", 960), (b"\x00", 480), (b"\x1b\x03", 8640), (b"\xe0", 120)],
)
def test_a_packet_tells_its_length(packet: bytes, granules: int) -> None:
    assert packet_granules(packet) == granules


def call(delays: list[float], *, model: int = 1, send_late: float = 0.0, read_late: float = 0.0) -> Journey:
    """Frames sent every 80 ms; reply n comes so long after the sending of frame n + model."""
    journey = Journey()
    events = [(n * FRAME_S + send_late, -1) for n in range(len(delays) + model)]
    events += [((n + model) * FRAME_S + send_late + delay + read_late, n) for n, delay in enumerate(delays)]
    for at, reply in sorted(events):
        if reply < 0:
            journey.send(at - send_late, at)
        else:
            journey.hear(1, at, read_late)
    journey.answered_all = True
    return journey


@pytest.mark.parametrize("model", [0, 1, 2])
def test_the_models_own_delay_is_seen_and_taken_off(model: int) -> None:
    """Also when every reply takes longer than a frame: the last ones, and what stays unanswered for ever, tell."""
    journey = call([0.1] * 20, model=model)
    assert model_delay([journey]) == model
    assert journey.unanswered == model
    np.testing.assert_allclose(journey.answers(model).delay, 0.1)


def test_without_a_call_that_shows_it_the_models_delay_is_the_usual_one() -> None:
    assert model_delay([Journey()]) == 1
    assert model_delay([call([0.9] * 20, model=12)]) == 1, "that is a server far behind, not a model"


def test_a_frame_that_was_sent_after_the_end_is_neither_sent_nor_answered() -> None:
    """The last one of a caller on a busy machine."""
    one = Call(None)
    one.began_at, one.journey = 0.0, call([0.02] * 20)
    last = one.journey.sent[-1]
    outcome = Outcome(
        url="", seed=0, jitter_s=0.08, callers=1, began_at=0.0, measured_from=FRAME_S / 2, ended_at=last - 0.01,
        cpu_s=0.0, calls=[one], before=None, after=None,
    )  # fmt: skip
    frames = summarise(outcome).frames
    assert frames.sent == frames.answered == 19
    assert frames.missing == 0


def test_late_is_what_a_strict_player_misses() -> None:
    journey = call([0.02] * 5 + [0.15] + [0.05] * 4 + [0.15] * 3)
    late, by_client = journey.answers(1).late(0.08)
    assert np.flatnonzero(late).tolist() == [5, 10, 11, 12]
    assert not by_client.any()


def test_a_patient_player_starves_once_and_is_behind_from_then_on() -> None:
    starved = starvation(call([0.02] * 5 + [0.15] * 8).answers(1), 0.08)
    assert starved.frames == 1
    assert starved.seconds == pytest.approx(0.05)


@pytest.mark.parametrize(("send_late", "read_late"), [(0.2, 0.0), (0.0, 0.2)])
def test_what_this_program_was_late_is_not_the_servers(send_late: float, read_late: float) -> None:
    """The first frame is on time; the others come 200 ms late, and the client knows it was the client."""
    journey = call([0.02] * 10)
    answers = journey.answers(1)
    slow = call([0.02] * 10, send_late=send_late, read_late=read_late).answers(1)
    for name in ("sent", "read", "send_late", "read_late"):
        getattr(answers, name)[1:] = getattr(slow, name)[1:]
    late, by_client = answers.late(0.08)
    assert not late.any()
    assert by_client.sum() == 9
    assert starvation(answers, 0.08).frames == 0


def test_frames_lost_on_the_way_leave_gaps_and_shift_nobody() -> None:
    journey = Journey()
    for n in range(12):
        journey.send(n * FRAME_S, n * FRAME_S)
        if n == 6:
            journey.lost = 3
        if 1 <= n < 4 or n >= 7:
            journey.hear(1, n * FRAME_S + 0.03, 0.0)
    assert journey.unanswered == 1
    np.testing.assert_allclose(journey.answers(1).delay, 0.03)
    assert journey.answers(1).place.tolist() == [0, 1, 2, 6, 7, 8, 9, 10]


class _Ear(asyncio.Protocol):
    def __init__(self, loop: LateLoop) -> None:
        self.late_s: list[float] = []
        self.read_at = 0.0
        self._loop = loop

    def data_received(self, data: bytes) -> None:
        self.late_s.append(self._loop.late_s())
        self.read_at = time.monotonic()


def test_the_loop_knows_how_long_bytes_lay_unread() -> None:
    async def listen(block_s: float) -> tuple[float, float]:
        """Gives what the loop bounds it by, and what really passed since the loop last looked, or a little more."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, LateLoop)
        ear = _Ear(loop)
        server = await loop.create_server(lambda: ear, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"ready")
        while not ear.late_s:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        ear.late_s.clear()
        noted_at = time.monotonic()
        await asyncio.sleep(0.001)
        writer.write(b"x")
        time.sleep(block_s)  # noqa: ASYNC251 - the lateness under test
        while not ear.late_s:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        writer.close()
        server.close()
        return ear.late_s[0], ear.read_at - noted_at

    with asyncio.Runner(loop_factory=LateLoop) as runner:
        late_s, passed_s = runner.run(listen(0.2))
        assert 0.2 <= late_s <= passed_s
        assert min(runner.run(listen(0.0))[0] for _ in range(5)) < 0.02


def test_the_servers_histograms_are_read_as_they_are_written(tmp_path: Path) -> None:
    metrics = Metrics()
    page = tmp_path / "metrics"

    def scrape() -> object:
        page.write_bytes(metrics.expose())
        return read_metrics(page.as_uri())

    metrics.observe(Stage.TOTAL, 5.0)
    before = scrape()
    for _ in range(98):
        metrics.observe(Stage.TOTAL, 0.045)
    metrics.observe(Stage.TOTAL, 0.075)
    metrics.observe(Stage.TOTAL, 0.09)
    stages = stages_between(before, scrape())  # type: ignore[arg-type]
    assert stages is not None
    assert set(stages) == {"total"}, "nothing was observed of the others, and what came before does not count"
    total = stages["total"]
    assert total.count == 100
    assert 40 <= total.p50_ms <= 50
    assert 70 <= total.p99_ms <= 80
    assert total.max_at_most_ms is not None
    assert total.max_at_most_ms >= 90
    assert total.within_frame == 0.99


def test_a_server_without_metrics_has_none() -> None:
    assert read_metrics("http://127.0.0.1:9/metrics") is None
    assert stages_between(None, None) is None
