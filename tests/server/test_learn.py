"""The learner's process: started when there is something to learn from, again when it ends, ended with the server."""

import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path

import pytest

from online_align.learn_command import _settings, parser
from online_align.settings import LossName
from server.config import EXPECTED, ServerConfig, load_config
from server.learner import Learner, learner_of
from tests.server.caller import calling, voice
from tests.server.live import serving, until

HELLO = """
import os, signal, sys, time
print('hello', os.nice(0), flush=True)
print('half', end='\\r')
print('whole', flush=True)
"""


def program(rest: str) -> list[str]:
    return [sys.executable, "-c", HELLO + rest]


def is_alive(pid: int) -> bool:
    """A process that has ended and was not waited for counts as dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter between opening and reading
        return False


def command_line(pid: int) -> str:
    """As `ps` shows it."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "learner"]


@pytest.fixture(autouse=True)
def _loud(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "learner")


async def ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_it_is_nice_its_words_are_logged_and_it_ends_with_us(caplog: pytest.LogCaptureFixture) -> None:
    learner = Learner(program("time.sleep(600)"), may_start=lambda: True)
    running = asyncio.create_task(learner.run())
    await until(lambda: "whole" in lines(caplog))
    assert any(line.startswith("hello ") and int(line.split()[1]) >= 15 for line in lines(caplog)), lines(caplog)
    pid = learner.pid
    assert pid is not None
    assert is_alive(pid)
    await ended(running)
    assert not is_alive(pid)
    assert learner.pid is None


