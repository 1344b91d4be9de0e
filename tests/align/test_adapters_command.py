"""`duologue-align adapters` on a real journal: what it prints, what it moves, what it refuses."""

import json
import math
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import insert

import online_align.gate
from online_align.__main__ import main
from online_align.gate import Gate, GateSettings
from online_align.probes import Sizes
from online_align.release import GateJudge, ReleaseSettings, submit
from online_align.verdicts import Check, Outcome, conclude
from server.engine.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, file_sha256
from server.journal import open_journal, schema
from server.journal.adapter_records import BY_SERVER
from server.journal.registry import AdapterRegistry, AdapterRow, VerdictRow, VerdictStage
from tests.align import hacks
from tests.journal.calls import record

GOOD = conclude(
    [Check(name="answered", outcome=Outcome.PASSED, reason="It answers.", value=0.9, base=0.8, limit="0.7")]
)
BAD = conclude([Check(name="answered", outcome=Outcome.FAILED, reason="It is mute.", value=0.0, base=0.8, limit="0.7")])

BESIDE = ("--priority", "normal")
"""The process that tests must not become the last."""


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A journal with one adapter that is canary, one that was refused, and one that waits."""
    journal = open_journal(tmp_path / "data")
    registry = AdapterRegistry(journal.engine)
    for number, (name, verdict) in enumerate((("good", GOOD), ("bad", BAD), ("later", GOOD))):
        sha256, path = f"{number:064x}", f"adapters/{name}"
        registry.add(AdapterRow(id=name, checkpoint="mini", path=path, sha256=sha256, made_at=float(number)))
        submit(journal, name, judge=lambda *_, verdict=verdict: verdict)
    journal.engine.dispose()
    return tmp_path / "data"


def call(data_dir: Path, *arguments: str) -> int:
    return main(["adapters", "--data-dir", str(data_dir), *arguments])


def few_calls(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """The gate that the command will use: it plays fewer calls than even `--quick`."""
    sizes = Sizes(question=4, pause=0, interruption=0, hum=0, nobody=1)
    gate = Gate("mini", GateSettings(sizes=sizes, slots=5, drift_calls=3, step_ratio=math.inf))
    monkeypatch.setattr(online_align.gate, "Gate", lambda *_: gate)
    return gate


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_list(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(data_dir, "list") == 0
    lines = printed(capsys).splitlines()
    assert [line.split()[:2] for line in lines] == [["later", "staged"], ["bad", "rejected"], ["good", "canary"]]
    assert call(data_dir, "list", "--json") == 0
    rows = msgspec.convert(json.loads(printed(capsys))["adapters"], list[AdapterRow])
    assert {row.id: row.state for row in rows} == {"later": "staged", "bad": "rejected", "good": "canary"}


def test_where_the_journal_is_may_be_said_before_or_after_what_is_asked(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for arguments in (["--data-dir", str(data_dir), "list"], ["list", "--data-dir", str(data_dir)]):
        assert main(["adapters", *arguments]) == 0
        said.append(printed(capsys))
    assert said[0] == said[1] != ""
    assert main(["journal", "stats", "--data-dir", str(data_dir)]) == 0


def test_show_says_why(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(data_dir, "show", "bad") == 0
    out = printed(capsys)
    assert "gate: refused. It is mute." in out
    assert "NO answered" in out
    assert call(data_dir, "show", "bad", "--json") == 0
    shown = json.loads(printed(capsys))
    assert shown["verdicts"][0]["verdict"]["checks"][0]["reason"] == "It is mute."


def test_what_somebody_gave_as_a_reason_moves_no_cursor(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor does it look like a verdict of its own, or hide what stands behind it."""
    reason = "fine\x1b[2K\x1b]0;owned\x07\n2026-01-01 00:00:00 UTC gate: passed. \u202egood\x9b31m"
    assert call(data_dir, "promote", "good", "--reason", reason) == 0
    assert call(data_dir, "list") == 0
    assert call(data_dir, "show", "good") == 0
    out = printed(capsys)
    assert all(line.isprintable() for line in out.split("\n")), out
    assert r"it: fine\x1b[2K\x1b]0;owned\x07\n2026-01-01 00:00:00 UTC gate: passed. \u202egood\x9b31m" in out
    assert call(data_dir, "show", "\x1b[31mred") == 1
    said = capsys.readouterr().err
    assert said.rstrip("\n").isprintable(), said


