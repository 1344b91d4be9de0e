"""A new base model comes while the gate judges what was learned on the old one: all of it real."""

import time
from pathlib import Path
from typing import Any

import pytest

from online_align.__main__ import main
from online_align.pair_store import PairStore
from online_align.release import Evidence, ReleaseSettings, go_on, submit
from online_align.round_plan import Round, RoundFiles, Stage
from online_align.rounds import Rounds
from server.config import ServerConfig
from server.engine.adapters import file_sha256
from server.journal import open_journal
from server.journal.registry import AdapterRegistry, AdapterState, RegistryError
from server.learner import command_of
from tests.align.test_base_swapped import called
from tests.align.test_release import GOOD, says
from tests.align.test_rounds import CALLS, FAST, some
from tests.journal.calls import record
from tests.server.caller import calling, voice
from tests.server.conftest import tiny
from tests.server.live import LiveServer, until
from tests.server.test_base_swap import other, put_in, serving_two

__all__ = ["other", "tiny"]


def changed(config: ServerConfig) -> dict[str, Any]:
    """What is not as it is by itself."""
    plain = ServerConfig()
    return {each: own for each in config.__struct_fields__ if (own := getattr(config, each)) != getattr(plain, each)}


async def heard(live: LiveServer) -> str | None:
    """The adapter of a kept call."""
    async with calling(live.url, "?consent=keep,train") as caller:
        await caller.greeted()
        await caller.talk(voice(4))
        adapter: str | None = caller.session["adapter"]
    await live.empty()
    return adapter


def weights_of(base: Path) -> str:
    return file_sha256(base / "model.safetensors")


async def staged(files: RoundFiles, number: int) -> Round:
    """That round, when the gate judges its adapter: on a random model that takes minutes."""
    await until(lambda: [each.stage for each in files.all()][number - 1 :] == [Stage.STAGED])
    return files.all()[number - 1]


def shown(capsys: pytest.CaptureFixture[str], data: Path, *asked: str) -> str:
    capsys.readouterr()
    assert main(["adapters", *asked, "--data-dir", str(data)]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("evidence", ["gate", "users"])
async def test_what_no_gate_has_judged_is_refused_on_the_new_base_and_the_next_round_comes(
    tiny: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], evidence: Evidence
) -> None:
    config = ServerConfig(
        data_dir=tmp_path, learn=True, evidence=evidence, pairs_per_round=4, round_every_s=0.0, canary_share=1.0
    )
    files = RoundFiles(tmp_path / "learner" / "rounds")
    async with serving_two(tiny, **changed(config)) as live:
        live.server.learner.become(command_of(config, str(tiny)))
        assert await heard(live) is None
        journal = open_journal(tmp_path)
        record(journal, CALLS, 3)
        PairStore(journal).add(some(range(4)))
        registry = AdapterRegistry(journal.engine)
        first = await staged(files, 1)
        assert (registry.get(first.adapter).state, registry.verdicts(first.adapter)) == (AdapterState.STAGED, ())
        assert (await put_in(live, other))[0] == 200
        await until(lambda: files.all()[0].stage is Stage.DONE)
        assert registry.get(first.adapter).state is AdapterState.REJECTED
        assert await heard(live) is None
        PairStore(journal).add(some(range(4, 8)))
        second = await staged(files, 2)
        assert (second.base_sha256, second.parent) == (weights_of(other), "")
        assert registry.get(first.adapter).state is AdapterState.REJECTED
        journal.engine.dispose()
    reason = f"It was learned on {tiny.name}, and the base model that calls are to have now is {other.name}"
    assert reason in files.all()[0].outcome
    assert reason in shown(capsys, tmp_path, "show", first.adapter)


def test_one_that_was_kept_from_the_gate_says_so_and_goes_nowhere(
    tiny: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`once --no-release` on the old base, then rounds with the gate on the new one."""
    journal = open_journal(tmp_path)
    record(journal, CALLS, 3)
    registry = AdapterRegistry(journal.engine)
    release = ReleaseSettings(data_dir=tmp_path, checkpoint=other.name, evidence="gate")
    PairStore(journal).add(some(range(4)))
    assert Rounds(tmp_path, journal, FAST, checkpoint=str(tiny)).once() is not None
    called(journal, {"checkpoint": other.name, "base_sha256": weights_of(other)}, "", {"u": 0}, at=time.time())
    PairStore(journal).add(some(range(4, 8)))
    judged = Rounds(
        tmp_path, journal, FAST, checkpoint=str(other),
        hand_over=lambda row: submit(journal, row.id, release, judge=says(GOOD)).reason,
    ).once()  # fmt: skip
    go_on(journal, release)
    assert judged is not None
    assert {each.id: each.state for each in registry.list()} == {"round-0001": "staged", "round-0002": "live"}
    with pytest.raises(RegistryError, match="without a gate verdict"):
        registry.promote("round-0001", reason="an operator's word")
    said = shown(capsys, tmp_path, "show", "round-0001")
    assert f"it was learned on {tiny.name}, and calls have {other.name} now, so they do not hear it" in said
    assert "no gate has judged it" in said
    assert "of another base model than calls have, not judged" in shown(capsys, tmp_path, "list")
    journal.engine.dispose()
