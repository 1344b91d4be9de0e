"""Good spans: the beginnings of answers in calls without a complaint, and of no others; they go with their call."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from online_align.batches import Grid, pack
from online_align.good_spans import GoodSpan, find_spans, open_spans
from server.journal import Journal, TickRecord, open_journal
from server.signals import Signal, SignalKind
from tests.journal.calls import CODEBOOKS, recording, session

PAD = 3
FIRST_WORD = 30


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = open_journal(tmp_path)
    yield opened
    opened.engine.dispose()


def signal(number: int, kind: SignalKind, t0: float, latency_s: float | None = None) -> Signal:
    return Signal(id=number, kind=kind, t0=t0, t1=t0 + 0.3, confidence=0.9, latency_s=latency_s)


ANSWERED = signal(1, SignalKind.RESPONSE, 2.1, 0.3)


def call(
    journal: Journal, name: str, *signals: Signal, frames: int = 60, word: int = FIRST_WORD, **more: object
) -> None:
    """A call in which the model is silent until `word`, and then writes."""
    with recording(journal) as writer:
        writer.begin(msgspec.structs.replace(session(name), **more))
        for number in range(frames):
            tokens = np.full((1, CODEBOOKS), 5, np.int64)
            tokens[0, 0] = PAD if number < word else 9
            writer.frames(
                TickRecord(
                    sessions=(name,), ticks=(number,), tokens_NK=tokens, logprob_N=np.zeros(1, np.float32)
                )
            )  # fmt: skip
        for each in signals:
            writer.signal(name, each)
        writer.end(name, "hang_up")


def found(journal: Journal, count: int = 10) -> list[GoodSpan]:
    return find_spans(journal, checkpoint="mini", base_sha256="ab", silent=(PAD, 0), count=count)


def test_an_answer_begins_in_the_middle_of_its_span(journal: Journal) -> None:
    call(journal, "good", ANSWERED)
    (span,) = found(journal)
    assert (span.session, span.at_tick, span.frames) == ("good", FIRST_WORD - 4, 14)
    (pair,) = open_spans(journal, [span])
    text = pair.chosen.tokens_TK[:, 0].tolist()
    assert text == [PAD] * 4 + [9] * 10
    assert len(pair.context_PK) == pair.at_tick == span.at_tick
    grid = Grid(delays=(0,) * CODEBOOKS, text_start=44, audio_start=32, model_codebooks=4, context=100, frame_rate=12.5)
    assert pack(pair, grid, whole=(True, False)).columns[0][:, 0].tolist() == text


@pytest.mark.parametrize(
    ("signals", "more"),
    [
        ((ANSWERED, signal(2, SignalKind.PAUSE_TAKEOVER, 1.0)), {}),
        ((ANSWERED, signal(2, SignalKind.NO_RESPONSE, 3.0)), {}),
        ((ANSWERED, Signal(id=2, kind=SignalKind.FEEDBACK, t0=3.0, t1=3.0, confidence=1.0, value="down")), {}),
        ((signal(1, SignalKind.RESPONSE, 2.1, 1.4),), {}),
        ((signal(1, SignalKind.BACKCHANNEL, 2.1),), {}),
        ((ANSWERED, signal(2, SignalKind.BACKCHANNEL, 3.1)), {}),
        ((ANSWERED,), {"train": False}),
        ((ANSWERED,), {"checkpoint": "another"}),
        ((ANSWERED,), {"base_sha256": "cd"}),
        ((ANSWERED,), {"word": 50, "frames": 60}),
        ((ANSWERED,), {"frames": FIRST_WORD + 5}),
        ((ANSWERED,), {"word": 10}),
    ],
    ids=["a takeover", "no response", "thumbs down", "late", "no answer", "into a pause", "not permitted",
         "another model", "other weights of that name", "no word", "cut short", "it was talking already"],
)  # fmt: skip
def test_what_is_none(journal: Journal, signals: tuple[Signal, ...], more: dict[str, object]) -> None:
    call(journal, "other", *signals, **more)  # type: ignore[arg-type]
    assert found(journal) == []


def test_a_hum_later_in_the_answer_does_no_harm(journal: Journal) -> None:
    call(journal, "hummed", ANSWERED, signal(2, SignalKind.BACKCHANNEL, ANSWERED.t0 + 2.6))
    assert len(found(journal)) == 1


def test_the_newest_first_and_no_more_than_asked(journal: Journal) -> None:
    for number in range(3):
        call(journal, f"call{number}", ANSWERED, started_at=1000.0 + number)
    assert [span.session for span in found(journal, 2)] == ["call2", "call1"]


def test_they_go_with_their_call(journal: Journal) -> None:
    call(journal, "one", ANSWERED)
    call(journal, "two", ANSWERED)
    spans = found(journal)
    journal.removal.session("one")
    assert [pair.session for pair in open_spans(journal, spans)] == ["two"]