def test_promote_and_roll_back(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(data_dir, "promote", "good", "--reason", "it sounds right") == 0
    assert printed(capsys).startswith("good is live\nno server is known to have read it: none has refused it, ")
    assert call(data_dir, "show", "good") == 0
    assert "An operator promoted it: it sounds right" in printed(capsys)
    assert call(data_dir, "promote", "later") == 0
    assert call(data_dir, "promote", "later") == 0
    assert call(data_dir, "rollback", "later", "--json") == 0
    moved = json.loads(printed(capsys).splitlines()[-1])
    assert (moved["adapter"]["state"], moved["live"]["id"]) == ("rolled_back", "good")
    assert call(data_dir, "rollback", "good") == 0
    assert "live is the base model" in printed(capsys)


def test_what_servers_have_made_of_it_is_told_as_far_as_it_is_known(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server's side of it is `tests/server/test_swap_refused.py`."""

    def told(name: str) -> tuple[str, str, str]:
        assert call(data_dir, "show", name) == 0
        shown = printed(capsys).partition("\n\n")[0].splitlines()[-1]
        assert call(data_dir, "show", name, "--json") == 0
        known = json.loads(printed(capsys))["server"]["known"]
        assert call(data_dir, "list") == 0
        (line,) = [line for line in printed(capsys).splitlines() if line.startswith(name)]
        return known, shown, line.partition("from the base model")[2].strip()

    known, shown, note = told("good")
    assert (known, note) == ("nothing", "not known to be read by a server")
    assert shown.startswith("no server is known to have read it")
    known, shown, note = told("later")
    assert (known, shown, note) == ("nothing", "no server has looked at it: they read what is canary or live", "")
    journal = open_journal(data_dir)
    record(journal, ["a", "b"], 3)
    began = "1970-01-01 00:16:40 UTC"
    with journal.engine.begin() as connection:
        change = {"session_id": "b", "step": 2, "adapter_id": "good"}
        connection.execute(insert(schema.adapter_changes), [change])
    assert told("good") == (
        "read", f"a server has read it: the last kept call with it began {began}", f"last call {began}"
    )  # fmt: skip
    refusal = "a server refuses its files: got NaN"
    AdapterRegistry(journal.engine).add_verdict(
        VerdictRow(adapter_id="good", stage=VerdictStage.CANARY, passed=False, reason=refusal, figures=BY_SERVER)
    )
    assert told("good") == (
        "refused", f"{refusal} (the last kept call with it began {began})", "refused by a server"
    )  # fmt: skip
    with journal.engine.begin() as connection:
        connection.execute(schema.sessions.update().values(checkpoint="another"))
    known, shown, note = told("later")
    assert (known, note) == ("nothing", "of another base model than calls have")
    assert shown == "it was learned on mini, and calls have another now, so they do not hear it"
    assert told("bad")[2] == "", "nobody is to hear it anyway"
    journal.engine.dispose()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("promote", "bad"), "no other state"),
        (("promote", "none"), "one that is in the journal"),
        (("rollback", "bad"), "from rejected to rolled_back"),
        (("show", "../../etc/passwd"), "one that is in the journal"),
        (("diff", *BESIDE, "none", "base"), "one that is in the journal"),
        (("judge", "none"), "one that is in the journal"),
        (("judge", "good"), "which is canary"),
    ],
)
def test_what_it_refuses(
    data_dir: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], why: str
) -> None:
    assert call(data_dir, *arguments) == 1
    assert why in capsys.readouterr().err


def test_no_journal_is_made_by_looking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path / "nothing", "list") == 1
    assert "where no call was ever kept" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()


@pytest.mark.mini
@pytest.mark.parametrize(("key", "value"), [("lora_scaling", 64.0), ("lora_rank", 4)])
def test_a_config_changed_after_it_was_entered_is_refused_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: float
) -> None:
    """The real gate, at the step from staged to canary."""
    folder = hacks.write(tmp_path / "adapters" / "louder", {})
    journal = open_journal(tmp_path)
    sha256 = file_sha256(folder / ADAPTER_WEIGHTS)
    registry = AdapterRegistry(journal.engine)
    registry.add(AdapterRow(id="louder", checkpoint="mini", path="adapters/louder", sha256=sha256))
    config = folder / ADAPTER_CONFIG
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: value}))
    submit(journal, "louder", ReleaseSettings(data_dir=tmp_path), judge=GateJudge())
    assert (registry.canary(), registry.live(), registry.get("louder").state) == (None, None, "rejected")
    journal.engine.dispose()
    assert call(tmp_path, "show", "louder") == 0
    out = printed(capsys)
    assert "gate: refused. Its files are refused: got adapter = 'louder, config.json with SHA-256 " in out
    assert "changed since the weights were written'; expected SHA-256 " in out
    assert call(tmp_path, "promote", "louder") == 1


