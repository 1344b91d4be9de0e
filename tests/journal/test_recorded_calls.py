"""Calls over a real socket: what is kept when the caller permits it, and that nothing is otherwise."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from online_align.replay import Takeover, load, replay
from server.adapter_operator import AdapterOperator
from server.engine.adapters import file_sha256
from server.journal import Journal, open_journal
from tests.server.adapter_files import shop
from tests.server.caller import Caller, calling, voice
from tests.server.live import LiveServer, serving, until
from tests.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


async def consent(caller: Caller, *, keep: bool, train: bool = False) -> None:
    await caller.send(4, json.dumps({"type": "consent", "keep": keep, "train": train}).encode())


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()} if folder.exists() else set()


def opened(folder: Path) -> Journal:
    return open_journal(folder)


async def recorded(live: LiveServer) -> None:
    await until(lambda: live.server.listening._keeping.writer is not None)


async def test_a_caller_who_permits_nothing_leaves_no_trace(tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with serving(tiny, data_dir=data) as live:
        async with calling(live.url) as caller:
            await caller.greeted()
            await caller.talk(voice(30))
            await caller.send(4, b'{"type":"feedback","value":"up"}')
        await live.empty()
        assert not files(data)
    assert not files(data)


async def test_beside_one_who_permits_it_the_other_leaves_no_trace(tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with serving(tiny, data_dir=data) as live:
        async with calling(live.url, "?consent=keep") as kept, calling(live.url) as silent:
            await kept.greeted()
            await silent.greeted()
            await kept.talk(voice(20))
            await silent.talk(voice(20, seed=1))
            ids = kept.session["id"], silent.session["id"]
        await live.empty()
    journal = opened(data)
    assert [row.id for row in journal.reader.sessions()] == [ids[0]]
    assert not any(ids[1].encode() in path.read_bytes() for path in data.rglob("*") if path.is_file())
    journal.engine.dispose()


async def test_a_permitted_call_is_kept_whole_with_its_seed(tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with serving(tiny, data_dir=data) as live:
        async with calling(live.url, "?consent=keep,train&text_seed=5") as caller:
            await caller.greeted()
            said = await caller.talk(voice(40))
            await caller.send(4, b'{"type":"feedback","value":"down","t":1.0}')
            await caller.talk(voice(3))
            await caller.until(lambda: any(note["type"] == "signal" for note in caller.notes))
            name = caller.session["id"]
        await live.empty()
        assert live.count("duologue_signals_total", signal="feedback", role="base") == 1
    journal = opened(data)
    about, columns = journal.reader.session(name), journal.reader.columns(name)
    assert (about.keep, about.train, about.end_reason, about.first_tick) == (True, True, "hang_up", 0)
    assert (about.checkpoint, about.base_sha256) == (tiny.name, file_sha256(load(str(tiny)).lm_path))
    assert columns.ticks_T.tolist() == list(range(len(columns.ticks_T)))
    assert len(columns.ticks_T) >= len(said)
    assert columns.tokens_TK.shape[1] == about.codebooks
    assert columns.tokens_TK.min() >= 0
    assert np.isfinite(columns.logprob_T).all()
    (feedback,) = [signal for signal in journal.reader.signals(name) if signal.kind == "feedback"]
    assert (feedback.value, feedback.t0) == ("down", 1.0)
    assert not list(journal.reader.verify())
    journal.engine.dispose()


async def test_permission_in_the_middle_keeps_what_comes_after_and_taken_back_it_deletes(
    tiny: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    async with serving(tiny, data_dir=data) as live:
        async with calling(live.url) as caller:
            await caller.greeted()
            await caller.talk(voice(10))
            await consent(caller, keep=True)
            await recorded(live)
            await caller.talk(voice(20))
            name = caller.session["id"]
            writer = live.server.listening._keeping.writer
            assert writer is not None
            await until(lambda: writer.figures.durable_frames > 0)
            journal = opened(data)
            assert journal.reader.session(name).first_tick > 0
            await consent(caller, keep=False)
            await until(lambda: name not in journal.keys)
            await caller.talk(voice(5))
        await live.empty()
    assert journal.reader.stats().sessions == 0
    assert journal.reader.stats().deleted == 1
    journal.engine.dispose()


async def test_a_journal_that_cannot_be_opened_is_told_and_the_call_goes_on(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "journal.sqlite").mkdir(parents=True)
    async with serving(tiny, data_dir=tmp_path / "data") as live:
        async with calling(live.url, "?consent=keep") as caller:
            await caller.greeted()
            await caller.talk(voice(10))
            await until(lambda: bool(live.server.listening.problem))
            status, body = await live.get("/readyz")
        assert status == 200
        assert "calls are not recorded" in json.loads(body)["journal"]
        assert live.count("duologue_journal_ok") == 0
        await live.empty()


async def test_who_called_is_kept_as_a_hash(tiny: Path, tmp_path: Path) -> None:
    data, token = tmp_path / "data", "a-token-of-annas-alone"
    async with serving(tiny, data_dir=data, tokens=f"anna:{token}", allow_anonymous=True) as live:
        ids = []
        for headers in ({"Authorization": f"Bearer {token}"}, {}):
            async with calling(live.url, "?consent=keep", additional_headers=headers) as caller:
                await caller.greeted()
                await caller.talk(voice(10))
                ids.append(caller.session["id"])
        await live.empty()
        expected = live.server.secret.user_hash("anna")
    journal = opened(data)
    assert [journal.reader.session(each).user_hash for each in ids] == [expected, ""]
    assert not any(b"anna" in path.read_bytes() for path in data.rglob("*") if path.is_file())
    journal.engine.dispose()


async def test_a_call_knows_its_adapters_and_replays_with_them(tiny: Path, tmp_path: Path) -> None:
    """One was live at the start and is taken back in the middle: the rest is spoken by the base model."""
    data = tmp_path / "data"
    with shop(data, tiny, tmp_path) as store:
        store.live("first", seed=1)
        async with serving(tiny, data_dir=data, admin_token="root-of-all-tests") as live:
            async with calling(live.url, "?consent=keep&text_seed=3") as caller:
                await caller.greeted()
                assert caller.session["adapter"] == "first"
                await caller.talk(voice(20))
                await asyncio.to_thread(AdapterOperator(live.server.adapters).roll_back, "first", reason="test")
                await caller.talk(voice(20, seed=1))
                name = caller.session["id"]
            await live.empty()
    journal = opened(data)
    about, columns = journal.reader.session(name), journal.reader.columns(name)
    assert about.adapter == "first"
    (change,) = journal.reader.adapter_changes(name)
    assert (change.step, change.adapter) == (20, "")
    folder = data / "adapters" / "first"
    checkpoint = load(str(tiny))
    again = replay(checkpoint, about, columns, adapter=folder, takeovers=[Takeover(step=change.step, adapter=None)])
    assert (again.first_difference, len(again.tokens_TK) > 35) == (None, True)
    for other in (replay(checkpoint, about, columns), replay(checkpoint, about, columns, adapter=folder)):
        assert other.first_difference is not None, "the adapters matter"
    journal.engine.dispose()


async def test_a_disk_that_fails_is_told_counted_and_told_to_be_well_again(tiny: Path, tmp_path: Path) -> None:
    broken = True

    def fail(*_: object) -> None:
        if broken:
            raise OperationalError("COMMIT", {}, OSError(5, "Input/output error"))

    async with serving(tiny, data_dir=tmp_path / "data") as live:
        async with calling(live.url, "?consent=keep") as caller:
            await caller.greeted()
            await caller.talk(voice(10))
            await recorded(live)
            writer = live.server.listening._keeping.writer
            assert writer is not None
            await until(lambda: writer.figures.durable_frames > 0)
            event.listen(writer._engine, "commit", fail)
            await caller.talk(voice(10))
            await until(lambda: not live.count("duologue_journal_ok"))
            status, body = await live.get("/readyz")
            assert status == 200, "who calls can still be served"
            trouble = json.loads(body)["journal"]
            assert trouble.startswith("the journal cannot be written: OperationalError")
            assert "Input/output error" in trouble
            broken = False
            await caller.talk(voice(10))
            await until(lambda: bool(live.count("duologue_journal_ok")))
            assert "journal" not in json.loads((await live.get("/readyz"))[1])
        await live.empty()
