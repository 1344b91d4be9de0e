"""The gate: whether an adapter may go to anybody. Files, drift, behaviour, people's calls and pairs, and its cost.

`judge_adapter` runs every check on the model and the compiled engine that would serve, and gives one verdict with all
numbers. It moves nothing and writes nothing: that is `release`.
"""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch

from online_align.gate_checks import (
    DriftLimits,
    HeldoutLimits,
    RecordedLimits,
    check_behaviour,
    check_drift,
    check_heldout,
    check_recorded,
)
from online_align.gate_files import FileLimits, check_files, check_norms, extra_work, layers_of, norms
from online_align.gate_people import PeopleLimits, check_people
from online_align.probes import (
    Agreement,
    Drift,
    Measure,
    Moment,
    Played,
    ProbeKind,
    Sizes,
    agreement,
    behaviour,
    drift,
    margins,
    play,
    play_moments,
    probe_set,
)
from online_align.records import Pair
from online_align.verdicts import Check, Outcome, Verdict, conclude
from server.engine import Engine
from server.engine.adapters import AdapterFile
from server.engine.checkpoint import Checkpoint, load_checkpoint

__all__ = ["GATE", "Gate", "GateSettings", "judge_adapter"]

GATE: Final = "duologue-gate-3"
"""Version of the checks and limits. Whoever changes what they let through changes this."""

_TIMED_ROWS: Final = 8
_TIMED_STEPS: Final = 48


class GateSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits, and how much is played."""

    sizes: Sizes = Sizes()
    slots: int = 32
    files: FileLimits = FileLimits()
    drift: DriftLimits = DriftLimits()
    heldout: HeldoutLimits = HeldoutLimits()
    people: PeopleLimits = PeopleLimits()
    recorded: RecordedLimits = RecordedLimits()
    drift_calls: int = 24
    step_ratio: float = 1.5
    """Most that a step with the adapter may take, over one without."""
    extra_work: float = 0.5
    """Most multiply-adds it may add to a frame, over the language model's own."""
    most_pairs: int = 96
    """Pairs of each sort that are scored, at most."""
    most_moments: int = 16
    """Of each sort, of recorded calls."""
    must_know: tuple[str, ...] = ()
    """Checks that must not be unknown: `heldout_preferences` where there are enough people."""


