"""An adapter's way to people: judged by the gate, heard by some as the canary, then by all, or taken back.

Every step is one transaction that appends the verdict and moves the state (`server.journal.registry`), and every step
may be asked for again: whoever dies in between leaves an adapter that is still where it was, with nothing half done.
The server follows the registry; nothing here speaks to it.
"""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from online_align.bases import base_of, newest_base
from online_align.canary import CanarySettings, Decision, read
from online_align.observations import CallCounter, Observed, count_call, observe
from online_align.verdicts import Check, Outcome, Verdict, conclude
from server.journal import Journal
from server.journal.registry import (
    AdapterRegistry,
    AdapterRow,
    AdapterState,
    RegistryError,
    VerdictRow,
    VerdictStage,
    folder_of,
)

if TYPE_CHECKING:
    from online_align.gate import Gate, GateSettings

__all__ = ["Evidence", "GateJudge", "Judge", "ReleaseSettings", "go_on", "review", "roll_back", "submit", "verdict_of"]

Evidence = Literal["users", "turns", "gate"]

_TIMES: Final = 4
"""So many times the pairs that are scored are read, for everybody's turn to come."""
_WITHDRAWN: Final = "It learned from a call that has been deleted since."
_OTHER_BASE: Final = (
    "It was learned on {own}, and calls have {instead} now: nobody can hear it, so nobody can judge it."
)
_JUDGED_ON: Final = (
    "It was learned on {own}, and the base model that calls are to have now is {instead}: nobody could hear it. "
    "What it learned goes to nobody."
)
_NO_CANARY: Final = "Nobody is asked here: the gate's verdict is all the evidence there is."


class ReleaseSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be known before an adapter goes on."""

    data_dir: Path = Path("data")
    """Where the adapters' folders are."""
    checkpoint: str = ""
    """Name of the base model that serves, as far as is known; empty where it is not."""
    evidence: Evidence = "users"
    """What ends a canary: a test over people; on a machine with nobody to draw from, a number of turns; or nothing
    beyond the gate."""
    canary: CanarySettings = CanarySettings()
    turns: int = 20
    """With "turns": so many with the canary,"""
    turns_margin: float = 0.10
    """and at most so much more complaints among them than without it."""
    turns_share: float = 0.10
    """What "without it" is taken for where there were fewer turns than that."""


Judge = Callable[[Journal, AdapterRow, Path], Verdict]
"""Judges an adapter whose files are in a folder, and changes nothing."""


class GateJudge:
    """The gate, with the journal's pairs and calls. The model is loaded when it is first needed, and kept."""

    def __init__(self, checkpoint: str | Path = "mini", settings: "GateSettings | None" = None) -> None:
        self._checkpoint = checkpoint
        self._settings = settings
        self._gate: Gate | None = None

    @property
    def gate(self) -> "Gate":
        """The gate itself. Raises `CheckpointError` and `EngineError`."""
        from online_align.gate import Gate  # noqa: PLC0415 - loads torch, which moving a state never needs

        self._gate = self._gate or Gate(self._checkpoint, self._settings)
        return self._gate

    def __call__(self, journal: Journal, row: AdapterRow, folder: Path) -> Verdict:
        """Judge. Raises as `gate` does, and `JournalError`."""
        from online_align.pair_store import PairStore  # noqa: PLC0415
        from online_align.recorded import find_moments  # noqa: PLC0415
        from server.engine import model_name  # noqa: PLC0415

        gate, store = self.gate, PairStore(journal)
        if (own := base_of(row)).sha256 not in ("", gate.engine.base_sha256):
            reason = _JUDGED_ON.format(own=own.checkpoint, instead=model_name(gate.checkpoint.name))
            return conclude([Check(name="base", outcome=Outcome.FAILED, reason=reason)])
        most = gate.settings.most_pairs
        sessions = set(AdapterRegistry(journal.engine).sessions_of(row.id))
        used = [pair for pair in store.summaries(heldout=False) if pair.session in sessions]
        users = Counter(pair.user_hash for pair in used)
        heavy = {user for user, count in users.items() if count > gate.settings.people.looked_at * len(used)}
        theirs = [pair for pair in used if pair.user_hash in heavy]
        return gate.judge(
            folder,
            sha256=row.sha256,
            heldout=store.read(heldout=True, limit=_TIMES * most),
            trained=[store.get(pair.id) for pair in theirs[: _TIMES * most]],
            trained_by=[pair.user_hash for pair in used],
            recorded=find_moments(journal, gate.checkpoint, learned=sessions, most=gate.settings.most_moments),
        )


