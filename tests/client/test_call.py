import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from client import call
from client.call import CallReport, hold_call
from client.errors import ServerBusyError, SoundFileError
from client.link import OPUS_DELAY_SAMPLES, open_link
from client.recording import Recording
from tests.client.signals import bursts, lag_of, speechlike
from tests.client.stage import FRAME, Samples, Script, Stage, answering, silence, staged


def cut(sound: Samples) -> list[Samples]:
    return [sound[start : start + FRAME] for start in range(0, len(sound) // FRAME * FRAME, FRAME)]


async def held(script: Script, sound: Samples, *, speed: float = 1.0, folder: Path | None = None) -> CallReport:
    files = {"reply": folder / "reply.wav", "call": folder / "call.wav"} if folder else {}
    async with staged(script) as url, open_link(url) as link:
        with Recording(**files) as recording:
            return await hold_call(link, cut(sound), recording, url=url, speed=speed)


@pytest.mark.parametrize("delay", [0, 1, 3])
async def test_both_sides_are_aligned_to_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delay: int
) -> None:
    """Whatever the model's delay, its frame n stands beside the caller's frame n + 1."""
    monkeypatch.setattr(call, "_USUALLY_BEHIND", min(delay, 1))  # frames 1.6 ms apart need not show it
    user, model = speechlike(20 * FRAME, seed=1), speechlike(20 * FRAME, seed=2)
    script = answering(lambda n: cut(model)[n], delay=delay, max_speed=50.0)
    report = await held(script, user, speed=50.0, folder=tmp_path)
    assert (report.frames_sent, report.frames_received) == (20, 20 - delay)
    stereo, rate = soundfile.read(tmp_path / "call.wav", dtype="float32")
    reply, _ = soundfile.read(tmp_path / "reply.wav", dtype="float32")
    assert (rate, len(stereo)) == (24000, max(20 * FRAME, len(reply)))
    assert len(reply) == (21 - delay) * FRAME - OPUS_DELAY_SAMPLES
    np.testing.assert_allclose(stereo[: len(user), 0], np.clip(user, -1, 1), atol=1e-4)
    np.testing.assert_array_equal(stereo[: len(reply), 1], reply)
    assert not reply[:FRAME].any()
    assert abs(lag_of(reply[FRAME:], model)) <= 1


async def test_lost_sound_leaves_a_gap_and_what_follows_is_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call, "_USUALLY_BEHIND", 0)
    model = cut(speechlike(20 * FRAME, seed=2))

    async def script(stage: Stage) -> None:
        await stage.ready(max_speed=50.0)
        for n in range(20):
            await stage.hear()
            if n == 11:
                await stage.note({"type": "stats", "lag_ms": 240, "dropped_ms": 160, "skipped_ms": 80})
            if n == 15:
                await stage.note({"type": "stats", "lag_ms": 0, "dropped_ms": 160, "skipped_ms": 80})
            if n not in (8, 9, 10):
                await stage.speak(model[n])
        await stage.gone()

    report = await held(script, silence().repeat(20), speed=50.0, folder=tmp_path)
    assert (report.dropped_ms, report.skipped_ms, report.max_lag_ms) == (160, 80, 240)
    assert report.frames_received == 17
    reply, _ = soundfile.read(tmp_path / "reply.wav", dtype="float32")
    assert abs(lag_of(reply[12 * FRAME :], np.concatenate(model[11:]))) <= 160, "Opus goes on where it stopped"
    assert not reply[10 * FRAME : 12 * FRAME - 160].any()