async def test_one_that_does_not_want_to_end_is_ended(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.learner._LAST_S", 0.2)
    stubborn = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    learner = Learner(program(stubborn), may_start=lambda: True)
    running = asyncio.create_task(learner.run())
    await until(lambda: "deaf" in lines(caplog))
    pid = learner.pid
    assert pid is not None
    await ended(running)
    assert not is_alive(pid)


async def test_it_is_started_again_after_longer_and_longer_pauses(caplog: pytest.LogCaptureFixture) -> None:
    learner = Learner(program("sys.exit(3)"), may_start=lambda: True, pause_s=0.1)
    running = asyncio.create_task(learner.run())
    await until(lambda: sum("ended with code 3" in line for line in lines(caplog)) >= 3)
    await ended(running)
    pauses = [float(line.split(" in ")[1].split()[0]) for line in lines(caplog) if "ended with code 3" in line]
    assert pauses == sorted(pauses)
    assert pauses[2] > pauses[0]


async def test_one_that_is_killed_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    learner = Learner(program("time.sleep(600)"), may_start=lambda: True, pause_s=0.01)
    running = asyncio.create_task(learner.run())
    await until(lambda: lines(caplog).count("whole") == 1)
    assert learner.pid is not None
    os.kill(learner.pid, signal.SIGKILL)
    await until(lambda: lines(caplog).count("whole") == 2)
    await ended(running)


async def test_a_program_that_is_not_there_is_told(caplog: pytest.LogCaptureFixture) -> None:
    running = asyncio.create_task(Learner(["no-such-program"], may_start=lambda: True).run())
    await until(lambda: any("ended with code 127" in line for line in lines(caplog)))
    assert any("no-such-program cannot be run" in line for line in lines(caplog))
    await ended(running)


async def test_with_another_command_the_one_that_runs_ends_and_the_next_begins_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nor does the pause after a failure hold it up. The same command again changes nothing."""
    last_words = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('bye', flush=True))); "
    first = program(f"{last_words}print('first', flush=True); time.sleep(600)")
    learner = Learner(first, may_start=lambda: True, pause_s=300.0)
    running = asyncio.create_task(learner.run())
    await until(lambda: "first" in lines(caplog))
    pid = learner.pid
    learner.become(list(first))
    await asyncio.sleep(0.1)
    assert learner.pid == pid
    learner.become(program("sys.exit(3)"))
    await until(lambda: any("ended with code 3" in line for line in lines(caplog)))
    assert pid is not None
    assert not is_alive(pid)
    assert "bye" in lines(caplog), "what it says at its end is logged"
    learner.become(program("print('third', flush=True); time.sleep(600)"))
    await until(lambda: "third" in lines(caplog))
    await ended(running)
    assert learner.pid is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
async def test_it_does_not_outlive_a_server_that_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    inner = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    outer = (
        "import asyncio, sys; from server.learner import Learner; "
        f"asyncio.run(Learner([sys.executable, '-c', {inner!r}], may_start=lambda: True).run())"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", outer, cwd=Path(__file__).parents[2])
    await until(lambda: note.exists() and note.read_text().strip().isdigit())
    parent.kill()
    await parent.wait()
    await until(lambda: not is_alive(int(note.read_text())))


async def test_the_servers_own_waits_for_a_journal_and_ends_with_it(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The real command of the learner, at a real server."""
    data_dir = tmp_path / "data"
    async with serving(tiny, data_dir=data_dir, learn=True) as live:
        live.server.learner._command = learner_of(ServerConfig(data_dir=data_dir, checkpoint=str(tiny)))._command
        assert not lines(caplog), "it waits for a journal"
        assert not data_dir.exists()
        async with calling(live.url, "?consent=keep,train") as caller:
            await caller.greeted()
            await caller.talk(voice(4))
        await until(lambda: any("started as process" in line for line in lines(caplog)))
        pid = live.server.learner.pid
        assert pid is not None
        assert is_alive(pid)
        async with calling(live.url) as caller:
            await caller.greeted()
            await caller.talk(voice(4))
        assert not any("ended with" in line for line in lines(caplog)), lines(caplog)
    assert not is_alive(pid)


def test_what_it_is_to_judge_by_is_passed_on() -> None:
    """From the server's flags to the learner's, as the learner reads them."""
    flags = ["--learn", "--judge", "rules", "--answers", "a.toml", "--answers", "b.json", "--recogniser", "auto"]
    config = load_config([*flags, "--evidence", "turns"], {"DUOLOGUE_JUDGE_MODEL": "m", "DUOLOGUE_JUDGE_KEY": "k"})
    command = learner_of(config)._command
    asked = parser("run").parse_args(command[command.index("run") + 1 :])
    assert (asked.judge, asked.judge_model, asked.recogniser, asked.evidence) == ("rules", "m", "auto", "turns")
    assert asked.answers == [Path("a.toml"), Path("b.json")]
    plain = learner_of(load_config(["--learn"], {}))._command
    untold = parser("run").parse_args(plain[plain.index("run") + 1 :])
    assert (untold.judge, untold.answers, untold.recogniser, untold.evidence) == ("none", [], "none", "users")
    assert "k" not in command


def test_how_it_is_to_learn_is_passed_on() -> None:
    """From flags, file and environment to the settings that a round is made with."""
    environment = {"DUOLOGUE_BETA": "0.7", "DUOLOGUE_PAIRS_PER_ROUND": "8", "DUOLOGUE_ROUND_EVERY_S": "60"}
    command = learner_of(load_config(["--learn", "--loss", "kto"], environment))._command
    asked = parser("run").parse_args(command[command.index("run") + 1 :])
    settings = _settings(asked)
    assert (settings.loss, settings.beta, asked.pairs_per_round, asked.every) == ("kto", 0.7, 8, 60.0)


def test_left_alone_it_learns_as_it_would_by_itself() -> None:
    command = learner_of(load_config(["--learn"], {}))._command
    passed, alone = (parser("run").parse_args(given) for given in (command[command.index("run") + 1 :], []))
    assert _settings(passed) == _settings(alone)
    assert (passed.pairs_per_round, passed.every) == (alone.pairs_per_round, alone.every)


@pytest.mark.parametrize("loss", LossName.__args__)  # type: ignore[attr-defined]
def test_every_loss_of_the_learner_can_be_chosen(loss: str) -> None:
    assert load_config(["--loss", loss], {}).loss == loss
    assert loss in EXPECTED["loss"]


PASSWORD = "correct-horse"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_journals_password_is_on_no_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is asked what it was started with, and for the journal's URL as `duologue-align run` reads it."""
    url = f"postgresql+psycopg://duologue:{PASSWORD}@127.0.0.1:1/duologue"
    monkeypatch.setenv("DUOLOGUE_ADMIN_TOKEN", PASSWORD)
    config = ServerConfig(data_dir=tmp_path / "d", checkpoint="hf:a/b", journal_url=url)
    learner = learner_of(config)
    note = tmp_path / "note"
    program = (
        "import json, os, pathlib, sys, time; from online_align.learn_command import parser; "
        "asked = parser('run').parse_args(sys.argv[4:]); "
        f"pathlib.Path({str(tmp_path / 'half')!r}).write_text(json.dumps("
        "[asked.journal_url, str(asked.data_dir), asked.checkpoint, 'DUOLOGUE_ADMIN_TOKEN' in os.environ])); "
        f"os.rename({str(tmp_path / 'half')!r}, {str(note)!r}); time.sleep(600)"
    )
    learner._command[1:1] = ["-c", program]
    running = asyncio.create_task(learner.run())
    await until(note.exists)
    assert json.loads(note.read_text()) == [url, str(tmp_path / "d"), "hf:a/b", False]
    assert learner.pid is not None
    started_with = command_line(learner.pid)
    await ended(running)
    assert str(tmp_path / "d") in started_with
    assert PASSWORD not in started_with
