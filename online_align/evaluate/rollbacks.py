"""How often the release errs: simulated people call for weeks, and the real tests decide after each who comes to count.

Every experiment is a population of its own. People differ in how often they call and in how often they complain; some
of them are drawn for a canary that is no different, or worse; what goes live is watched against the canary's control
group for as many windows as one likes, while nothing changes or complaints multiply. Who counts and when, who is drawn,
and every decision come from the code that serves (`observations`, `canary`, `server.adapter_plan`); only the people are
made up. It knows no journal: `tests/align/test_rollbacks.py` holds it against `watch` on a real one.
"""

import argparse
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Row, note
from online_align.canary import CanarySettings, Decision, Group, read, sequential_interval, variance_from
from online_align.evaluate.intervals import wilson
from online_align.observations import CallCount, Counted, HeardCall, counted_people
from server.adapter_plan import hears_canary

__all__ = [
    "SCENARIOS",
    "Calls",
    "Ended",
    "Scenario",
    "World",
    "add_arguments",
    "experiment",
    "looks_worth_taking",
    "measured_rows",
]

_DAY_S: Final = 86400.0
_LONG_CALL: Final = 2.0
"""Turns of a call beyond its first, on average."""


class World(msgspec.Struct, frozen=True, kw_only=True):
    """A population."""

    people: int
    calls_a_day: float = 0.3
    """Of one of them, on average."""
    unlike: float = 1.0
    """Shape of the gamma distribution of how often people call: the smaller, the more of it is a few people's."""
    steady: bool = True
    """Whether the same people call most in every window; else that is drawn anew."""
    complaints: float = 0.10
    """Share of turns with one, on average."""
    agree: float = 3.0
    """Sum of the beta distribution's parameters of people's own shares: the smaller, the more they differ."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """What happens in a population."""

    world: World
    stage: str = "live"
    """`canary`: until the canary's end; `live`: from its promotion on; `calls`: that without people to tell apart."""
    times: float = 1.0
    """Complaints with the new adapter, times those without."""
    windows: int = 1
    """Times of `CanarySettings.longest_s` that are watched."""
    share: float = 0.3
    """Of people who hear the canary."""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How an experiment ended."""

    decision: Decision
    days: float = 0.0
    users: int = 0
    """People, or calls where each counts for itself, with the new adapter until then."""


class Calls(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal would have."""

    calls: list[HeardCall]
    """In the order of their beginnings."""
    counted: dict[str, CallCount]

    @property
    def shares(self) -> list[float]:
        """Each call for itself, as `observations.Heard.calls`."""
        found = [self.counted[call.session] for call in self.calls]
        return [each.complaints / each.turns for each in found]


