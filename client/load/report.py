"""What a load comes to: typed figures for JSON, and the sentences for people."""

from collections.abc import Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from client.load.server_metrics import StageTimes

__all__ = [
    "CallCounts",
    "ClientLateness",
    "FrameCounts",
    "LoadReport",
    "ProbeReport",
    "Second",
    "Spread",
    "sentences",
    "spread_ms",
]


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Quantiles of a time in milliseconds, from every single value."""

    p50: float
    p95: float
    p99: float
    max: float


class CallCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of the whole load, by what became of them."""

    callers: int
    calls: int
    served: int
    queued: int
    """Were told a place in the queue at some time."""
    turned_away: int
    """Closed with 4429: the server had no place."""
    never_served: int
    """Waited until their time was over."""
    rude: int
    """Vanished without a word, on purpose."""
    failed: int
    """Ended by anything else than the caller: see `problems`."""


class FrameCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Frames of the measured time. `late` and the others are defined in `client.load.journey`."""

    sent: int
    answered: int
    late: int
    late_by_client: int
    """Late only because this program sent or read late: not the server's."""
    starved: int
    starved_ms: float
    dropped: int
    """Reply frames that the server threw away, by its own `stats`, of the whole load."""
    skipped: int
    """Callers' frames that the server threw away, by its own `stats`, of the whole load."""
    missing: int
    """Frames of politely ended calls, beyond the model's delay, for which neither reply nor word came."""


class ClientLateness(msgspec.Struct, frozen=True, kw_only=True):
    """How much this program itself was late; when that is much, its figures say nothing about the server."""

    send_late_ms: Spread
    read_late_ms: Spread
    """At most so long did replies lie unread."""
    cpu_share: float
    """Of one core."""
    trustworthy: bool
    """Whether 99 of 100 sends and reads were less than a quarter of a frame late."""


class ProbeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What decoding one caller's replies showed."""

    frames_decoded: int
    disagreements: int
    """Messages after which decoded and counted frames differed: 0 means that the count without decoding is right."""
    sounding: int
    text: str


class Second(msgspec.Struct, frozen=True, kw_only=True):
    """One second of the load, from its start."""

    t_s: int
    callers: int
    delay_ms: Spread | None
    late: int
    send_late_max_ms: float


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole. `delay_ms` is what server and network add to the model's own delay (see `client.load.journey`);
    `own_delay_ms` is the same without the time that this program let a reply lie.
    """

    url: str
    callers: int
    seconds: float
    measured_s: float
    """From the end of the ramp to the end."""
    seed: int
    jitter_ms: float
    model_delay_frames: int
    delay_ms: Spread | None
    own_delay_ms: Spread | None
    frames: FrameCounts
    calls: CallCounts
    client: ClientLateness
    server_ticks: dict[str, StageTimes] | None
    """By stage, of the measured time, by the server's own clock; None where it does not tell."""
    server_frames: dict[str, int]
    problems: dict[str, int]
    probe: ProbeReport | None
    series: list[Second]


def spread_ms(seconds: npt.NDArray[np.float64]) -> Spread | None:
    """Give the quantiles of float64 [n] seconds; None when there are none."""
    if not len(seconds):
        return None
    p50, p95, p99, most = (round(1000 * float(q), 2) for q in np.percentile(seconds, (50, 95, 99, 100)))
    return Spread(p50=p50, p95=p95, p99=p99, max=most)


def sentences(report: LoadReport) -> Iterator[str]:
    """Say it in a few lines."""
    calls, frames, client = report.calls, report.frames, report.client
    yield (
        f"{calls.callers} callers, {calls.calls} calls in {report.seconds:.0f} s: {calls.served} served, "
        f"{calls.queued} queued, {calls.turned_away} turned away, {calls.never_served} never served, "
        f"{calls.rude} left rudely, {calls.failed} failed"
    )
    if report.delay_ms:
        yield _line(f"delay beyond the model's own {report.model_delay_frames} frame(s)", report.delay_ms)
    total = (report.server_ticks or {}).get("total")
    if total:
        most = "beyond the last bucket" if total.max_at_most_ms is None else f"at most {total.max_at_most_ms:.0f} ms"
        yield (
            f"tick, by the server's clock: p50 {total.p50_ms:.1f}, p95 {total.p95_ms:.1f}, p99 {total.p99_ms:.1f} ms, "
            f"max {most}; {100 * total.within_frame:.2f} % within 80 ms"
        )
    yield (
        f"frames: {frames.sent} sent, {frames.answered} answered, {frames.late} late, {frames.starved} starved "
        f"({frames.starved_ms:.0f} ms), {frames.dropped} dropped, {frames.skipped} skipped, {frames.missing} missing"
    )
    yield (
        f"this program: late in sending by p99 {client.send_late_ms.p99:.1f} ms, in reading by p99 "
        f"{client.read_late_ms.p99:.1f} ms "
        f"({frames.late_by_client} frames late for that alone), {100 * client.cpu_share:.0f} % of a core"
    )
    if not client.trustworthy:
        yield "WARNING: this program was late itself; the figures above do not judge the server."
    if report.probe:
        yield (
            f"probe: {report.probe.frames_decoded} frames decoded, {report.probe.disagreements} disagreements, "
            f"{report.probe.sounding} with sound: {report.probe.text.strip()[:200]!r}"
        )
    for problem, times in report.problems.items():
        yield f"{times} x {problem}"


def _line(what: str, spread: Spread) -> str:
    return f"{what}: p50 {spread.p50:.1f}, p95 {spread.p95:.1f}, p99 {spread.p99:.1f}, max {spread.max:.1f} ms"