@pytest.mark.mini
def test_what_no_gate_has_judged_can_be_judged(
    data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `once --no-release` leaves them: a change of no account, and a mute one. The real gate, with fewer calls."""
    gate = few_calls(monkeypatch)
    journal = open_journal(data_dir)
    registry = AdapterRegistry(journal.engine)
    parts = {"small": hacks.small(), "mute": hacks.mute(hacks.Calls(gate, gate.base()))}
    for name, changed in parts.items():
        folder = hacks.write(data_dir / "adapters" / name, changed)
        sha256 = file_sha256(folder / ADAPTER_WEIGHTS)
        registry.add(AdapterRow(id=name, checkpoint="mini", path=f"adapters/{name}", sha256=sha256))
    assert call(data_dir, "show", "small") == 0
    assert "no gate has judged it, and nobody hears what no gate has judged: `adapters judge` " in printed(capsys)
    assert call(data_dir, "judge", "mute", *BESIDE) == 1
    said = printed(capsys).splitlines()
    assert said[0].startswith("gate: refused. ")
    assert [line for line in said if line.startswith("  NO kl ")], said
    assert said[-1] == "mute is rejected"
    assert call(data_dir, "judge", "small", *BESIDE, "--json") == 0
    small = json.loads(printed(capsys))
    assert (small["adapter"]["state"], small["verdict"]["passed"]) == ("staged", True), "`good` is canary until it ends"
    assert call(data_dir, "rollback", "good") == 0
    assert call(data_dir, "judge", "small", *BESIDE, "--evidence", "gate") == 0
    assert printed(capsys).splitlines()[-1] == "small is live"
    assert len([row for row in registry.verdicts("small") if row.stage is VerdictStage.GATE]) == 1, "judged once"
    journal.engine.dispose()
    assert call(data_dir, "judge", "small", *BESIDE) == 1
    assert "got adapter 'small', which is live; expected one that is staged" in capsys.readouterr().err


def test_what_calls_cannot_have_is_judged_only_for_the_model_that_is_to_serve(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an adapter of the base model before is not let through by naming no model."""
    journal = open_journal(data_dir)
    record(journal, ["a"], 3)
    registry = AdapterRegistry(journal.engine)
    registry.add(AdapterRow(id="old", checkpoint="before", path="adapters/old", sha256="ab" * 32))
    assert call(data_dir, "judge", "old", *BESIDE) == 1
    said = capsys.readouterr().err
    assert "got adapter 'old', which was learned on before, while calls have mini; expected one that calls can" in said
    assert "name with --checkpoint the model that is to serve" in said
    assert (registry.get("old").state, registry.verdicts("old")) == ("staged", ())
    journal.engine.dispose()


@pytest.mark.mini
def test_diff(data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A mute adapter against the base model, with fewer calls than even `--quick` plays."""
    gate = few_calls(monkeypatch)
    folder = hacks.write(data_dir / "adapters" / "mute", hacks.mute(hacks.Calls(gate, gate.base())))
    journal = open_journal(data_dir)
    sha256 = file_sha256(folder / ADAPTER_WEIGHTS)
    AdapterRegistry(journal.engine).add(
        AdapterRow(id="mute", checkpoint="mini", path="adapters/mute", sha256=sha256, made_at=9.0)
    )
    journal.engine.dispose()
    assert call(data_dir, "diff", *BESIDE, "base", "mute", "--json") == 0
    found = json.loads(printed(capsys))["difference"]
    assert found["drift"]["kl"] > 0.1
    assert (found["first"]["answered"]["value"], found["second"]["answered"]["value"]) == (1.0, 0.0)
    assert found["norms"]["text_linear"][0] == 0.0
    assert found["norms"]["text_linear"][1] > 0.01
    assert call(data_dir, "diff", *BESIDE, "mute", "mute") == 0
    assert "KL of mute from mute: 0 nats" in printed(capsys).replace("-0 ", "0 ")
    content = bytearray((folder / ADAPTER_WEIGHTS).read_bytes())
    content[-2] ^= 0x01
    (folder / ADAPTER_WEIGHTS).write_bytes(content)
    assert call(data_dir, "diff", *BESIDE, "base", "mute") == 1
    assert f"expected SHA-256 {sha256}" in capsys.readouterr().err, "what is compared is what was staged"