class _People:
    """The same people through an experiment, U of them."""

    def __init__(self, world: World, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.names = [f"{seed}-{number}" for number in range(world.people)]
        self._world = world
        self._calls_a_day_U = self._activity()
        share = world.complaints
        self._own_U = self.rng.beta(world.agree * share, world.agree * (1 - share), world.people)

    def call(
        self, who: Iterable[int], *, since_s: float, lasts_s: float, times: float = 1.0, adapter: str = ""
    ) -> Calls:
        """Everything that these people do in a time."""
        made: list[tuple[float, int, CallCount]] = []
        if not self._world.steady:
            self._calls_a_day_U = self._activity()
        for user in who:
            for at in self._times(user, since_s, lasts_s):
                turns = 1 + int(self.rng.poisson(_LONG_CALL))
                complaints = int(self.rng.binomial(turns, min(1.0, times * self._own_U[user])))
                made.append((at, user, CallCount(turns=turns, complaints=complaints)))
        made.sort(key=lambda each: each[:2])
        calls = [
            HeardCall(session=f"{adapter}-{since_s}-{number}", user=self.names[user], started_at=at)
            for number, (at, user, _) in enumerate(made)
        ]
        return Calls(calls=calls, counted={call.session: each[2] for call, each in zip(calls, made, strict=True)})

    def _activity(self) -> NDArray[np.float64]:
        world = self._world
        drawn_U: NDArray[np.float64] = self.rng.gamma(world.unlike, 1 / world.unlike, world.people)
        return world.calls_a_day * drawn_U

    def _times(self, user: int, since_s: float, lasts_s: float) -> list[float]:
        count = self.rng.poisson(self._calls_a_day_U[user] * lasts_s / _DAY_S)
        return [since_s + lasts_s * moment for moment in self.rng.random(count).tolist()]


def experiment(scenario: Scenario, seed: int, settings: CanarySettings | None = None) -> Ended:
    """One population, from the canary's beginning to the end that the scenario asks for."""
    wanted = settings or CanarySettings()
    people = _People(scenario.world, seed)
    everybody = range(scenario.world.people)
    if scenario.stage == "calls":
        before = people.call(everybody, since_s=0, lasts_s=wanted.longest_s).shares
        return _watched(people, Group(shares=tuple(before)), scenario, wanted)
    drawn = {user for user in everybody if hears_canary(people.names[user], f"canary-{seed}", scenario.share)}
    worse = scenario.times if scenario.stage == "canary" else 1.0
    with_ = people.call(drawn, since_s=0, lasts_s=wanted.longest_s, times=worse, adapter="new")
    without = people.call(sorted(set(everybody) - drawn), since_s=0, lasts_s=wanted.longest_s)
    ended, control = _canary(_people(without, wanted), _people(with_, wanted), wanted)
    if scenario.stage == "canary":
        return ended
    return _watched(people, control, scenario, wanted)


def _people(found: Calls, settings: CanarySettings) -> list[Counted]:
    """Those who count within the time that there is for a decision."""
    return counted_people(found.calls, found.counted, settings.longest_s, settings)


def _canary(control: Sequence[Counted], canary: Sequence[Counted], settings: CanarySettings) -> tuple[Ended, Group]:
    """A look after each person that comes to count, as `release.review` has it; and the control group at the end."""
    came = sorted([*((each, False) for each in control), *((each, True) for each in canary)])
    shares_N = np.array([each.share for each, _ in came])
    new_N = np.array([new for _, new in came], bool)
    for look in looks_worth_taking(shares_N, new_N, settings):
        before, new = _groups(shares_N[: look + 1], new_N[: look + 1])
        decision = read(before, new, settings).decision
        if decision is not Decision.WAIT:
            return Ended(decision=decision, days=came[look][0].at / _DAY_S, users=len(new.shares)), before
    before, new = _groups(shares_N, new_N)
    return Ended(decision=Decision.WAIT, users=len(new.shares)), before


def _watched(people: _People, control: Group, scenario: Scenario, settings: CanarySettings) -> Ended:
    """A look after each person, or call, since it went live, as `watch` has it: anew in every window."""
    lasts_s = settings.longest_s
    for window in range(scenario.windows):
        since_s = lasts_s * (1 + window)
        heard = people.call(range(len(people.names)), since_s=since_s, lasts_s=lasts_s, times=scenario.times)
        if scenario.stage == "calls":
            came = [(call.started_at, share) for call, share in zip(heard.calls, heard.shares, strict=True)]
        else:
            counted = counted_people(heard.calls, heard.counted, since_s + lasts_s, settings)
            came = [(each.at, each.share) for each in counted]
        shares_N = np.array([*control.shares, *(share for _, share in came)])
        new_N = np.arange(len(shares_N)) >= len(control.shares)
        for look in looks_worth_taking(shares_N, new_N, settings):
            live = Group(shares=tuple(shares_N[len(control.shares) : look + 1]))
            if read(control, live, settings).decision is Decision.HARM:
                number = len(live.shares)
                return Ended(decision=Decision.HARM, days=(came[number - 1][0] - lasts_s) / _DAY_S, users=number)
    return Ended(decision=Decision.WAIT)


def looks_worth_taking(shares_N: NDArray[np.float64], new_N: NDArray[np.bool_], settings: CanarySettings) -> list[int]:
    """After which of N people, in the order in which they came to count, `read` would not wait: all others are skipped.

    `new_N` says who heard the new adapter. It is `read` for every one of them, in running sums.
    """
    groups = []
    for among_N in (~new_N, new_N):
        users_N = np.cumsum(among_N)
        some_N = np.maximum(users_N, 1)
        mean_N = np.cumsum(np.where(among_N, shares_N, 0.0)) / some_N
        squares_N = np.cumsum(np.where(among_N, shares_N**2, 0.0)) - users_N * mean_N**2
        groups.append((users_N, mean_N, variance_from(np.maximum(squares_N, 0.0), some_N) / some_N))
    (control_N, mean_N, variance_N), (canary_N, new_mean_N, new_variance_N) = groups
    low_N, high_N = sequential_interval(new_mean_N - mean_N, variance_N + new_variance_N, settings)
    enough_N = np.minimum(control_N, canary_N) >= settings.least_users
    return [int(look) for look in np.flatnonzero(enough_N & ((low_N > 0) | (high_N < settings.margin)))]


def _groups(shares_N: NDArray[np.float64], new_N: NDArray[np.bool_]) -> tuple[Group, Group]:
    return Group(shares=tuple(shares_N[~new_N])), Group(shares=tuple(shares_N[new_N]))


_FEW: Final = World(people=30, calls_a_day=5.0, unlike=0.3, steady=False, agree=1.5)
"""Few people, some of whom call all the time, now this one and now that one; and they differ more than most."""

SCENARIOS: Final = {
    **{f"live_same_{n}": Scenario(world=World(people=n)) for n in (50, 100, 300)},
    "live_same_300_half_a_year": Scenario(world=World(people=300), windows=13),
    "live_same_few": Scenario(world=_FEW),
    "live_same_few_by_calls": Scenario(world=_FEW, stage="calls"),
    **{f"live_doubled_{n}": Scenario(world=World(people=n), times=2.0) for n in (50, 100, 300, 1000)},
    "live_doubled_few": Scenario(world=_FEW, times=2.0),
    "live_doubled_20_to_40": Scenario(world=World(people=300, complaints=0.2), times=2.0),
    "live_doubled_5_to_10": Scenario(world=World(people=300, complaints=0.05), times=2.0),
    **{f"canary_same_{n}": Scenario(world=World(people=n), stage="canary") for n in (100, 300, 1000)},
    "canary_same_few": Scenario(world=_FEW, stage="canary"),
    "canary_worse_by_half_1000": Scenario(world=World(people=1000), stage="canary", times=1.5),
    **{f"canary_doubled_{n}": Scenario(world=World(people=n), stage="canary", times=2.0) for n in (100, 300, 1000)},
    **{f"canary_same_{n}_a_tenth": Scenario(world=World(people=n), stage="canary", share=0.1) for n in (300, 1000)},
}
"""By name. Where nothing changed, every rollback is false; where complaints doubled or grew, every promotion is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this suite's own flags."""
    parser.add_argument("--experiments", type=int, default=400, help="of each scenario (default: %(default)s)")
    parser.add_argument("--only", default="", help="scenarios whose names begin so")


def measured_rows(asked: argparse.Namespace) -> list[Row]:
    """Run every scenario."""
    rows = []
    for name, scenario in SCENARIOS.items():
        if name.startswith(asked.only):
            ends = [experiment(scenario, seed) for seed in range(asked.experiments)]
            rows += _rows(name, scenario, ends)
            note(f"{name}: {rows[-1].remark}")
    return rows


def _rows(name: str, scenario: Scenario, ends: Sequence[Ended]) -> list[Row]:
    """Shares of experiments, and how long it took where harm was seen or, in a canary that is no worse, a promotion."""
    same = scenario.times == 1.0
    rows = [_share(f"{name}_harm", ends, Decision.HARM, error=same and scenario.stage != "calls")]
    awaited = Decision.HARM
    if scenario.stage == "canary":
        rows.append(_share(f"{name}_promoted", ends, Decision.PROMOTE, error=not same))
        awaited = Decision.PROMOTE if same else Decision.HARM
    decided = [each for each in ends if each.decision is awaited]
    if decided and not (same and scenario.stage != "canary"):
        users, days = (float(np.median([getattr(each, what) for each in decided])) for what in ("users", "days"))
        rows.append(Row(name=f"{name}_users", value=users, unit="people", remark=f"median until {awaited}"))
        rows.append(Row(name=f"{name}_days", value=round(days, 2), unit="d", remark=f"median until {awaited}"))
    return rows


def _share(name: str, ends: Sequence[Ended], decision: Decision, *, error: bool) -> Row:
    """The share that ended so. Of an error, met says that it is not shown to be above the design's alpha."""
    count, goal = sum(each.decision is decision for each in ends), CanarySettings().alpha
    low, high = wilson(count, len(ends))
    return Row(
        name=name,
        value=round(count / len(ends), 4),
        unit="share",
        goal=goal if error else None,
        met=low <= goal if error else None,
        remark=f"{count} of {len(ends)}, 95 %: {low:.1%} to {high:.1%}",
    )
