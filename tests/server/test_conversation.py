"""A conversation with a bare client: what the protocol promises, and that the words are the engine's own."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sphn

from server.engine import Engine, FrameOutput, SamplingParams
from server.protocol import Consent
from tests.server.caller import Caller, calling, voice
from tests.server.live import serving


async def test_handshake_session_sound_and_text(tiny: Path) -> None:
    async with serving(tiny) as live, calling(live.url, "?text_seed=3") as caller:
        await caller.greeted()
        await caller.talk(voice(20))
        kinds = [kind for kind, _ in caller.messages]
        assert caller.messages[0] == (0, b""), "the handshake is the first message and one byte long"
        assert kinds[1] == 4
        assert set(kinds) <= {0, 1, 2, 4, 6}
        session = caller.session
        assert (session["sample_rate"], session["frame_ms"]) == (24000, 80)
        assert (session["adapter"], session["consent"]) == (None, {"keep": False, "train": False})
        decoder = sphn.OpusStreamReader(24000)
        heard = np.concatenate([decoder.append_bytes(body) for body in caller.ogg])
        assert heard.size == 19 * 1920, "a reply frame is 80 ms, and none waits for the next"
        assert np.sqrt(np.mean(heard**2)) > 0.01, "the model speaks"
        assert caller.words, "and its words are sent"
    assert "<pad>" not in caller.words
    assert "▁" not in caller.words


@pytest.mark.parametrize("rate", [24000, 16000, 48000])
async def test_words_are_those_of_the_engine_alone(tiny: Path, rate: int) -> None:
    """Whatever rate the caller's `OpusHead` stands for, the server hears what Opus decodes at the model's rate."""
    frames = voice(16, rate=rate)
    query = "?text_seed=11&text_temperature=0.9&text_topk=30&audio_temperature=0.5&audio_topk=7&pad_mult=-2"
    query += "&repetition_penalty=1.3&repetition_penalty_context=20&email=ignored&worker_auth_id=ignored"
    async with serving(tiny, slots=1) as live, calling(live.url, query, rate=rate) as caller:
        await caller.greeted()
        stream = [caller.encode(frame) for frame in frames]
        expected = await asyncio.to_thread(_engine_alone, tiny, stream)
        for body in stream:
            await caller.send(1, body)
        await caller.until(lambda: len(caller.words) >= len(expected) and len(caller.ogg) >= 14)
        assert caller.words == expected
        assert expected


def _engine_alone(checkpoint: Path, stream: list[bytes]) -> str:
    engine = Engine.load(checkpoint, slots=1, device="cpu")
    sampling = SamplingParams(
        text_temperature=0.9,
        text_topk=30,
        audio_temperature=0.5,
        audio_topk=7,
        pad_mult=-2.0,
        repetition_penalty=1.3,
        repetition_penalty_context=20,
    )
    engine.open(0, sampling, seed=11)
    decoder = sphn.OpusStreamReader(engine.sample_rate)
    heard = np.concatenate([decoder.append_bytes(body) for body in stream])
    words = ""
    for start in range(0, heard.size - engine.frame_size + 1, engine.frame_size):
        out = engine.step(heard[None, start : start + engine.frame_size], np.ones(1, np.bool_))
        token = int(out.text[0])
        if token >= 4:
            words += engine.text_tokenizer.id_to_piece(token).replace("▁", " ")
    return words


async def test_two_callers_are_served_at_once_each_with_its_own_words(tiny: Path) -> None:
    async with (
        serving(tiny) as live,
        calling(live.url, "?text_seed=1") as first,
        calling(live.url, "?text_seed=2") as second,
    ):
        await asyncio.gather(first.greeted(), second.greeted())
        await asyncio.gather(first.talk(voice(12)), second.talk(voice(12)))
        assert first.words != second.words
        assert first.session["id"] != second.session["id"]
        status, body = await live.get("/api/sessions")
        views = json.loads(body)["sessions"]
        assert status == 200
        assert [view["slot"] for view in views] == [0, 1]
        assert [view["heard_frames"] for view in views] == [12, 12]
        assert [view["sent_frames"] for view in views] == [11, 11]
        assert {view["id"] for view in views} == {first.session["id"], second.session["id"]}


async def test_a_call_needs_nothing_but_sound_and_consent_may_change(tiny: Path) -> None:
    async with serving(tiny) as live, calling(live.url, "?consent=keep,train") as caller:
        await caller.greeted()
        assert caller.session["consent"] == {"keep": True, "train": True}
        await caller.send(4, b'{"type":"consent","keep":true,"train":false,"from_the_future":1}')
        await caller.talk(voice(2))
        assert [call.session.consent for call in live.server.desk._calls] == [Consent(keep=True, train=False)]


async def test_a_client_that_stays_silent_is_kept_alive(tiny: Path) -> None:
    async with serving(tiny, keepalive_s=0.05) as live, calling(live.url) as caller:
        await caller.greeted()
        await caller.until(lambda: caller.messages.count((6, b"")) >= 3)


async def test_at_24_khz_too(tiny_24k: Path) -> None:
    async with serving(tiny_24k, slots=1) as live, calling(live.url) as caller:
        await caller.greeted()
        assert len(await caller.talk(voice(6))) == 5


async def test_the_log_holds_nothing_of_what_was_said(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "server")
    async with serving(tiny) as live, calling(live.url, "?worker_auth_id=secret") as caller:
        await caller.greeted()
        await caller.socket.send("a text frame")
        await caller.talk(voice(12))
        words = [body.decode().strip() for body in caller.bodies(2)]
        identity = caller.session["id"]
    said = [record.getMessage().replace(identity, "") for record in caplog.records if record.name.startswith("server")]
    assert said.pop(0).startswith("this machine holds ")
    assert said == [
        f"ready: {tiny} on cpu, 2 slots",
        "call  has slot 0",
        "call : ignored a message (text_frame)",
        "call  ended: hang_up",
    ]
    assert words


async def test_metrics_follow_a_conversation(tiny: Path) -> None:
    async with serving(tiny) as live:
        async with calling(live.url) as caller:
            await caller.greeted()
            await caller.talk(voice(10))
            assert live.count("duologue_sessions_active") == 1
        await live.empty()
        assert live.count("duologue_sessions_active") == 0
        assert live.count("duologue_sessions_total", end_reason="hang_up") == 1
        answered = sum(live.count("duologue_frames_total", result=result) for result in ("on_time", "late"))
        assert answered == 9
        stages = {
            "ingest": 10,
            "step": 10,
            "encode": 10,
            "temporal": 10,
            "depth": 10,
            "decode": 10,
            "opus_encode": 9,
            "emit": 9,
            "total": 9,
        }
        for stage, count in stages.items():
            assert live.count("duologue_tick_duration_seconds_count", stage=stage) == count
        parts = ("encode", "temporal", "depth", "decode")
        spent = {stage: live.count("duologue_tick_duration_seconds_sum", stage=stage) for stage in (*parts, "step")}
        assert all(seconds > 0 for seconds in spent.values())
        assert sum(spent[part] for part in parts) <= spent["step"]
        status, text = await live.get("/metrics")
        assert status == 200
        assert 'duologue_tick_duration_seconds_bucket{le="0.08",stage="total"}' in text


class HearsDamage(Engine):
    """A real engine to which each frame comes broken."""

    def step(self, pcm: Any, active: Any) -> FrameOutput:
        return super().step(np.full_like(pcm, np.nan), active)


async def test_frames_that_are_no_sound_are_counted(tiny: Path) -> None:
    async with serving(tiny, engine=HearsDamage) as live, calling(live.url) as caller:
        assert live.count("duologue_frames_damaged_total") == 0
        await caller.greeted()
        await caller.talk(voice(4))
        assert live.count("duologue_frames_damaged_total") == 4


def test_a_caller_is_not_ours() -> None:
    """The client of these tests must not lean on the code it tests."""
    source = Path(Caller.__module__.replace(".", "/") + ".py").read_text()
    assert "import server" not in source
    assert "from server" not in source