def submit(
    journal: Journal, adapter_id: str, settings: ReleaseSettings | None = None, *, judge: Judge | None = None
) -> Verdict:
    """Judge a staged adapter and let it become the canary, or reject it. Returns the gate's verdict.

    Asked again, it goes on where it was: an adapter that has a verdict is not judged twice, and where another process
    was quicker, that one's verdict counts. While another is the canary
    it keeps its verdict and stays staged. With evidence "gate" it goes live. Raises `RegistryError` when there is no
    such adapter, and the errors of whoever cannot judge: then it stays staged.
    """
    wanted = settings or ReleaseSettings()
    registry = AdapterRegistry(journal.engine)
    row = registry.get(adapter_id)
    verdict = _last_verdict(registry, adapter_id)
    if row.state is AdapterState.STAGED:
        if verdict is None:
            found = _judged(journal, row, wanted, judge or GateJudge())
            verdict = _last_verdict(registry, adapter_id)
            if verdict is None:
                verdict = found
                registry.add_verdict(verdict.row(adapter_id, VerdictStage.GATE))
        if registry.get(adapter_id).state is AdapterState.STAGED:
            _move_on(journal, row, verdict, wanted)
        verdict = _last_verdict(registry, adapter_id)
    if verdict is None:
        raise RegistryError(
            got=f"adapter {adapter_id!r}, {row.state} without a gate's verdict",
            expected="one that is staged",
            remedy="stage a new one",
        )
    goes_live = wanted.evidence == "gate" and _may_be_heard(journal, row, wanted)
    if goes_live and registry.get(adapter_id).state is AdapterState.CANARY:
        registry.decide(_word(adapter_id, passed=True, reason=_NO_CANARY), AdapterState.LIVE)
    return verdict


def review(
    journal: Journal,
    settings: ReleaseSettings | None = None,
    *,
    now: float | None = None,
    count: CallCounter = count_call,
) -> AdapterRow | None:
    """Look at the canary, as often as one likes; promote it, take it back, or wait. Returns its row; None for none."""
    wanted = settings or ReleaseSettings()
    registry = AdapterRegistry(journal.engine)
    row, live = registry.canary(), registry.live()
    if row is None:
        return None
    at, base = time.time() if now is None else now, base_of(row)
    found = observe(
        journal,
        canary=row.id,
        control=live.id if live is not None and base_of(live).is_same(base) else "",
        base=base,
        since=row.changed_at,
        now=at,
        settings=wanted.canary,
        count=count,
    )
    state, reason = _outcome(journal, row, found, wanted, at)
    if state is None:
        return row
    word = _word(row.id, passed=state is AdapterState.LIVE, reason=reason, found=found)
    return registry.decide(word, state, expected=AdapterState.CANARY)


def go_on(journal: Journal, settings: ReleaseSettings | None = None) -> AdapterRow | None:
    """Where nobody is canary, let the oldest that passed the gate and had to wait take its turn. Returns the canary."""
    registry = AdapterRegistry(journal.engine)
    staged = [row for row in reversed(registry.list()) if row.state is AdapterState.STAGED]
    for row in staged:
        if registry.canary() is not None:
            break
        if _last_verdict(registry, row.id) is not None:
            submit(journal, row.id, settings)
    return registry.canary()


def roll_back(journal: Journal, adapter_id: str, *, reason: str) -> AdapterRow | None:
    """Take a canary or live adapter back; what was live before it is live again. Raises `RegistryError`."""
    return AdapterRegistry(journal.engine).roll_back(adapter_id, reason=reason)


def verdict_of(row: VerdictRow) -> Verdict:
    """What the journal keeps, as a verdict again; one without checks when it was somebody's word."""
    figures = msgspec.json.decode(row.figures)
    about, checks = figures.get("about", {}), figures.get("checks", [])
    return Verdict(passed=row.passed, reason=row.reason, checks=msgspec.convert(checks, tuple[Check, ...]), about=about)


def _judged(journal: Journal, row: AdapterRow, settings: ReleaseSettings, judge: Judge) -> Verdict:
    try:
        folder = folder_of(settings.data_dir, row)
    except RegistryError as problem:
        refused = Check(name="files", outcome=Outcome.FAILED, reason=f"Its files are refused: {problem}.")
        return conclude([refused])
    return judge(journal, row, folder)


