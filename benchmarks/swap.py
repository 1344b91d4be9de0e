"""Do adapter swaps make anybody's answer late? Distinct files made live one after another, under load, over sockets.

The server holds 80 % of the callers that it says this machine can hold. Windows in which adapters are made live one
after another take turns with windows in which nothing is swapped; what swaps cause is the difference. Runs may be short
and add up (`--seconds`, `--into`). A swap is two requests (canary, then live): files are verified, read into the
engine, and calls change to it when nobody speaks (`--swap-live`). At the end of a run the live adapter is taken back a
few times, by HTTP and by the registry alone.
"""

import json
import math
import os
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.report import note, parser, publish
from benchmarks.swap_bursts import Window, find_bursts, step_cost_ratio
from benchmarks.swap_files import stocked
from benchmarks.swap_recorded import read_recordings, recorded_server
from benchmarks.swap_tally import Tally, read_tally, rows_of, write_tally
from benchmarks.trial import answered_and_late, load
from client.load.report import LoadReport
from server.journal.registry import AdapterRegistry

__all__ = ["Operator", "Pace", "Run", "main"]

_SHARE: Final = 0.8
_TOKEN: Final = "an-admin-token-for-measuring"
_PLACES: Final = 6
"""Kept ready. A call keeps its version while it speaks, and each version that is spoken costs a step of its own."""
_RAMP_S: Final = 0.15
_SETTLE_S: Final = 3.0
_LATE_TO_ARRIVE_S: Final = 0.2
"""Frames that a swap made late are counted when they are answered."""
_ROLLBACKS: Final = 2
_ROLLBACK_S: Final = 5.0
"""Of the load, for one of them: calls must speak with what is taken back."""
_LOOK_S: Final = 0.1
_GLANCE_S: Final = 0.005
"""Between looks whether a rollback is done: asking without a rest would load the server."""
_PATIENCE_S: Final = 30.0


