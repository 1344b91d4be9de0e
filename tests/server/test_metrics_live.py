"""What calls do to the metrics, over real sockets, and what they do not: name anybody."""

import asyncio
import json
from pathlib import Path

import pytest

from server.metrics import Metrics
from server.tally import Cell
from tests.server.caller import calling, voice
from tests.server.clock import endings_clock
from tests.server.live import serving, until


async def test_sound_that_does_not_come_is_starved_frames(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = endings_clock(monkeypatch)
    async with serving(tiny) as live, calling(live.url) as caller:
        await caller.greeted()
        await caller.talk(voice(2))
        await clock.pass_by(live, 0.4)
        await caller.talk(voice(2), answers=2)
        assert live.count("duologue_frames_total", result="starved") == 0, "jitter is no gap"
        await clock.pass_by(live, 0.6)
        await caller.talk(voice(2), answers=2)
        assert live.count("duologue_frames_total", result="starved") == 7


async def test_a_call_lost_and_resumed_was_not_starved_meanwhile(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = endings_clock(monkeypatch)
    async with serving(tiny, resume_grace_s=20.0) as live:
        async with calling(live.url) as caller:
            await caller.greeted()
            await caller.talk(voice(3))
            token = caller.session["resume_token"]
            caller.socket.transport.abort()
            await until(lambda: live.count("duologue_sessions_parked") == 1)
        await clock.pass_by(live, 0.6)
        async with calling(live.url, f"?resume_token={token}") as again:
            await again.greeted()
            await again.talk(voice(3), answers=2)
        assert live.count("duologue_frames_total", result="starved") == 0
        assert live.count("duologue_admission_wait_seconds_count") == 1, "it had its slot"


async def test_what_a_client_has_played_tells_how_far_behind_its_ear_is(tiny: Path) -> None:
    name = "duologue_mic_to_speaker_seconds"
    async with serving(tiny) as live, calling(live.url) as caller:
        await caller.greeted()
        await caller.talk(voice(10))
        await caller.send(4, json.dumps({"type": "playback", "played_ms": 400}).encode())
        await until(lambda: live.count(f"{name}_count") == 1)
        assert live.count(f"{name}_sum") == pytest.approx(10 * 0.08 - 0.4)
        await caller.send(4, json.dumps({"type": "playback", "played_ms": 9e9}).encode())
        await caller.talk(voice(2), answers=2)
        assert live.count(f"{name}_count") == 1, "who claims to have heard what was never said is not believed"


async def test_a_frame_is_late_from_when_it_was_due_and_not_from_when_it_was_sent(tiny: Path) -> None:
    """A line that stalled gives its frames all at once; the pace, not the server, makes the last one wait."""
    async with serving(tiny, max_speed=1.0) as live, calling(live.url) as caller:
        await caller.greeted()
        for frame in voice(12):
            await caller.send(1, caller.encode(frame))
        await caller.until(lambda: len(caller.ogg) >= 11)
        within = live.count("duologue_tick_duration_seconds_bucket", stage="total", le="0.08")
        assert live.count("duologue_tick_duration_seconds_count", stage="total") == 11
        assert within < 8, "the caller waited for most of them"
        assert live.count("duologue_frames_total", result="on_time") > within


async def test_a_call_leaves_how_long_it_waited_and_lasted(tiny: Path) -> None:
    waited = "duologue_admission_wait_seconds"
    async with serving(tiny, slots=1) as live:
        async with calling(live.url) as first:
            await first.greeted()
            at_once_s = live.count(f"{waited}_sum")
            await first.talk(voice(5))
            status, text = await live.get("/metrics")
            assert status == 200
            fill = next(line for line in text.splitlines() if line.startswith("duologue_kv_fill_ratio"))
            assert 0 < float(fill.split()[1]) <= 1
            async with calling(live.url) as second:
                await until(lambda: live.count("duologue_sessions_waiting") == 1)
                await asyncio.sleep(0.15)
                await first.hang_up()
                await second.greeted()
        await live.empty()
        assert live.count(f"{waited}_count") == 2
        assert live.count(f"{waited}_sum") - at_once_s >= 0.15, "the second had to wait"
        assert live.count(f"{waited}_bucket", le="0.1") <= 1
        assert live.count("duologue_session_duration_seconds_count") == 2
        steps = live.count("duologue_tick_duration_seconds_count", stage="step")
        assert live.count("duologue_tick_slack_seconds_count") == steps
        _, text = await live.get("/metrics")
        assert "duologue_kv_fill_ratio 0.0" in text


def test_a_cell_counts_as_prometheus_own_histogram_does() -> None:
    """Bounds belong to their own bucket, on both sides of zero, whatever comes."""
    from prometheus_client import CollectorRegistry, Histogram

    bounds = (-0.5, 0.0, 0.1, 0.25, 1.0)
    ours, registry = Cell(bounds), CollectorRegistry()
    theirs = Histogram("theirs", "The reference.", registry=registry, buckets=bounds)
    for value in (-7.0, -0.5, -0.4999, 0.0, 0.1, 0.10001, 0.25, 0.9, 1.0, 1.0001, 1e9):
        ours.observe(value)
        theirs.observe(value)
    for bound, count in ours.cumulative():
        assert registry.get_sample_value("theirs_bucket", {"le": bound}) == count
    assert ours.total == pytest.approx(theirs._sum.get())


def test_nothing_on_the_page_can_name_a_caller() -> None:
    """Every label value there is, is one of ours; only versions and adapters' ids come from elsewhere."""
    for family in Metrics().registry.collect():
        for sample in family.samples:
            for label, value in sample.labels.items():
                assert label == "le" or (value.isascii() and value == value.lower() and len(value) < 20), sample
