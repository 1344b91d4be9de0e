"""Rounds on a real journal: lineage, references kept, deaths at every stage, deletions in between, two learners."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file

from online_align import learn_command
from online_align.__main__ import main
from online_align.figures import Figures
from online_align.learner_lock import LearnerLockedError, only_learner
from online_align.pair_store import PairStore
from online_align.progress import LearnerMetrics, Progress
from online_align.records import Pair, PairKind
from online_align.round_plan import Round, RoundError, RoundFiles, Stage
from online_align.rounds import Rounds
from online_align.settings import LearnerSettings
from server.engine import model_name
from server.journal import Journal, open_journal
from server.journal.registry import AdapterRegistry, AdapterRow, AdapterState, VerdictRow, VerdictStage
from tests.align.preferences import random_pair
from tests.align.test_good_spans import ANSWERED, call
from tests.journal.calls import record
from tests.tiny_checkpoint import write_tiny_checkpoint

FAST = LearnerSettings(batch=4, rank=3, learning_rate=1e-2, positions=128, replay=0.5)
CALLS = tuple(f"call{n}" for n in range(8))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = open_journal(tmp_path)
    record(opened, CALLS, 3)
    yield opened
    opened.engine.dispose()


def some(numbers: range, *, heldout: bool = False) -> list[Pair]:
    kinds = [PairKind.CONTENT, PairKind.CUT_OFF]
    return [
        random_pair(n, kind=kinds[n % 2], event=1, session=CALLS[n % len(CALLS)], made_at=float(n), heldout=heldout)
        for n in numbers
    ]


def rounds_of(journal: Journal, folder: Path, tiny: str, **more: object) -> Rounds:
    return Rounds(folder, journal, FAST, checkpoint=tiny, **more)  # type: ignore[arg-type]


def go_live(journal: Journal, adapter: str) -> None:
    registry = AdapterRegistry(journal.engine)
    for stage, state in ((VerdictStage.GATE, AdapterState.CANARY), (VerdictStage.CANARY, AdapterState.LIVE)):
        registry.decide(VerdictRow(adapter_id=adapter, stage=stage, passed=True, reason="test"), state)


def test_a_round_from_pairs_to_a_staged_adapter(journal: Journal, tmp_path: Path, tiny: str) -> None:
    store = PairStore(journal)
    handed: list[AdapterRow] = []

    def take(row: AdapterRow) -> str:
        handed.append(row)
        return "seen"

    store.add([*some(range(6)), *some(range(90, 93), heldout=True)])
    metrics = LearnerMetrics()
    told = Progress(metrics, textfile=tmp_path / "m.prom", bar=False)
    rounds = rounds_of(journal, tmp_path, tiny, told=told, hand_over=take)
    made = rounds.once()
    assert made is not None
    assert (made.stage, made.adapter, made.outcome, made.parent) == (Stage.DONE, "round-0001", "seen", "")
    registry = AdapterRegistry(journal.engine)
    row = registry.get("round-0001")
    assert row.checkpoint == model_name(tiny), "the server takes no adapter of another name"
    assert (row.state, row.sha256, handed[0].id) == (AdapterState.STAGED, made.sha256, "round-0001")
    assert registry.sessions_of("round-0001") == CALLS[:6]
    manifest = json.loads(row.manifest)
    assert manifest["pairs"] == {"A": 3, "B": 3}
    assert manifest["heldout"]["pairs"] == 3
    assert manifest["divergence"] > 0
    references = [pair.reference for pair in store.read()]
    assert all(each is not None and each.policy == "" and len(each.chosen_T) == 9 for each in references)
    text = {family.name: family for family in text_string_to_metric_families((tmp_path / "m.prom").read_text())}
    assert text["duologue_learner_pairs"].samples[0].value == 6
    assert {"duologue_learner_loss", "duologue_learner_kl_probe", "duologue_learner_step_seconds"} <= set(text)
    assert rounds.waiting() == []
    assert rounds.once() is None, "nothing waits"


def test_the_next_round_goes_on_from_what_is_live(journal: Journal, tmp_path: Path, tiny: str) -> None:
    store, rounds = PairStore(journal), rounds_of(journal, tmp_path, tiny)
    store.add(some(range(4)))
    rounds.once()
    go_live(journal, "round-0001")
    store.add(some(range(4, 8)))
    second = rounds.once()
    assert second is not None
    assert (second.parent, len(second.pairs), len(second.replayed)) == ("round-0001", 4, 2)
    assert set(second.pairs).isdisjoint(RoundFiles(tmp_path / "learner" / "rounds").all()[0].pairs)
    fresh = [pair.reference for pair in store.read() if pair.id in second.pairs]
    assert {each.policy for each in fresh if each} == {"round-0001"}
    assert set(AdapterRegistry(journal.engine).sessions_of("round-0002")) == set(CALLS), "its parent's are its own"


@pytest.mark.parametrize("file", ["lora.safetensors", "config.json"])
def test_a_parent_whose_file_has_changed_is_not_gone_on_from(
    journal: Journal, tmp_path: Path, tiny: str, file: str
) -> None:
    store, rounds = PairStore(journal), rounds_of(journal, tmp_path, tiny)
    store.add(some(range(1)))
    rounds.once()
    go_live(journal, "round-0001")
    store.add(some(range(1, 2)))
    path = tmp_path / "adapters" / "round-0001" / file
    content = path.read_bytes()
    path.write_bytes(
        content[:-1] + b"x" if file == "lora.safetensors" else content.replace(b'scaling": 2.0', b'scaling": 9.0')
    )
    assert path.read_bytes() != content
    with pytest.raises(RoundError, match="as when it was staged"):
        rounds.once()


def test_one_that_learned_from_a_deleted_call_is_no_parent(journal: Journal, tmp_path: Path, tiny: str) -> None:
    store, rounds = PairStore(journal), rounds_of(journal, tmp_path, tiny)
    store.add(some(range(3)))
    rounds.once()
    go_live(journal, "round-0001")
    journal.removal.session(CALLS[0])
    store.add(some(range(3, 6)))
    second = rounds.once()
    assert second is not None
    assert second.parent == ""
    assert "pair-0" not in second.replayed


def test_deleted_while_it_trains_and_nothing_of_it_stays(journal: Journal, tmp_path: Path, tiny: str) -> None:
    PairStore(journal).add(some(range(6)))

    class Deletes(Progress):
        def step(self, step: int, figures: Figures) -> None:
            if journal.reader.sessions(limit=100) and CALLS[2] in {row.id for row in journal.reader.sessions()}:
                journal.removal.session(CALLS[2])

    made = rounds_of(journal, tmp_path, tiny, told=Deletes(LearnerMetrics(), bar=False)).once()
    assert made is not None
    assert (made.adapter, made.begun_again, len(made.pairs)) == ("round-0001-1", 1, 5)
    clean = open_journal(tmp_path / "clean")
    record(clean, CALLS, 3)
    PairStore(clean).add([pair for pair in some(range(6)) if pair.session != CALLS[2]])
    wanted = rounds_of(clean, tmp_path / "clean", tiny).once()
    assert wanted is not None
    parts = [
        load_file(tmp_path / where / "lora.safetensors")
        for where in ("adapters/round-0001-1", "clean/adapters/round-0001")
    ]
    assert all(torch.equal(part, parts[1][name]) for name, part in parts[0].items())


def test_everything_deleted_before_it_began_again(journal: Journal, tmp_path: Path, tiny: str) -> None:
    PairStore(journal).add(some(range(1)))
    rounds = rounds_of(journal, tmp_path, tiny)
    RoundFiles(tmp_path / "learner" / "rounds").write(planned(journal, rounds, tiny))
    journal.removal.session(CALLS[0])
    made = rounds.once()
    assert made is not None
    assert made.stage is Stage.EMPTY
    assert rounds.unfinished() is None


def test_good_spans_are_planned_learned_from_and_in_the_lineage(journal: Journal, tmp_path: Path, tiny: str) -> None:
    call(journal, "good", ANSWERED, checkpoint=model_name(tiny))
    PairStore(journal).add(some(range(3)))
    rounds = rounds_of(journal, tmp_path, tiny)
    made = rounds.once()
    assert made is not None
    assert [span.session for span in made.good] == ["good"]
    assert "good" in AdapterRegistry(journal.engine).sessions_of(made.adapter)
    journal.removal.session("good")
    assert AdapterRegistry(journal.engine).get(made.adapter).withdrawn


def test_a_pair_that_cannot_be_trained_on_stops_nobody(journal: Journal, tmp_path: Path, tiny: str) -> None:
    far = random_pair(7, kind=PairKind.CUT_OFF, event=900, session=CALLS[0])
    PairStore(journal).add([*some(range(3)), far])
    rounds = rounds_of(journal, tmp_path, tiny)
    made = rounds.once()
    assert made is not None
    assert made.trained is not None
    assert (len(made.pairs), made.trained.pairs, made.stage) == (4, 3, Stage.DONE)
    PairStore(journal).add([msgspec.structs.replace(far, id="again")])
    empty = rounds.once()
    assert empty is not None
    assert (empty.stage, empty.outcome) == (Stage.EMPTY, "nothing is left that it could learn from")
    assert rounds.waiting() == []


def planned(journal: Journal, rounds: Rounds, tiny: str) -> Round:
    from server.engine.adapters import file_sha256

    base = file_sha256(Path(tiny) / "model.safetensors")
    return Round(
        number=1, made_at=1.0, parent="", checkpoint=tiny, base_sha256=base, settings=FAST,
        pairs=tuple(rounds.waiting()),
    )  # fmt: skip


class Dead(BaseException):
    """Nobody catches it, as nobody catches a kill."""


DEATHS = ("plan", "step", "export", "stage", "handing over", "done")


@pytest.mark.parametrize("where", DEATHS)
def test_dead_at_any_stage_it_goes_on(
    journal: Journal, tmp_path: Path, tiny: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PairStore(journal)
    store.add(some(range(6)))

    def die(*_: object, **__: object) -> str:
        raise Dead

    with monkeypatch.context() as death:
        hand_over = die if where == "handing over" else lambda row: "judged"
        if where == "step":
            death.setattr(Progress, "step", die)
        elif where == "stage":
            death.setattr(AdapterRegistry, "add", die)
        elif where in ("plan", "export", "done"):
            write = RoundFiles.write
            stage = {"plan": Stage.PLANNED, "export": Stage.EXPORTED, "done": Stage.DONE}[where]

            def dies(self: RoundFiles, current: Round, **changes: object) -> Round:
                if changes.get("stage", current.stage) is stage:
                    raise Dead
                return write(self, current, **changes)

            death.setattr(RoundFiles, "write", dies)
        told = Progress(LearnerMetrics(), bar=False)
        with pytest.raises(Dead):
            rounds_of(journal, tmp_path, tiny, hand_over=hand_over, told=told).once()
    store.add(some(range(6, 7)))
    rounds = rounds_of(journal, tmp_path, tiny, hand_over=lambda row: "judged")
    made = rounds.once()
    assert made is not None
    assert (made.number, made.stage, made.outcome) == (1, Stage.DONE, "judged")
    assert made.trained is not None
    assert made.trained.pairs == len(made.pairs) == (7 if where == "plan" else 6), "each pair once"
    assert len(AdapterRegistry(journal.engine).list()) == 1
    assert rounds.waiting() == ([] if where == "plan" else ["pair-6"])


def test_two_learners(journal: Journal, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny: str) -> None:
    with (
        only_learner(journal.engine, tmp_path),
        pytest.raises(LearnerLockedError, match="a second learner"),
        only_learner(journal.engine, tmp_path),
    ):
        pass
    holder = (
        "import sys, pathlib, sqlalchemy\nfrom online_align.learner_lock import only_learner\n"
        "engine = sqlalchemy.create_engine('sqlite://')\n"
        "with only_learner(engine, pathlib.Path(sys.argv[1])):\n    print('locked', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(LearnerLockedError, match="stop the other one"), only_learner(journal.engine, tmp_path):
            pass
        other.kill()
    with only_learner(journal.engine, tmp_path):
        pass


def test_a_round_of_another_base_model_is_given_up_and_its_pairs_wait(
    journal: Journal, tmp_path: Path, tiny: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a swap of the base: a learner that stopped at it would learn nothing any more."""
    PairStore(journal).add(some(range(2)))
    rounds, files = rounds_of(journal, tmp_path, tiny), RoundFiles(tmp_path / "learner" / "rounds")
    begun = files.write(msgspec.structs.replace(planned(journal, rounds, tiny), base_sha256="0" * 64))
    given_up = rounds.once()
    assert given_up is not None
    assert (given_up.stage, given_up.pairs) == (Stage.EMPTY, ())
    assert "not the base model now; expected weights with SHA-256 0000" in given_up.outcome
    assert "round 1 is given up" in caplog.text
    made = rounds.once()
    assert made is not None
    assert (made.number, made.stage, made.pairs) == (2, Stage.DONE, begun.pairs)