class Operator:
    """Whoever makes adapters live, over HTTP."""

    def __init__(self, url: str, registry: AdapterRegistry, names: Sequence[str]) -> None:
        self.make_live_ms: list[float] = []
        self.swapped_at: list[float] = []
        """Monotonic seconds of each swap's beginning."""
        self._url = url.replace("ws://", "http://")
        self._registry = registry
        self._names = iter(names)
        self._direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def window(self, seconds: float, swaps: int) -> Window:
        """Swap so often in so many seconds, at an even pace, and count what came late meanwhile."""
        answered, late = answered_and_late(self._url)
        began = time.monotonic()
        for number in range(swaps):
            time.sleep(max(0.0, began + number * seconds / swaps - time.monotonic()))
            self._make_live(next(self._names))
        time.sleep(max(0.0, began + seconds - time.monotonic()) + _LATE_TO_ARRIVE_S)
        after, later = answered_and_late(self._url)
        spent_s = time.monotonic() - began
        return Window(swaps=swaps, seconds=spent_s, answered=after - answered, late=later - late, began_s=began)

    def page(self, path: str) -> Any:
        """Read a page of the server's."""
        with self._direct.open(self._url + path, timeout=_PATIENCE_S) as response:
            return json.load(response)

    def await_calls(self, callers: int) -> None:
        """Wait until so many are served. Raises `TimeoutError`."""
        began = time.monotonic()
        while len(self.page("/api/sessions")["sessions"]) < callers:
            if time.monotonic() - began > _PATIENCE_S:
                raise TimeoutError(f"not all of {callers} callers are served")
            time.sleep(_LATE_TO_ARRIVE_S)

    def take_back(self, *, by_http: bool) -> float | None:
        """Take the live adapter back while calls speak with it. Seconds until none does, and no new one will.

        None when no call speaks with what is live, so that there is nothing to measure.
        """
        live = self._heard()
        if live is None:
            return None
        began = time.monotonic()
        if by_http:
            self._post(f"/api/adapters/{live}/rollback")
        else:
            self._registry.roll_back(live, reason="measuring")
        while live == self.page("/api/info")["adapter"] or live in self._speaking():
            if time.monotonic() - began > _PATIENCE_S:
                raise TimeoutError(f"{live} is still heard")
            time.sleep(_GLANCE_S)
        return time.monotonic() - began

    def _heard(self) -> str | None:
        """Wait a while for calls to speak with what is live; what was live before is read again after a rollback."""
        began = time.monotonic()
        while (live := self.page("/api/info")["adapter"]) is None or live not in self._speaking():
            if time.monotonic() - began > _ROLLBACK_S:
                return None
            time.sleep(_LATE_TO_ARRIVE_S)
        return str(live)

    def _speaking(self) -> set[str]:
        return {call["adapter"] for call in self.page("/api/sessions")["sessions"]}

    def _make_live(self, name: str) -> None:
        began = time.monotonic()
        self.swapped_at.append(began)
        self._post(f"/api/adapters/{name}/promote")
        told = self._post(f"/api/adapters/{name}/promote")
        while not told["adapter"]["ready"] and not told["adapter"]["problem"]:
            time.sleep(_LOOK_S)  # there is room when the last call with an older one has fallen silent
            told = self.page(f"/api/adapters/{name}")
        self.make_live_ms.append(1000 * (time.monotonic() - began))
        if told["adapter"]["state"] != "live" or not told["adapter"]["ready"]:
            raise RuntimeError(f"{name} is not live: {told}")

    def _post(self, path: str) -> Any:
        request = urllib.request.Request(self._url + path, method="POST", headers={"Authorization": f"Bearer {_TOKEN}"})
        with self._direct.open(request, timeout=_PATIENCE_S) as response:
            return json.load(response)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser("swap", __doc__)
    options.add_argument("--swaps", type=int, default=1000, metavar="N", help="in all runs (default: %(default)s)")
    options.add_argument("--per-second", type=float, default=1.0, metavar="R", help="in a window (%(default)s)")
    options.add_argument("--window-seconds", type=float, default=10.0, metavar="S", help="(default: %(default)s)")
    options.add_argument("--plain-seconds", type=float, metavar="S", help="of windows without (default: as with)")
    options.add_argument("--seconds", type=float, metavar="S", help="end this run's windows after so long")
    options.add_argument("--into", type=Path, metavar="FILE", help="add to what earlier runs left there")
    options.add_argument("--callers", type=int, metavar="N", help="(default: 80 %% of what the server can hold)")
    options.add_argument("--rank", type=int, default=16, metavar="R", help="of the adapters (default: %(default)s)")
    options.add_argument("--places", type=int, default=_PLACES, metavar="N", help="kept ready (default: %(default)s)")
    given = options.parse_args(arguments)
    try:
        tally = read_tally(given.into, rank=given.rank)
    except ValueError as problem:
        options.error(str(problem))
    pace = Pace(
        per_window=max(1, round(given.per_second * given.window_seconds)),
        with_s=given.window_seconds,
        without_s=given.plain_seconds or given.window_seconds,
    )
    pairs = pace.pairs(given.swaps - tally.swaps, given.seconds)
    names = [f"swap-{tally.swaps + number:05}" for number in range(pairs * pace.per_window)]
    with tempfile.TemporaryDirectory() as place:
        data_dir, token = Path(place) / "data", Path(place) / "token"
        token.write_text(_TOKEN)
        os.environ["DUOLOGUE_MAX_ADAPTERS"] = str(given.places)
        flags = ["--swap-live", "--data-dir", str(data_dir), "--admin-token-file", str(token)]
        with (
            stocked(data_dir, given.checkpoint, names, rank=given.rank, first_seed=tally.swaps) as registry,
            recorded_server(given.checkpoint, Path(place), flags) as running,
        ):
            note(f"{len(names)} adapters are written, and the server is ready")
            operator = Operator(running.url, registry, names)
            capacity = operator.page("/api/info")["capacity"]
            callers = given.callers or max(1, int(_SHARE * capacity["measured"]))
            run = Run(operator, running.url, callers, tally, given.into)
            first = len(tally.windows)
            tally.places.append(given.places)
            run.take_turns(pace, pairs, given.seconds)
        look_back(Path(place), operator, tally, first, capacity["step_ms"])
    write_tally(given.into, tally)
    publish("swap", rows_of(tally), as_json=given.json)