def _move_on(journal: Journal, row: AdapterRow, verdict: Verdict, settings: ReleaseSettings) -> None:
    registry, staged = AdapterRegistry(journal.engine), AdapterState.STAGED
    if registry.get(row.id).withdrawn:
        refused = conclude([Check(name="withdrawn", outcome=Outcome.FAILED, reason=_WITHDRAWN)])
        registry.decide(refused.row(row.id, VerdictStage.GATE), AdapterState.REJECTED, expected=staged)
    elif not verdict.passed:
        registry.transition(row.id, AdapterState.REJECTED, expected=staged)
    elif registry.canary() is None and _may_be_heard(journal, row, settings):
        registry.transition(row.id, AdapterState.CANARY, expected=staged)


def _last_verdict(registry: AdapterRegistry, adapter_id: str) -> Verdict | None:
    said = [row for row in registry.verdicts(adapter_id) if row.stage is VerdictStage.GATE]
    return verdict_of(said[-1]) if said else None


def _speaks_instead(journal: Journal, row: AdapterRow, settings: ReleaseSettings) -> str:
    """The base model that calls have instead of the one that an adapter was learned on; empty where they may have that.

    Both are asked, the learner's flag and the newest call: a flag may be wrong, or the weights have another name, and
    nobody need have called since another base was put in.
    """
    own, newest = base_of(row), newest_base(journal)
    known = settings.checkpoint and settings.checkpoint != own.checkpoint
    return newest.checkpoint if known and newest is not None and not newest.is_same(own) else ""


def _may_be_heard(journal: Journal, row: AdapterRow, settings: ReleaseSettings) -> bool:
    """Whether calls have, or are to have, the base model that an adapter was learned on. In doubt not: it can wait.

    Where the flag names another, the newest call may be from before a swap: it must have come with that name.
    """
    own, newest = base_of(row), newest_base(journal)
    if settings.checkpoint in ("", own.checkpoint):
        return True
    return newest is not None and newest.checkpoint == settings.checkpoint and newest.is_same(own)


def _outcome(
    journal: Journal, row: AdapterRow, found: Observed, settings: ReleaseSettings, at: float
) -> tuple[AdapterState | None, str]:
    """What the canary becomes, and why; None while it is to go on."""
    if row.withdrawn:
        return AdapterState.ROLLED_BACK, _WITHDRAWN
    if refusal := AdapterRegistry(journal.engine).refusal(row.id):
        return AdapterState.ROLLED_BACK, refusal
    if instead := _speaks_instead(journal, row, settings):
        return AdapterState.REJECTED, _OTHER_BASE.format(own=row.checkpoint, instead=instead)
    decision, reason = _decision(found, settings)
    if decision is Decision.PROMOTE and not _may_be_heard(journal, row, settings):
        decision = Decision.WAIT
    if decision is Decision.WAIT and at - row.changed_at > settings.canary.longest_s:
        days = settings.canary.longest_s / 86400
        return AdapterState.REJECTED, f"No decision in {days:g} days, so no promotion. {reason}"
    ends = {Decision.PROMOTE: AdapterState.LIVE, Decision.HARM: AdapterState.ROLLED_BACK}
    return ends.get(decision), reason


def _decision(found: Observed, settings: ReleaseSettings) -> tuple[Decision, str]:
    if settings.evidence == "gate":
        return Decision.PROMOTE, _NO_CANARY
    if settings.evidence == "users":
        reading = read(found.control, found.canary, settings.canary)
        return reading.decision, reading.sentence
    if found.canary_turns < settings.turns:
        return Decision.WAIT, f"{found.canary_turns} of {settings.turns} turns have been heard with it."
    share = found.canary_complaints / found.canary_turns
    enough = found.control_turns >= settings.turns
    before = found.control_complaints / found.control_turns if enough else settings.turns_share
    reason = (
        f"{share:.0%} of {found.canary_turns} turns brought a complaint with it and {before:.0%} without "
        f"({'counted' if enough else 'assumed'}; whose turns they were is not known, so this is weak evidence)."
    )
    return (Decision.PROMOTE if share <= before + settings.turns_margin else Decision.HARM), reason


def _word(adapter_id: str, *, passed: bool, reason: str, found: Observed | None = None) -> VerdictRow:
    figures = msgspec.json.encode({"about": {"by": "release"}, "observed": found}).decode()
    return VerdictRow(adapter_id=adapter_id, stage=VerdictStage.CANARY, passed=passed, reason=reason, figures=figures)
