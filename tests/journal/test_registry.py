"""The registry: one truth about adapters, whoever moves them, on both databases."""

import secrets
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from server.journal import Journal
from server.journal.adapter_records import BY_SERVER
from server.journal.registry import (
    AdapterRegistry,
    AdapterRow,
    AdapterState,
    RegistryError,
    VerdictRow,
    VerdictStage,
    folder_of,
)
from tests.journal.calls import record

STATES = list(AdapterState)


def row(name: str, **changes: object) -> AdapterRow:
    values = {"id": name, "checkpoint": "mini", "path": f"adapters/{name}", "sha256": "ab" * 32, "made_at": 1.0}
    return AdapterRow(**values | changes)  # type: ignore[arg-type]


def word(name: str, stage: str = "gate", *, passed: bool = True, reason: str = "because") -> VerdictRow:
    return VerdictRow(adapter_id=name, stage=VerdictStage(stage), passed=passed, reason=reason)


@pytest.fixture
def registry(journal: Journal) -> AdapterRegistry:
    return AdapterRegistry(journal.engine)


def bring(registry: AdapterRegistry, name: str, state: str) -> None:
    """Enter one and move it, each step with its verdict."""
    registry.add(row(name))
    if state in ("canary", "live"):
        registry.decide(word(name), "canary", expected="staged")
    if state == "live":
        registry.decide(word(name, "canary"), "live", expected="canary")


def test_the_whole_way(registry: AdapterRegistry) -> None:
    bring(registry, "one", "live")
    bring(registry, "two", "canary")
    live, canary = registry.live(), registry.canary()
    assert (live and live.id, canary and canary.id) == ("one", "two")
    assert registry.decide(word("two", "canary"), "live").state == "live"
    assert registry.get("one").state == "retired"
    assert registry.canary() is None
    assert [(said.stage, said.passed) for said in registry.verdicts("two")] == [("gate", True), ("canary", True)]
    assert {each.id: each.state for each in registry.list()} == {"one": "retired", "two": "live"}


def test_no_verdict_no_promotion(registry: AdapterRegistry) -> None:
    registry.add(row("one"))
    with pytest.raises(RegistryError, match="without a gate verdict"):
        registry.transition("one", "canary")
    with pytest.raises(RegistryError, match="without a gate verdict"):
        registry.promote("one", reason="an operator wants it")
    registry.add_verdict(word("one"))
    registry.add_verdict(word("one", passed=False, reason="it never stops"))
    with pytest.raises(RegistryError, match="whose last gate verdict is: it never stops"):
        registry.transition("one", "canary")
    registry.decide(word("one"), "canary")
    with pytest.raises(RegistryError, match="without a canary verdict"):
        registry.transition("one", "live")
    assert registry.promote("one", reason="an operator heard it").state == "live"
    assert registry.verdicts("one")[-1].reason == "an operator heard it"


def test_what_a_server_cannot_read_goes_live_by_nobodys_word(registry: AdapterRegistry) -> None:
    bring(registry, "good", "live")
    bring(registry, "bad", "canary")
    assert registry.refusal("bad") == ""
    said = VerdictRow(
        adapter_id="bad", stage=VerdictStage.CANARY, passed=False, reason="a server refuses: NaN", figures=BY_SERVER
    )
    registry.add_verdict(said)
    assert registry.refusal("bad") == "a server refuses: NaN"
    with pytest.raises(RegistryError, match="a server refuses: NaN"):
        registry.promote("bad", reason="I want it")
    with pytest.raises(RegistryError, match="a server refuses: NaN"):
        registry.decide(word("bad", "canary"), "live")
    live = registry.live()
    assert live is not None
    assert live.id == "good"
    assert registry.roll_back("bad", reason="broken") == live


def test_a_refused_move_leaves_no_verdict(registry: AdapterRegistry) -> None:
    bring(registry, "one", "canary")
    registry.add(row("two"))
    with pytest.raises(RegistryError, match="one canary at once"):
        registry.decide(word("two"), "canary")
    assert registry.verdicts("two") == ()
    assert registry.get("two").state == "staged"


@pytest.mark.parametrize("start", STATES)
def test_only_moves_that_lead_on(registry: AdapterRegistry, start: AdapterState) -> None:
    allowed = {
        "staged": {"canary", "rejected"},
        "canary": {"live", "rejected", "rolled_back"},
        "live": {"retired", "rolled_back"},
        "retired": {"live"},
        "rejected": set(),
        "rolled_back": set(),
    }
    for state in STATES:
        name = f"{start}-{state}"
        registry.add(row(name))
        for stage in VerdictStage:
            registry.add_verdict(word(name, stage))
        path = {"staged": [], "retired": ["canary", "live", "retired"], "live": ["canary", "live"]}
        steps = path.get(start, [start] if start != "rolled_back" else ["canary", "rolled_back"])
        for step in steps:
            registry.transition(name, step)
        if state in allowed[start]:
            assert registry.transition(name, state, expected=start).state == state
        else:
            with pytest.raises(RegistryError, match=f"from {start} to {state}"):
                registry.transition(name, state)
            assert registry.get(name).state == start
        for left in (registry.canary(), registry.live()):
            if left is not None:
                registry.roll_back(left.id, reason="the next case")
        for gone in registry.list():  # nobody is restored by the next case's rollback
            if gone.state == "retired":
                registry.transition(gone.id, "live")
                registry.transition(gone.id, "rolled_back")