def look_back(place: Path, operator: Operator, tally: Tally, first: int, step_ms: dict[str, float]) -> None:
    """Add to the `tally` what server and machine did in a run that is over, whose windows begin with number `first`."""
    recording, watched = read_recordings(place)
    tally.note_machine(watched, first)
    if ratio := step_cost_ratio(recording, step_ms):
        tally.step_cost_ratios.append(ratio)
    bursts = find_bursts(recording, watched, operator.swapped_at, tally.windows[first:])
    for burst in bursts:
        note(burst.sentence())
    tally.bursts += bursts


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How windows with and without swaps take turns."""

    per_window: int
    with_s: float
    without_s: float

    @property
    def pair_s(self) -> float:
        """Of one window each."""
        return self.with_s + self.without_s + 2 * _LATE_TO_ARRIVE_S

    def pairs(self, swaps: int, seconds: float | None) -> int:
        """How many are needed for so many swaps, at most what fits into `seconds`; at least one."""
        needed = max(1, -(-swaps // self.per_window))
        return needed if seconds is None else max(1, min(needed, int(seconds / self.pair_s)))


class Run:
    """One run: its load, its windows, and what it adds to the `tally`, which is kept after every pair of windows."""

    def __init__(self, operator: Operator, url: str, callers: int, tally: Tally, into: Path | None) -> None:
        self._operator = operator
        self._url = url
        self._callers = callers
        self._tally = tally
        self._into = into
        tally.runs += 1
        tally.callers.append(callers)

    def take_turns(self, pace: Pace, pairs: int, at_most_s: float | None = None) -> None:
        """Load the server, let windows take turns, then take adapters back."""
        ramp_s = _RAMP_S * self._callers
        windows_s = min(pairs * pace.pair_s, at_most_s or math.inf)
        lasts_s = ramp_s + 3 * _SETTLE_S + windows_s + 2 * _ROLLBACK_S * _ROLLBACKS
        reports: list[LoadReport] = []
        loading = threading.Thread(
            target=lambda: reports.append(load(self._url, callers=self._callers, seconds=lasts_s, ramp_s=ramp_s))
        )
        loading.start()
        time.sleep(ramp_s)
        self._operator.await_calls(self._callers)
        time.sleep(_SETTLE_S)
        ends_at = time.monotonic() + windows_s
        for pair in range(pairs):
            self._add_pair(pace, swaps_first=pair % 2 == 0)
            note(f"{self._tally.swaps} swaps; {self._tally.sentence()}")
            if time.monotonic() + pace.pair_s > ends_at + _SETTLE_S:
                break
        self._end()
        loading.join()
        if not reports:
            raise RuntimeError("the load could not be held")
        frames = reports[0].frames
        self._tally.frames_lost += frames.dropped + frames.skipped + frames.missing
        self._tally.untrusted_runs += not reports[0].client.trustworthy
        write_tally(self._into, self._tally)

    def _add_pair(self, pace: Pace, *, swaps_first: bool) -> None:
        """First one, then the other begins, so that what grows in time is not put down to either."""
        for with_swaps in (swaps_first, not swaps_first):
            seconds, swaps = (pace.with_s, pace.per_window) if with_swaps else (pace.without_s, 0)
            self._tally.windows.append(self._operator.window(seconds, swaps))
        self._tally.make_live_ms += self._operator.make_live_ms
        self._operator.make_live_ms.clear()
        write_tally(self._into, self._tally)

    def _end(self) -> None:
        page, tally = self._operator.page("/api/adapters"), self._tally
        tally.flip_ms_max = max(tally.flip_ms_max, page["longest_flip_ms"])
        tally.calls_moved += page["calls_moved"]
        for into, by_http in ((tally.rollback_ms, True), (tally.rollback_by_registry_ms, False)):
            for _ in range(_ROLLBACKS):
                if (spent_s := self._operator.take_back(by_http=by_http)) is not None:
                    into.append(1000 * spent_s)


if __name__ == "__main__":
    main()