def test_a_damaged_file_of_a_round_is_told(journal: Journal, tmp_path: Path, tiny: str) -> None:
    rounds = rounds_of(journal, tmp_path, tiny)
    (tmp_path / "learner" / "rounds").mkdir(parents=True)
    (tmp_path / "learner" / "rounds" / "0001.json").write_text("{")
    with pytest.raises(RoundError, match=r"0001\.json, which is no round"):
        rounds.waiting()


KILLED_IN_STEP_3 = """
import os, signal, sys
from online_align.__main__ import main
from online_align.progress import Progress
told = Progress.step
def step(self, number, figures):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    told(self, number, figures)
Progress.step = step
main(sys.argv[1:])
"""
"""`duologue-align`, killed when it has made its third step and not yet kept it."""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_command_killed_with_kill_9(journal: Journal, tmp_path: Path, tiny: str) -> None:
    """A real process, killed in the middle of its pass; the next one ends with the weights of an undisturbed one."""
    PairStore(journal).add(some(range(8)))
    where = ["--data-dir", str(tmp_path), "--checkpoint", tiny, "--no-collect", "--no-release", "--priority", "normal"]
    flags = ["--batch", "1", "--rank", "3", "--positions", "128", "--json"]
    command = [sys.executable, "-m", "online_align", "once", *where, *flags]
    victim = subprocess.run([sys.executable, "-c", KILLED_IN_STEP_3, "once", *where, *flags], check=False)
    assert victim.returncode == -signal.SIGKILL
    assert (tmp_path / "learner" / "pass.safetensors").exists()
    assert RoundFiles(tmp_path / "learner" / "rounds").all()[0].stage is Stage.PLANNED
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    made = msgspec.json.decode(done.stdout.splitlines()[-1], type=Round)
    assert made.stage is Stage.DONE
    assert made.trained is not None
    assert made.trained.pairs == 8
    other = open_journal(tmp_path / "other")
    record(other, CALLS, 3)
    PairStore(other).add(some(range(8)))
    wanted = Rounds(tmp_path / "other", other, made.settings, checkpoint=tiny).once()
    assert wanted is not None
    assert wanted.sha256 == made.sha256


def test_the_command_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learn_command, "step_back", lambda *_: None)  # this process must not become the last
    where = ["--data-dir", str(tmp_path), "--checkpoint", tiny, "--no-collect", "--no-release", "--priority", "normal"]
    assert main(["once", *where]) == 1
    assert "where no call was ever kept" in capsys.readouterr().err
    open_journal(tmp_path).engine.dispose()
    assert main(["once", *where]) == 0
    assert "no pair waits" in capsys.readouterr().out
    assert main(["once", *where, "--loss", "best"]) == 1
    assert "got --loss 'best'" in (told := capsys.readouterr().err)
    assert "expected one of dpo, dpo-ln, simpo, apo-zero, ipo, cdpo, kto" in told
    assert main(["once", *where, "--beta", "0"]) == 1
    assert "got --beta '0' (Expected `float` > 0.0); expected strength" in capsys.readouterr().err