async def test_a_conversation_is_measured(tmp_path: Path) -> None:
    """The model answers 0.48 s after the user's end and writes its first word a frame before."""
    answer = cut(bursts(4.0, [(2.0, 3.0)]))

    async def script(stage: Stage) -> None:
        await stage.ready(id="abc", adapter="a1")
        for n in range(50):
            await stage.hear()
            await stage.speak(answer[n])
            if n in (24, 28):
                await stage.send(2, b" word")
        await stage.gone()

    report = await held(script, bursts(4.0, [(0.5, 1.6)]))
    (turn,) = report.turns
    assert turn.latency_s == pytest.approx(0.48, abs=0.02)
    assert turn.text_latency_s == pytest.approx(25 * 0.08 - 1.6, abs=0.02)
    assert report.text == "word word"
    assert [piece.t_s for piece in report.pieces] == [25 * 0.08, 29 * 0.08]
    assert (report.session, report.adapter, report.speed, report.duration_s) == ("abc", "a1", 1.0, 4.0)
    assert report.delay_ms is not None
    assert 80 <= report.delay_ms.p50 <= report.delay_ms.p95 <= report.delay_ms.max
    assert turn.heard_latency_s == pytest.approx(2.0 - 1.6 + report.delay_ms.p50 / 1000, abs=0.02)
    assert report.first_audio_delay_s is not None
    assert report.first_audio_delay_s >= 0.08


async def test_no_frame_is_sent_before_a_microphone_would_have_it() -> None:
    arrivals: list[float] = []

    async def script(stage: Stage) -> None:
        await stage.ready()
        while True:
            await stage.hear()
            arrivals.append(time.monotonic())

    began_at = time.monotonic()
    await held(script, silence().repeat(12))
    assert all(at - began_at >= 0.08 * (n + 1) for n, at in enumerate(arrivals))
    assert len(arrivals) == 12


@pytest.mark.parametrize(("wanted", "allowed", "expected"), [(4.0, 2.0, 2.0), (2.0, 4.0, 2.0), (0.5, 4.0, 0.5)])
async def test_speed_is_what_is_wanted_but_no_more_than_is_allowed(
    wanted: float, allowed: float, expected: float
) -> None:
    script = answering(silence, max_speed=allowed)
    began_at = time.monotonic()
    report = await held(script, silence().repeat(10), speed=wanted)
    assert time.monotonic() - began_at >= 0.8 / expected
    assert report.speed == expected
    assert report.delay_ms is None, "it means nothing when time runs differently"


async def test_a_server_that_says_nothing_of_speed_gets_real_time() -> None:
    report = await held(answering(silence), silence().repeat(5), speed=10.0)
    assert report.speed == 1.0


async def test_the_caller_can_decide_by_what_it_hears() -> None:
    """Frames are asked for when they are due: a caller can stop as soon as the model has finished."""
    answer = cut(bursts(8.0, [(0.4, 0.8)]))
    async with staged(answering(lambda n: answer[n])) as url, open_link(url) as link:
        with Recording() as recording:

            def until_answered() -> Iterator[Samples]:
                while (recording.model_quiet_for_s() or 0.0) < 0.5:
                    yield silence()

            report = await hold_call(link, until_answered(), recording)
    assert 1.3 <= report.duration_s < 4.0


@pytest.mark.parametrize(("delay", "late"), [(0, 10), (0, 1), (1, 1), (1, 3)])
async def test_late_sound_is_waited_for(delay: int, late: int) -> None:
    """Whether everything is late or only the end, by longer than the gaps of a busy machine."""

    async def script(stage: Stage) -> None:
        await stage.ready()
        for n in range(10):
            await stage.hear()
            if delay <= n < 10 - late:
                await stage.speak(silence())
        await asyncio.sleep(1.5)
        for _ in range(late):
            await stage.speak(silence())
        await stage.gone()

    report = await held(script, silence().repeat(10))
    assert report.frames_received == 10 - delay


async def test_a_call_ends_at_once_when_no_more_than_usual_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "_PATIENCE_S", 1000.0)
    report = await held(answering(silence, delay=1, max_speed=50.0), silence().repeat(10), speed=50.0)
    assert report.frames_received == 9


async def test_a_server_that_ends_the_call_ends_it_with_its_reason() -> None:
    async def script(stage: Stage) -> None:
        await stage.ready()
        await stage.hear()
        await stage.send(5, b"no room")
        await stage.close(4429)

    with pytest.raises(ServerBusyError, match="no room"):
        await held(script, silence().repeat(50))


async def test_a_file_that_breaks_off_ends_the_call() -> None:
    def broken() -> Iterator[Samples]:
        yield silence()
        raise SoundFileError("the file is damaged")

    with Recording() as recording:
        async with staged(answering(silence)) as url, open_link(url) as link:
            with pytest.raises(SoundFileError, match="damaged"):
                await hold_call(link, broken(), recording)