def test_somebody_else_was_faster(registry: AdapterRegistry) -> None:
    bring(registry, "one", "canary")
    with pytest.raises(RegistryError, match="'one' canary; expected it staged"):
        registry.transition("one", "rejected", expected="staged")
    with pytest.raises(RegistryError, match="state 'lively'"):
        registry.transition("one", "lively")


def test_a_rollback_brings_the_last_one_back(registry: AdapterRegistry) -> None:
    for name in ("one", "two", "three"):
        bring(registry, name, "live")
    back = registry.roll_back("three", reason="people complain")
    assert back is not None
    assert back.id == "two"
    assert registry.verdicts("three")[-1].passed is False
    bring(registry, "four", "canary")
    assert registry.roll_back("four", reason="harm") == registry.live() == registry.get("two")
    second = registry.roll_back("two", reason="this one too")
    assert second is not None
    assert second.id == "one"
    assert registry.roll_back("one", reason="and this") is None
    assert registry.live() is None
    with pytest.raises(RegistryError, match="from rolled_back"):
        registry.roll_back("one", reason="again")


def test_an_adapter_may_have_learned_from_more_calls_than_a_statement_takes(registry: AdapterRegistry) -> None:
    registry.add(row("one"), sessions=(f"{number:032x}" for number in range(70_000)))
    assert len(registry.sessions_of("one")) == 70_000


def test_a_deleted_call_withdraws_what_learned_from_it(journal: Journal, registry: AdapterRegistry) -> None:
    record(journal, ["a", "b"], 3)
    registry.add(row("one"), sessions=["a"])
    registry.decide(word("one"), "canary")
    registry.add(row("two"), sessions=["b"])
    assert registry.sessions_of("one") == ("a",)
    journal.removal.session("a")
    assert (registry.get("one").withdrawn, registry.get("two").withdrawn) == (True, False)
    registry.add_verdict(word("one", "canary"))
    with pytest.raises(RegistryError, match="learned from a call that was deleted"):
        registry.transition("one", "live")
    registry.learned_from("two", ["b", "a"])
    assert registry.get("two").withdrawn, "deleted while it was trained"
    assert registry.sessions_of("two") == ("b",)


def test_a_withdrawn_predecessor_stays_away(journal: Journal, registry: AdapterRegistry) -> None:
    record(journal, ["a"], 3)
    for name in ("one", "two", "three"):
        bring(registry, name, "live")
    registry.learned_from("two", ["a"])
    journal.removal.session("a")
    back = registry.roll_back("three", reason="harm")
    assert back is not None
    assert back.id == "one"


def test_entered_twice_is_entered_once(registry: AdapterRegistry) -> None:
    registry.add(row("one"), sessions=["a"])
    registry.decide(word("one"), "canary")
    registry.add(row("one"), sessions=["a", "b"])
    assert registry.get("one").state == "canary"
    assert registry.sessions_of("one") == ("a", "b")
    with pytest.raises(RegistryError, match="other files"):
        registry.add(row("one", sha256="cd" * 32))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "/root", "a/b", "a\\b", "-rf", "a..b", "x" * 65, "nul\0", "ä"]
)
def test_names_that_are_none(registry: AdapterRegistry, name: str) -> None:
    with pytest.raises(RegistryError, match=r"id .*letters, digits"):
        registry.add(row(name))
    assert registry.list() == ()


@pytest.mark.parametrize("path", ["", ".", "/etc", "../other", "adapters/../../up", "C:\\x", "a\\..\\b", "adapters/\0"])
def test_paths_that_lead_out(registry: AdapterRegistry, tmp_path: Path, path: str) -> None:
    bad = row("one", path=path)
    with pytest.raises(RegistryError, match=r"path .*below the data folder"):
        registry.add(bad)
    if "\0" not in path:
        with pytest.raises(RegistryError, match="a folder in the data folder"):
            folder_of(tmp_path, bad)


def test_links_that_lead_out(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "adapters").mkdir(parents=True)
    (data / "adapters" / "one").symlink_to(tmp_path)
    with pytest.raises(RegistryError, match="a folder in the data folder"):
        folder_of(data, row("one"))
    assert folder_of(data, row("two")) == (data / "adapters" / "two").resolve()


def test_unknown_ones(registry: AdapterRegistry) -> None:
    calls: list[Callable[[], object]] = [
        lambda: registry.get("no"),
        lambda: registry.transition("no", "canary"),
        lambda: registry.add_verdict(word("no")),
        lambda: registry.learned_from("no", ["a"]),
        lambda: registry.roll_back("no", reason="why not"),
    ]
    for call in calls:
        with pytest.raises(RegistryError, match="adapter 'no'; expected one that is in the journal"):
            call()
    assert (registry.live(), registry.canary(), registry.list()) == (None, None, ())


def test_many_at_once_and_one_wins(journal: Journal, registry: AdapterRegistry) -> None:
    """Everybody wants to be the canary, then live: nobody sees two, and nobody fails but by being refused."""
    names = [secrets.token_hex(4) for _ in range(6)]
    for name in names:
        registry.add(row(name))
        registry.add_verdict(word(name))
    won: list[str] = []
    broken: list[BaseException] = []

    def want(name: str) -> None:
        try:
            AdapterRegistry(journal.engine).transition(name, "canary", expected="staged")
            won.append(name)
        except RegistryError:
            pass
        except BaseException as problem:  # noqa: BLE001 - shown below
            broken.append(problem)

    threads = [threading.Thread(target=want, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not broken
    assert len(won) == 1
    assert [each.id for each in registry.list() if each.state == "canary"] == won
