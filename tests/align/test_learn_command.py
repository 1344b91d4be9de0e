"""`duologue-align run` as a process: rounds by count, a page of metrics, a second one refused, an orderly end."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import safetensors.torch
from safetensors import safe_open

from client.local_server import is_ready
from online_align.judge import JudgeError
from online_align.learn_command import once, parser
from online_align.learning import Learner
from online_align.pair_store import PairStore
from online_align.round_plan import Round, RoundFiles, Stage
from online_align.workers import Workers
from server.journal import open_journal
from tests.align.test_rounds import CALLS, some
from tests.journal.calls import record
from tests.tiny_checkpoint import write_tiny_checkpoint

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def until(holds: Callable[[], object], seconds: float = 150.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_learns_for_as_long_as_it_runs(tmp_path: Path) -> None:
    tiny, data = str(write_tiny_checkpoint(tmp_path / "tiny")), tmp_path / "data"
    journal = open_journal(data)
    record(journal, CALLS, 3)
    store, files = PairStore(journal), RoundFiles(data / "learner" / "rounds")
    where = ["--data-dir", str(data), "--checkpoint", tiny, "--no-collect", "--no-release", "--priority", "normal"]
    flags = ["--pairs-per-round", "3", "--every", "0", "--poll-s", "0.1", "--metrics-port", "0", "--rank", "2"]
    command = [sys.executable, "-m", "online_align", "run", *where]
    log = tmp_path / "log"
    with log.open("w") as out, subprocess.Popen([*command, *flags], stderr=out, stdout=out) as learner:
        try:
            store.add(some(range(2)))
            until(lambda: "metrics on port" in log.read_text())
            refused = subprocess.run(command, capture_output=True, text=True, check=False)
            assert refused.returncode == 1
            assert "a second learner" in refused.stderr
            assert files.all() == [], "two pairs are not enough"
            store.add(some(range(2, 4)))
            until(lambda: files.all() and files.all()[0].stage is Stage.DONE)
            assert len(files.all()[0].pairs) == 4
            (port,) = re.findall(r"metrics on port (\d+)", log.read_text())
            with DIRECT.open(f"http://127.0.0.1:{port}/metrics") as page:
                assert "duologue_learner_pairs_total 4.0" in page.read().decode()
        finally:
            learner.send_signal(signal.SIGTERM)
    assert learner.returncode == 0, log.read_text()[-2000:]
    assert "duologue_learner_rounds_total 1.0" in (data / "learner" / "metrics.prom").read_text()
    journal.engine.dispose()


WAITS_IN_STEP_3 = """
import pathlib, sys, time
from online_align.__main__ import main
from online_align.progress import Progress
said = Progress.step
def step(self, number, figures):
    said(self, number, figures)
    while number == 2 and "--no-release" in sys.argv and not pathlib.Path(sys.argv[1]).exists():
        time.sleep(0.05)
