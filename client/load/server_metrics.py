"""What the server says of itself: the histograms of its `/metrics`, before and after a stretch of the load.

Only Duologue has them; against any other server there is nothing to report here.
"""

import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec

from client.credentials import NOTHING, Credentials

__all__ = ["Scrape", "StageTimes", "frames_between", "metrics_url", "read_metrics", "stages_between"]

_TICK: Final = "duologue_tick_duration_seconds"
_BUCKET: Final = re.compile(rf'{_TICK}_bucket{{(?=.*stage="(\w+)")(?=.*le="([^"]+)").*}} (\S+)')
_FRAMES: Final = re.compile(r'duologue_frames_total{result="(\w+)"} (\S+)')
_FRAME_S: Final = 0.08
_PATIENCE_S: Final = 5.0

Buckets = dict[float, float]


class Scrape(msgspec.Struct, frozen=True, kw_only=True):
    """`/metrics` at one moment: cumulative counts by upper bound in seconds for every stage, and frames by result."""

    stages: dict[str, Buckets]
    frames: dict[str, float]


class StageTimes(msgspec.Struct, frozen=True, kw_only=True):
    """The spread of one stage's time, from a histogram: quantiles are interpolated within a bucket.

    `max_at_most_ms` is the upper bound of the highest bucket that got anything, None for the open one.
    `within_frame` is the share that took at most 80 ms: exact, since that is a bucket's bound.
    """

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_at_most_ms: float | None
    within_frame: float


def metrics_url(chat_url: str) -> str:
    """Give the address of `/metrics` on the server of a `ws://` address."""
    parts = urlsplit(chat_url)
    return f"{'https' if parts.scheme == 'wss' else 'http'}://{parts.netloc}/metrics"


def read_metrics(url: str, credentials: Credentials = NOTHING) -> Scrape | None:
    """Ask the server. Blocks; None when it has no such page, does not show it to this caller, or does not answer."""
    secure = urllib.request.HTTPSHandler(context=credentials.tls)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), secure)
    try:
        asked = urllib.request.Request(url, headers=credentials.headers)  # noqa: S310 - made by metrics_url
        with direct.open(asked, timeout=_PATIENCE_S) as response:
            page = response.read().decode()
    except (urllib.error.URLError, OSError, UnicodeDecodeError):
        return None
    stages: dict[str, Buckets] = {}
    for stage, bound, number in _BUCKET.findall(page):
        stages.setdefault(stage, {})[float(bound)] = float(number)
    frames = {result: float(number) for result, number in _FRAMES.findall(page)}
    return Scrape(stages=stages, frames=frames) if stages else None


def stages_between(before: Scrape | None, after: Scrape | None) -> dict[str, StageTimes] | None:
    """Describe what was observed between two scrapes, by stage; None unless both are there."""
    if before is None or after is None:
        return None
    return {
        stage: times
        for stage, buckets in after.stages.items()
        if (times := _times({bound: n - before.stages.get(stage, {}).get(bound, 0.0) for bound, n in buckets.items()}))
    }


def frames_between(before: Scrape | None, after: Scrape | None) -> dict[str, int]:
    """Count the server's own frames by result between two scrapes; empty unless both are there."""
    if before is None or after is None:
        return {}
    return {result: round(number - before.frames.get(result, 0.0)) for result, number in after.frames.items()}


def _times(buckets: Mapping[float, float]) -> StageTimes | None:
    total = max(buckets.values(), default=0.0)
    if not total:
        return None
    p50, p95, p99 = (round(1000 * _quantile(buckets, share * total), 2) for share in (0.5, 0.95, 0.99))
    highest = min(bound for bound, number in buckets.items() if number >= total)
    return StageTimes(
        count=round(total),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        max_at_most_ms=None if highest == float("inf") else round(1000 * highest, 2),
        within_frame=buckets.get(_FRAME_S, 0.0) / total,
    )


def _quantile(buckets: Mapping[float, float], rank: float) -> float:
    """Find the value with `rank` observations at or below it; the last finite bound for those beyond it."""
    low, below = 0.0, 0.0
    for bound, number in sorted(buckets.items()):
        if number >= rank:
            return low if bound == float("inf") else low + (bound - low) * (rank - below) / (number - below)
        low, below = bound, number
    return low
