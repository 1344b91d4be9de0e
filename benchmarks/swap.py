"""Do adapter swaps make anybody's answer late? Distinct files made live one after another, under load, over sockets.

The server holds 80 % of the callers that it says this machine can hold. Windows in which an adapter is made live
several times a second take turns with windows of the same length in which nothing is swapped; what swaps cause is the
difference. A swap is two requests (canary, then live): files are verified, read into the engine, and calls change to
it when nobody speaks (`--swap-live`). Afterwards the live adapter is taken back a few times, by HTTP and by the
registry alone.
"""

import json
import os
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.report import Row, compare, note, parser, publish
from benchmarks.servers import our_server
from benchmarks.swap_files import stocked
from benchmarks.trial import load
from client.load.report import LoadReport
from client.load.server_metrics import metrics_url, read_metrics
from server.journal.registry import AdapterRegistry

__all__ = ["Operator", "Window", "main", "take_turns"]

_SHARE: Final = 0.8
_TOKEN: Final = "an-admin-token-for-measuring"
_MOST_CALLERS: Final = 64
_PLACES: Final = 6
"""Kept ready. A call keeps its version while it speaks, and each version that is spoken costs a step of its own."""
_RAMP_S: Final = 0.15
_SETTLE_S: Final = 3.0
_LATE_TO_ARRIVE_S: Final = 0.2
"""Frames that a swap made late are counted when they are answered."""
_ROLLBACKS: Final = 3
_ROLLBACK_S: Final = 5.0
"""Of the load, for one by HTTP and one by the registry."""
_LOOK_S: Final = 0.1
_PATIENCE_S: Final = 30.0
_GOAL_ROLLBACK_MS: Final = 1000.0


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time, with or without swaps, by the server's own clock."""

    swaps: int
    seconds: float
    answered: int
    late: int