Progress.step = step
sys.exit(main(sys.argv[2:]))
"""
"""`duologue-align`, which is still in its third step when it is told to stop: alone, it is out of it in a moment."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("where", ["training", "the gate"])
def test_told_to_stop_in_the_middle_of_a_round_it_ends_soon_and_the_next_goes_on(tmp_path: Path, where: str) -> None:
    """A real process and SIGTERM. The step that is being made is kept, although only every 1000th is saved."""
    tiny, data, log = str(write_tiny_checkpoint(tmp_path / "tiny")), tmp_path / "data", tmp_path / "log"
    files = RoundFiles(data / "learner" / "rounds")
    kept = {folder: open_journal(folder) for folder in (data, tmp_path / "undisturbed")}
    for journal in kept.values():
        record(journal, CALLS, 3)
        PairStore(journal).add(some(range(24)))
    flags = ["--checkpoint", tiny, "--no-collect", "--priority", "normal", "--batch", "1", "--rank", "2", "--good", "0"]
    flags += ["--save-every", "1000"] + (["--no-release"] if where == "training" else [])
    told = tmp_path / "told"
    command = [sys.executable, "-c", WAITS_IN_STEP_3, str(told), "run"]
    command += ["--pairs-per-round", "24", "--data-dir", str(data), *flags]
    seen = "step 3 of 24" if where == "training" else "round-0001 from the base model"
    with log.open("w") as out, subprocess.Popen(command, stderr=out, stdout=out) as learner:
        until(lambda: seen in log.read_text() or learner.poll() is not None)
        if where == "the gate":
            until(lambda: files.all()[0].stage is Stage.STAGED)
            time.sleep(0.5)
        learner.send_signal(signal.SIGTERM)
        told.touch()
        learner.wait(60)
    said, stage = log.read_text(), {"training": "planned", "the gate": "staged"}[where]
    assert learner.returncode == 0, said[-3000:]
    assert f"told to stop in round 1, which is {stage}; the next learner goes on with it" in said
    assert "Traceback" not in said
    assert [each.stage for each in files.all()] == [stage]
    if where == "training":
        with safe_open(data / "learner" / "pass.safetensors", "pt") as file:
            made = msgspec.json.decode(file.metadata()["standing"])["step"]
        assert made == 3
    # Only the training is compared with one that nobody disturbed: a gate takes minutes.
    release = [] if "--no-release" in flags else ["--no-release"]
    once = [sys.executable, "-m", "online_align", "once", "--json", *flags, *release, "--data-dir"]
    rounds = [
        msgspec.json.decode(
            subprocess.run([*once, str(folder)], capture_output=True, text=True, check=True).stdout, type=Round
        )
        for folder in kept
    ]
    assert [(each.number, each.stage, len(each.pairs)) for each in rounds] == [(1, Stage.DONE, 24)] * 2
    assert rounds[0].sha256 == rounds[1].sha256, "as if nothing had been"
    for journal in kept.values():
        journal.engine.dispose()


@pytest.mark.parametrize("what", ["online_align.export", "online_align.training_state"])
def test_a_full_disk_is_told_and_the_round_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """A real refusal of the system in the middle of a file: none may be larger than a few bytes."""
    tiny, data = str(write_tiny_checkpoint(tmp_path / "tiny")), tmp_path / "data"
    journal = open_journal(data)
    record(journal, CALLS, 3)
    PairStore(journal).add(some(range(2)))
    journal.engine.dispose()

    def save_file(*arguments: Any, **more: Any) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
        try:
            safetensors.torch.save_file(*arguments, **more)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    asked = ["--data-dir", str(data), "--checkpoint", tiny, "--no-collect", "--no-release", "--priority", "normal"]
    with monkeypatch.context() as full:
        full.setattr(f"{what}.save_file", save_file)
        assert once([*asked, "--rank", "2"]) == 1
    said = capsys.readouterr().err
    assert "a data folder that can be written, with room for an adapter" in said
    assert "Traceback" not in said
    assert [path.name for path in data.rglob("*.tmp")] == []
    files = RoundFiles(data / "learner" / "rounds")
    assert [each.stage for each in files.all()] == [Stage.PLANNED]
    assert once([*asked, "--rank", "2"]) == 0
    assert [(each.number, each.stage) for each in files.all()] == [(1, Stage.DONE)]


