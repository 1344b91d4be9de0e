"""From what callers wrote down to the report: pairing, windows, quantiles. Runs when the load is over."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from client.load.caller import Call
from client.load.journey import Answers, Seconds, model_delay, starvation
from client.load.report import (
    CallCounts,
    ClientLateness,
    FrameCounts,
    LoadReport,
    ProbeReport,
    Second,
    Spread,
    spread_ms,
)
from client.load.server_metrics import Scrape, frames_between, stages_between
from client.sound import FRAME_S
from server.protocol import FRAME_MS

__all__ = ["Outcome", "summarise"]

_TRUST_MS: Final = 1000 * FRAME_S / 4
_NONE: Final = Spread(p50=0.0, p95=0.0, p99=0.0, max=0.0)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A load that is over. Times on the monotonic clock; `measured_from` is the end of the ramp."""

    url: str
    seed: int
    jitter_s: float
    callers: int
    began_at: float
    measured_from: float
    ended_at: float
    cpu_s: float
    calls: Sequence[Call]
    before: Scrape | None
    after: Scrape | None


def summarise(outcome: Outcome) -> LoadReport:
    """Compute all figures."""
    delay = model_delay([call.journey for call in outcome.calls])
    whole = [call.journey.answers(delay) for call in outcome.calls]
    measured = [_within(answers, outcome.measured_from, outcome.ended_at) for answers in whole]
    return LoadReport(
        url=outcome.url,
        callers=outcome.callers,
        seconds=round(outcome.ended_at - outcome.began_at, 2),
        measured_s=round(outcome.ended_at - outcome.measured_from, 2),
        seed=outcome.seed,
        jitter_ms=1000 * outcome.jitter_s,
        model_delay_frames=delay,
        delay_ms=spread_ms(_joined([answers.delay for answers in measured])),
        own_delay_ms=spread_ms(_joined([answers.own_delay for answers in measured])),
        frames=_frames(outcome, delay, whole, measured),
        calls=_calls(outcome),
        client=_client(outcome, measured),
        server_ticks=stages_between(outcome.before, outcome.after),
        server_frames=frames_between(outcome.before, outcome.after),
        problems=dict(Counter(call.problem for call in outcome.calls if call.problem)),
        probe=_probe(outcome.calls),
        series=_series(outcome, whole),
    )


def _within(answers: Answers, begin: float, end: float) -> Answers:
    chosen = (answers.sent >= begin) & (answers.sent <= end)
    fields = msgspec.structs.asdict(answers)
    return Answers(**{name: values[chosen] for name, values in fields.items()})


def _frames(outcome: Outcome, delay: int, whole: Sequence[Answers], measured: Sequence[Answers]) -> FrameCounts:
    late, late_by_client = 0, 0
    for answers in whole:  # a player starts with its call, not with the measured time
        counts = answers.sent >= outcome.measured_from
        by_server, by_client = answers.late(outcome.jitter_s)
        late += int((by_server & counts).sum())
        late_by_client += int((by_client & counts).sum())
    starved = [starvation(answers, outcome.jitter_s) for answers in measured]
    sent = np.concatenate([np.zeros(0), *(np.array(call.journey.sent) for call in outcome.calls)])
    return FrameCounts(
        sent=int(((sent >= outcome.measured_from) & (sent <= outcome.ended_at)).sum()),
        answered=sum(len(answers.read) for answers in measured),
        late=late,
        late_by_client=late_by_client,
        starved=sum(each.frames for each in starved),
        starved_ms=round(1000 * sum(each.seconds for each in starved), 1),
        dropped=round(sum(call.dropped_ms for call in outcome.calls) / FRAME_MS),
        skipped=round(sum(call.skipped_ms for call in outcome.calls) / FRAME_MS),
        missing=sum(
            max(0, call.journey.unanswered - min(delay, len(call.journey.sent)))
            for call in outcome.calls
            if call.began_at is not None and not call.rude and not call.problem
        ),
    )


def _calls(outcome: Outcome) -> CallCounts:
    calls = outcome.calls
    return CallCounts(
        callers=outcome.callers,
        calls=len(calls),
        served=sum(call.began_at is not None for call in calls),
        queued=sum(call.queued for call in calls),
        turned_away=sum(call.turned_away for call in calls),
        never_served=sum(call.began_at is None and call.problem is None for call in calls),
        rude=sum(call.rude and call.began_at is not None for call in calls),
        failed=sum(call.problem is not None and not call.turned_away for call in calls),
    )


def _client(outcome: Outcome, measured: Sequence[Answers]) -> ClientLateness:
    sends = spread_ms(_joined([np.array(call.journey.sent) - np.array(call.journey.due) for call in outcome.calls]))
    reads = spread_ms(_joined([answers.read_late for answers in measured]))
    send_late_ms, read_late_ms = sends or _NONE, reads or _NONE
    return ClientLateness(
        send_late_ms=send_late_ms,
        read_late_ms=read_late_ms,
        cpu_share=round(outcome.cpu_s / (outcome.ended_at - outcome.began_at), 3),
        trustworthy=send_late_ms.p99 < _TRUST_MS and read_late_ms.p99 < _TRUST_MS,
    )


def _probe(calls: Sequence[Call]) -> ProbeReport | None:
    probe = next((call.probe for call in calls if call.probe), None)
    if probe is None:
        return None
    return ProbeReport(
        frames_decoded=probe.frames, disagreements=probe.disagreements, sounding=probe.sounding, text=probe.text
    )


def _series(outcome: Outcome, whole: Sequence[Answers]) -> list[Second]:
    seconds = int(np.ceil(outcome.ended_at - outcome.began_at))
    sent = _joined([answers.sent for answers in whole]) - outcome.began_at
    delay = _joined([answers.delay for answers in whole])
    send_late = _joined([answers.send_late for answers in whole])
    late = np.concatenate([np.zeros(0, np.bool_), *(answers.late(outcome.jitter_s)[0] for answers in whole)])
    spans = [(call.began_at, call.ended_at) for call in outcome.calls if call.began_at is not None]
    series = []
    for t_s in range(seconds):
        chosen = (sent >= t_s) & (sent < t_s + 1)
        middle = outcome.began_at + t_s + 0.5
        series.append(
            Second(
                t_s=t_s,
                callers=sum(begin <= middle < end for begin, end in spans),
                delay_ms=spread_ms(delay[chosen]),
                late=int(late[chosen].sum()),
                send_late_max_ms=round(1000 * float(send_late[chosen].max(initial=0.0)), 2),
            )
        )
    return series


def _joined(parts: Sequence[Seconds]) -> Seconds:
    return np.concatenate([np.zeros(0, np.float64), *parts])