class Operator:
    """Whoever makes adapters live, over HTTP."""

    def __init__(self, url: str, registry: AdapterRegistry, names: Sequence[str]) -> None:
        self.make_live_ms: list[float] = []
        self._url = url.replace("ws://", "http://")
        self._metrics = metrics_url(url)
        self._registry = registry
        self._names = iter(names)
        self._direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def window(self, seconds: float, swaps: int) -> Window:
        """Swap so often in so many seconds, at an even pace, and count what came late meanwhile."""
        answered, late = self._counts()
        began = time.monotonic()
        for number in range(swaps):
            time.sleep(max(0.0, began + number * seconds / swaps - time.monotonic()))
            self._make_live(next(self._names))
        time.sleep(max(0.0, began + seconds - time.monotonic()) + _LATE_TO_ARRIVE_S)
        after, later = self._counts()
        spent_s = time.monotonic() - began
        return Window(swaps=swaps, seconds=spent_s, answered=after - answered, late=later - late)

    def page(self, path: str) -> Any:
        """Read a page of the server's."""
        with self._direct.open(self._url + path, timeout=_PATIENCE_S) as response:
            return json.load(response)

    def take_back(self, *, by_http: bool) -> float:
        """Take the live adapter back while calls speak with it. Seconds until none does, and no new one will."""
        live = self._heard()
        began = time.monotonic()
        if by_http:
            self._post(f"/api/adapters/{live}/rollback")
        else:
            self._registry.roll_back(live, reason="measuring")
        while live == self.page("/api/info")["adapter"] or live in self._speaking():
            if time.monotonic() - began > _PATIENCE_S:
                raise TimeoutError(f"{live} is still heard")
        return time.monotonic() - began

    def _heard(self) -> str:
        """Wait for calls to speak with what is live; what was live before is read again after a rollback."""
        began = time.monotonic()
        while (live := self.page("/api/info")["adapter"]) is None or live not in self._speaking():
            if time.monotonic() - began > _PATIENCE_S:
                raise TimeoutError(f"no call speaks with {live}")
            time.sleep(_LATE_TO_ARRIVE_S)
        return str(live)

    def _speaking(self) -> set[str]:
        return {call["adapter"] for call in self.page("/api/sessions")["sessions"]}

    def _make_live(self, name: str) -> None:
        began = time.monotonic()
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

    def _counts(self) -> tuple[int, int]:
        scrape = read_metrics(self._metrics)
        if scrape is None:
            raise RuntimeError("the server shows no metrics")
        late = scrape.frames.get("late", 0.0)
        return int(late + scrape.frames.get("on_time", 0.0)), int(late)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser("swap", __doc__)
    options.add_argument("--swaps", type=int, default=1000, metavar="N", help="(default: %(default)s)")
    options.add_argument("--per-second", type=float, default=1.0, metavar="R", help="in a window (%(default)s)")
    options.add_argument("--window-seconds", type=float, default=10.0, metavar="S", help="(default: %(default)s)")
    options.add_argument("--callers", type=int, metavar="N", help="(default: 80 %% of what the server can hold)")
    options.add_argument("--rank", type=int, default=16, metavar="R", help="of the adapters (default: %(default)s)")
    given = options.parse_args(arguments)
    pairs = max(1, round(given.swaps / (given.per_second * given.window_seconds)))
    per_window = -(-given.swaps // pairs)
    names = [f"swap-{number:04}" for number in range(pairs * per_window)]
    with tempfile.TemporaryDirectory() as place:
        data_dir, token = Path(place) / "data", Path(place) / "token"
        token.write_text(_TOKEN)
        os.environ["DUOLOGUE_MAX_ADAPTERS"] = str(_PLACES)
        flags = ["--swap-live", "--data-dir", str(data_dir), "--admin-token-file", str(token)]
        with (
            stocked(data_dir, given.checkpoint, names, rank=given.rank) as registry,
            our_server(given.checkpoint, slots=_MOST_CALLERS, flags=flags) as running,
        ):
            note(f"{len(names)} adapters are written, and the server is ready")
            operator = Operator(running.url, registry, names)
            callers = given.callers or max(1, int(_SHARE * operator.page("/api/info")["capacity"]["measured"]))
            rows = take_turns(operator, running.url, callers, pairs, given.window_seconds, per_window)
    publish("swap", rows, as_json=given.json)


def take_turns(operator: Operator, url: str, callers: int, pairs: int, window_s: float, per_window: int) -> list[Row]:
    """Load the server, let windows with and without swaps take turns, and give the rows."""
    ramp_s = _RAMP_S * callers
    reports: list[LoadReport] = []
    longest_s = ramp_s + 2 * _SETTLE_S + 2 * pairs * (window_s + 2 * _LATE_TO_ARRIVE_S) + _ROLLBACK_S * _ROLLBACKS
    loading = threading.Thread(
        target=lambda: reports.append(load(url, callers=callers, seconds=longest_s, ramp_s=ramp_s))
    )
    loading.start()
    time.sleep(ramp_s + _SETTLE_S)
    plain: list[Window] = []
    swapped: list[Window] = []
    for pair in range(pairs):
        # First one, then the other begins, so that what grows in time is not put down to either.
        for with_swaps in (pair % 2 == 0, pair % 2 == 1):
            window = operator.window(window_s, per_window if with_swaps else 0)
            (swapped if with_swaps else plain).append(window)
        note(f"{sum(each.swaps for each in swapped)} swaps: late {_late(swapped)}, without {_late(plain)}")
    before = operator.page("/api/adapters")
    by_http = [operator.take_back(by_http=True) for _ in range(_ROLLBACKS)]
    by_registry = [operator.take_back(by_http=False) for _ in range(_ROLLBACKS)]
    loading.join()
    if not reports:
        raise RuntimeError("the load could not be held")
    return _rows(operator, swapped, plain, before, by_http, by_registry, reports[0])


def _late(windows: Sequence[Window]) -> str:
    return f"{sum(each.late for each in windows)} of {sum(each.answered for each in windows)}"


def _rows(
    operator: Operator,
    swapped: Sequence[Window],
    plain: Sequence[Window],
    page: Any,
    by_http: Sequence[float],
    by_registry: Sequence[float],
    report: LoadReport,
) -> list[Row]:
    late, others = (sum(each.late for each in windows) for windows in (swapped, plain))
    answered, among = (sum(each.answered for each in windows) for windows in (swapped, plain))
    expected = others * answered / max(1, among)
    swaps = sum(each.swaps for each in swapped)
    frames = report.frames
    lost = frames.dropped + frames.skipped + frames.missing
    trust = "" if report.client.trustworthy else "; the load generator itself was late"
    return [
        compare("swaps", swaps, "swaps", better="higher", remark=f"{report.callers} callers, distinct files"),
        compare(
            "late_frames_caused",
            late - expected,
            "frames",
            better="lower",
            goal=0,
            remark=f"with {_late(swapped)}, without {_late(plain)}{trust}",
        ),
        compare("flip_ms_max", page["longest_flip_ms"], "ms", better="lower", remark="the tick is held up"),
        compare("calls_moved", page["calls_moved"], "moves", better="higher", remark="calls that changed in silence"),
        compare("make_live_ms_p50", statistics.median(operator.make_live_ms), "ms", better="lower"),
        compare("frames_lost", lost, "frames", better="lower", goal=0),
        compare("rollback_ms_max", 1000 * max(by_http), "ms", better="lower", goal=_GOAL_ROLLBACK_MS, remark="by HTTP"),
        compare(
            "rollback_by_registry_ms_max",
            1000 * max(by_registry),
            "ms",
            better="lower",
            goal=_GOAL_ROLLBACK_MS,
            remark="as the learner or the command line does it",
        ),
    ]


if __name__ == "__main__":
    main()