def test_it_takes_its_place_behind_the_server() -> None:
    """In a process of its own: nice 19, and idle where the system has such a class."""
    program = (
        "import os; from online_align.background import step_back; step_back(1, 'idle');"
        "import torch; print(os.nice(0), os.sched_getscheduler(0) == os.SCHED_IDLE, torch.get_num_threads())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert done.stdout.split() == ["19", "True", "1"]


@pytest.mark.parametrize("name", ["run", "once"])
def test_the_flags_are_these(name: str) -> None:
    flags = {flag for action in parser(name)._actions for flag in action.option_strings}
    both = {
        *("--data-dir", "--journal-url", "--checkpoint", "--device", "--threads", "--priority", "--most-pairs"),
        *(
            "--save-every",
            "--metrics-port",
            "--metrics-host",
            "--metrics-textfile",
            "--no-collect",
            "--no-release",
            "--evidence",
        ),
        *("--checkpointing", "--loss", "--beta", "--learning-rate", "--batch", "--rank", "--anchor", "--replay"),
        *("--judge", "--answers", "--judge-model", "--judge-requests", "--recogniser"),
        *("--good", "--audio-weight", "--context-s", "--positions", "--seed", "-h", "--help"),
    }
    own = {"run": {"--pairs-per-round", "--every", "--poll-s"}, "once": {"--json"}}
    assert flags == both | own[name]


@pytest.mark.parametrize("flag", ["--threads", "--most-pairs", "--save-every", "--pairs-per-round"])
@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_numbers_that_cannot_be_are_refused_before_anything_begins(
    flag: str, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser("run").parse_args([flag, number])
    assert "a whole number from 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--device", "xyz", "cpu, cuda or cuda:NUMBER"),
        ("--metrics-port", "70000", "a port from 1 to 65535"),
        ("--metrics-port", "-1", "a port from 1 to 65535"),
    ],
)
def test_devices_and_ports_that_cannot_be_are_refused_as_flags(
    flag: str, value: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser("run").parse_args([f"{flag}={value}"])
    assert expected in capsys.readouterr().err
    good = parser("once").parse_args(["--device", "cuda:1", "--metrics-port", "0"])
    assert (good.device, good.metrics_port) == ("cuda:1", 0)


def test_once_makes_no_journal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert once(["--data-dir", str(tmp_path / "typo")]) == 1
    assert "typo, where no call was ever kept; expected the data folder of a server" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()


def test_run_waits_for_a_journal_seen_by_who_watches_and_makes_none(tmp_path: Path) -> None:
    """A real process, as where it is started before the server has kept a call."""
    command = [sys.executable, "-m", "online_align", "run", "--data-dir", str(tmp_path / "data"), "--poll-s", "0.1"]
    command += ["--metrics-port", "0"]
    log = tmp_path / "log"
    with log.open("w") as out, subprocess.Popen(command, stderr=out, stdout=out) as learner:
        until(lambda: "waiting for a journal" in log.read_text() or learner.poll() is not None)
        (port,) = re.findall(r"metrics on port (\d+)", log.read_text())
        assert is_ready(f"http://127.0.0.1:{port}/metrics")
        learner.send_signal(signal.SIGTERM)
        assert learner.wait(60) == 0, log.read_text()
    assert not (tmp_path / "data").exists()


class Waits:
    """Rounds of which five pairs wait, and a progress that hears of it."""

    def __init__(self, *, unfinished: bool = False) -> None:
        self.left, self.told = unfinished, 0

    def waiting(self) -> list[str]:
        return ["pair"] * 5

    def unfinished(self) -> str | None:
        return "a round" if self.left else None

    def waits(self, count: int) -> None:
        self.told = count


@pytest.mark.parametrize(
    ("asking", "unfinished", "due"), [(False, False, True), (True, False, False), (True, True, True)]
)
def test_no_round_begins_while_people_are_asked_about_the_last(asking: bool, unfinished: bool, due: bool) -> None:
    """One that was left is gone on with all the same: it is the one that they are asked about."""
    order: list[str] = []

    def collect() -> int:
        order.append("collect")
        return 0

    def review() -> bool:
        order.append("review")
        return asking

    rounds = Waits(unfinished=unfinished)
    learner = Learner(rounds, rounds, Workers(), collect, review)
    assert learner.is_due(5, by_clock=False) is due
    assert learner.is_due(6, by_clock=False) is (due and unfinished)
    assert learner.is_due(6, by_clock=True) is due
    assert rounds.told == 5
    assert order[:2] == ["collect", "review"]


def test_a_judge_that_cannot_judge_stops_neither_rounds_nor_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    looked: list[bool] = []

    def collect() -> int:
        raise JudgeError(got="no answer", expected="one", remedy="look at the endpoint")

    def review() -> bool:
        looked.append(True)
        return False

    rounds = Waits()
    assert Learner(rounds, rounds, Workers(), collect, review).is_due(5, by_clock=False)
    assert looked
    assert "got no answer" in caplog.text