class Gate:
    """A model to judge adapters on. The base model's part of the work is done once. Not thread-safe."""

    def __init__(self, checkpoint: str | Path = "mini", settings: GateSettings | None = None) -> None:
        self.settings = settings or GateSettings()
        self._checkpoint = load_checkpoint(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
        self._engine = Engine(
            self._checkpoint, slots=self.settings.slots, device=torch.device("cpu"), work="native", max_adapters=1
        )
        self._layers = layers_of(self._checkpoint.lm)
        self._probes = probe_set(self.settings.sizes)
        self._base: list[Played] | None = None

    @property
    def checkpoint(self) -> Checkpoint:
        """The base model."""
        return self._checkpoint

    @property
    def engine(self) -> Engine:
        """The engine the probes run on."""
        return self._engine

    def base(self) -> list[Played]:
        """The probes as the base model has them."""
        if self._base is None:
            self._base = play(self._engine, self._probes.probes)
        return self._base

    def read(self, folder: Path, sha256: str | None = None) -> tuple[Check, AdapterFile | None]:
        """Check an adapter's files and read them; None when they are refused."""
        base = self._engine.base_sha256
        return check_files(folder, self._layers, base_sha256=base, sha256=sha256, limits=self.settings.files)

    def played(self, folder: Path) -> list[Played]:
        """The probes with an adapter. Raises `AdapterError`."""
        number = self._engine.load_adapter(folder)
        try:
            return play(self._engine, self._probes.probes, adapter=number)
        finally:
            self._engine.drop_adapter(number)

    def norms(self, file: AdapterFile | None) -> dict[str, float]:
        """How much each layer changes, beside its weight; see `gate_files.norms`."""
        return norms(self._checkpoint.lm, file)

    def drift(self, first: AdapterFile | None, second: AdapterFile | None) -> Drift:
        """How far two policies are apart on what the base model said where nothing was wrong."""
        plain = (ProbeKind.QUESTION, ProbeKind.NOBODY)
        calls = [each.columns_TK for each in self.base() if each.probe.plain and each.probe.kind in plain]
        spread = np.linspace(0, len(calls) - 1, min(len(calls), self.settings.drift_calls)).round().astype(int)
        silent = (self._engine.text_padding_id, self._engine.end_of_text_padding_id)
        return drift(self._checkpoint.lm, [calls[i] for i in spread], first, second, silent=silent)

    def behaviour(self, folder: Path | None) -> dict[str, Measure]:
        """What the model does in the probes, with the adapter in `folder` or without one."""
        return behaviour(self.base() if folder is None else self.played(folder))

    def judge(
        self,
        folder: Path,
        *,
        sha256: str | None = None,
        heldout: Sequence[Pair] = (),
        trained: Sequence[Pair] = (),
        trained_by: Sequence[str] | None = None,
        recorded: Sequence[Moment] = (),
    ) -> Verdict:
        """Run every check.

        `heldout` are pairs kept for validation, `trained` those it learned from. Where the latter are only some of
        them, `trained_by` has the user's hash of every one. `recorded` are moments of calls that it did not learn from.
        """
        began = time.monotonic()
        files, file = self.read(folder, sha256)
        checks = [files]
        if file is not None:
            checks.append(check_norms(self.norms(file), self.settings.files))
        # What is not whole, or replaces the model, is not run at all.
        if file is not None and all(check.outcome is not Outcome.FAILED for check in checks):
            checks += check_drift(self.drift(None, file), self.settings.drift)
            checks += check_behaviour(self.behaviour(None), self.behaviour(folder))
            checks += self.recorded(folder, recorded)
            checks += self.preferences(file, heldout, trained, trained_by)
            checks += self._cost(folder, file)
        about: dict[str, str | float | None] = {
            "gate": GATE,
            "checkpoint": self._engine.checkpoint,
            "base_sha256": self._engine.base_sha256,
            "probes_sha256": self._probes.sha256,
            "seconds": round(time.monotonic() - began, 1),
        }
        return conclude(checks, must_know=self.settings.must_know, about=about)

    def recorded(self, folder: Path, moments: Sequence[Moment]) -> list[Check]:
        """What both models do where people's calls went wrong, and where they went well. Raises `AdapterError`."""
        base = play_moments(self._checkpoint, moments)
        return check_recorded(base, play_moments(self._checkpoint, moments, adapter=folder), self.settings.recorded)

    def preferences(
        self,
        file: AdapterFile,
        heldout: Sequence[Pair],
        trained: Sequence[Pair],
        trained_by: Sequence[str] | None = None,
    ) -> list[Check]:
        """What people's pairs say: the checks of `judge` that need no call to be played."""
        kept, used = self._some(heldout), self._some(trained)
        everybody = [pair.user_hash for pair in trained] if trained_by is None else trained_by
        kept_margins = margins(self._checkpoint.lm, kept, file)
        used_margins = margins(self._checkpoint.lm, used, file)

        def others(user: str) -> Agreement:
            which = [i for i, pair in enumerate(kept) if pair.user_hash != user]
            return agreement([kept[i] for i in which], [kept_margins[i] for i in which])

        def own(user: str) -> Agreement:
            which = [i for i, pair in enumerate(used) if pair.user_hash == user]
            return agreement([used[i] for i in which], [used_margins[i] for i in which])

        return [
            check_heldout(agreement(kept, kept_margins), self.settings.heldout),
            *check_people(everybody, own, others, self.settings.people),
        ]

    def _some(self, pairs: Sequence[Pair]) -> list[Pair]:
        """As many as are scored, every person's in turn, so that nobody's many pairs crowd others out."""
        turn: dict[str, int] = {}
        order = []
        for pair in sorted(pairs, key=lambda pair: pair.id):
            turn[pair.user_hash] = turn.get(pair.user_hash, 0) + 1
            order.append((turn[pair.user_hash], pair.id, pair))
        return [pair for _, _, pair in sorted(order, key=lambda each: each[:2])[: self.settings.most_pairs]]

    def _cost(self, folder: Path, file: AdapterFile) -> list[Check]:
        ratio, work = self._step_ratio(folder), extra_work(self._layers, file)
        found = (("step_time", ratio, self.settings.step_ratio), ("extra_work", work, self.settings.extra_work))
        checks = []
        for name, value, limit in found:
            failed = not value <= limit
            says = f"{name} is {value:.2f} of the base's (limit {limit:g})"
            checks.append(
                Check(
                    name=name,
                    outcome=Outcome.FAILED if failed else Outcome.PASSED,
                    reason=f"It makes every frame slower: {says}." if failed else f"{says[0].upper()}{says[1:]}.",
                    value=value,
                    limit=f"at most {limit:g}",
                )
            )
        return checks

    def _step_ratio(self, folder: Path) -> float:
        """Median time of a step with the adapter over one without, taken in turns so that a busy machine slows both."""
        engine, rows = self._engine, min(_TIMED_ROWS, self._engine.slots)
        number = engine.load_adapter(folder)
        sound = np.random.default_rng(0).standard_normal((engine.slots, engine.frame_size)).astype(np.float32) * 0.1
        active = np.arange(engine.slots) < rows
        seconds: dict[int | None, list[float]] = {None: [], number: []}
        for slot in range(rows):
            engine.open(slot, seed=slot)
        for step in range(_TIMED_STEPS):
            which = number if step % 2 else None
            for slot in range(rows):
                engine.use_adapter(slot, which)
            began = time.perf_counter()
            engine.step(sound, active)
            seconds[which].append(time.perf_counter() - began)
        for slot in range(rows):
            engine.close(slot)
        engine.drop_adapter(number)
        return statistics.median(seconds[number]) / statistics.median(seconds[None])


def judge_adapter(
    folder: Path,
    *,
    checkpoint: str | Path = "mini",
    sha256: str | None = None,
    heldout: Sequence[Pair] = (),
    trained: Sequence[Pair] = (),
    settings: GateSettings | None = None,
) -> Verdict:
    """Judge one adapter in a gate made for it. Raises `CheckpointError` and `EngineError` for the base model's own."""
    return Gate(checkpoint, settings).judge(folder, sha256=sha256, heldout=heldout, trained=trained)
