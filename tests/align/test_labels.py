"""What counts as a complaint, what as praise, and what as neither."""

import msgspec
import pytest

from online_align.conversation import Conversation, FrameClock, Turn
from online_align.labels import RULES, Label, Opinion, label
from online_align.records import PairKind
from server.signals import Signal, SignalKind, State

CLOCK = FrameClock(frame_s=0.08)


def turn(t0: float, t1: float, text: str = "") -> Turn:
    return Turn(t0=t0, t1=t1, first=CLOCK.heard_at(t0), last=CLOCK.heard_at(t1), text=text)


def signal(kind: str, t0: float, t1: float | None = None, *, number: int = 1, **more: object) -> Signal:
    given = {"confidence": 0.9} | more
    return Signal(id=number, kind=SignalKind(kind), t0=t0, t1=t0 if t1 is None else t1, **given)  # type: ignore[arg-type]


def conversation(
    signals: list[Signal], user: list[Turn] | None = None, model: list[Turn] | None = None, *, hung_up: bool = False
) -> Conversation:
    return Conversation(
        session="call", clock=CLOCK, columns=250, signals=signals, user=user or [], model=model or [], hung_up=hung_up
    )


def complaints(call: Conversation) -> list[Label]:
    return [each for each in label(call) if each.opinion is Opinion.COMPLAINT]


ASKED = turn(1.0, 2.0, "what is the capital of Norway")
REPLY = turn(2.4, 4.0, "The capital of Norway is Oslo.")


@pytest.mark.parametrize("kind", ["barge_in", "backchannel", "hang_up", "monologue", "yield"])
def test_alone_it_is_neutral(kind: str) -> None:
    (only,) = label(conversation([signal(kind, 3.0, 4.0)], [ASKED], [REPLY]))
    assert (only.opinion, only.kind, only.signals) == (Opinion.NEUTRAL, None, (1,))


@pytest.mark.parametrize(("kind", "expected"), [("cut_off", PairKind.CUT_OFF), ("pause_takeover", PairKind.CUT_OFF)])
def test_beginning_too_early_is_a_complaint(kind: str, expected: PairKind) -> None:
    (only,) = complaints(conversation([signal(kind, 1.5, 2.4)]))
    assert (only.kind, only.t0, only.t1, only.signals) == (expected, 1.5, 2.4, (1,))
    assert only.rule == f"{RULES}/{kind}"
    assert 0.6 < only.confidence < 0.9


def test_a_doubtful_signal_makes_a_doubtful_complaint() -> None:
    sure, doubtful = (
        complaints(conversation([signal("cut_off", 1.5, 2.4, confidence=each)]))[0].confidence for each in (0.9, 0.6)
    )
    assert doubtful < 0.5 < sure


def test_talking_on_is_a_complaint_only_over_a_barge_in() -> None:
    cut_in = signal("barge_in", 5.0, 6.5, number=2, confidence=0.95)
    goes_on = signal("no_yield", 5.0, 7.0, number=3, of=2)
    (only,) = complaints(conversation([cut_in, goes_on]))
    assert (only.kind, only.t0, only.t1, only.signals) == (PairKind.NO_YIELD, 5.0, 6.5, (2, 3))
    hum = msgspec.structs.replace(cut_in, kind=SignalKind.BACKCHANNEL)
    assert not complaints(conversation([hum, goes_on]))


def test_silence_is_surely_a_complaint_when_the_caller_asks_again() -> None:
    silent = signal("no_response", 2.0, 4.5)
    (again,) = complaints(conversation([silent], [ASKED, turn(5.0, 5.6, "hello")]))
    (hung_up,) = complaints(conversation([silent], [ASKED], hung_up=True))
    (alone,) = complaints(conversation([silent], [ASKED]))
    assert again.kind is PairKind.NO_RESPONSE
    assert again.t1 == 5.0
    assert again.confidence > 0.8 > 0.5 > alone.confidence
    assert hung_up.confidence < 0.5, "20 s later it is not about the silence"


def test_a_late_answer_takes_the_complaint_back() -> None:
    silent = signal("no_response", 2.0, 4.5)
    assert not complaints(conversation([silent], [ASKED, turn(7.0, 7.6, "thanks")], [turn(4.8, 6.0, "Oslo.")]))


def test_a_down_vote_is_about_the_reply_before_it() -> None:
    (only,) = complaints(conversation([signal("feedback", 5.0, value="down")], [ASKED], [REPLY]))
    assert (only.kind, only.t0, only.t1) == (PairKind.CONTENT, REPLY.t0, REPLY.t1)
    assert not complaints(conversation([signal("feedback", 1.5, value="down")], [ASKED], [REPLY])), "nothing was said"


def test_a_down_vote_after_a_fault_of_timing_is_about_the_timing() -> None:
    early = signal("pause_takeover", 1.5, 2.4)
    (alone,) = complaints(conversation([early], [ASKED], [REPLY]))
    (surer,) = complaints(
        conversation([early, signal("feedback", 5.0, number=2, value="down")], [ASKED], [turn(1.5, 2.2)])
    )
    assert surer.kind is PairKind.CUT_OFF
    assert surer.confidence > alone.confidence


def test_asking_the_same_again_is_about_the_reply_in_between() -> None:
    again = signal("repeat", 5.0, 6.0, latency_s=3.0)
    (only,) = complaints(conversation([again], [ASKED, turn(5.0, 6.0)], [REPLY]))
    assert (only.kind, only.t0, only.signals) == (PairKind.CONTENT, REPLY.t0, (1,))
    assert not complaints(conversation([again], [ASKED], [])), "no reply, nothing to complain of in its words"
    before = turn(0.1, 0.6, "Hello.")
    assert not complaints(conversation([again], [ASKED], [before])), "that was said before he asked at all"


def test_one_fault_with_two_signals_counts_once() -> None:
    early = signal("cut_off", 1.5, 3.0)
    cut_in = signal("barge_in", 2.0, 3.0, number=2)
    found = complaints(conversation([early, cut_in, signal("no_yield", 2.0, 3.6, number=3, of=2)]))
    assert [each.kind for each in found] == [PairKind.CUT_OFF]


def test_praise_is_a_vote_or_going_on_after_a_prompt_answer() -> None:
    answered = signal("response", 2.0, 2.4, latency_s=0.4)
    onwards = [ASKED, turn(5.0, 6.0, "thank you very much")]
    (praise,) = label(conversation([answered], onwards, [REPLY]))
    assert (praise.opinion, praise.rule, praise.t0) == (Opinion.PRAISE, f"{RULES}/went_on", REPLY.t0)
    assert not label(conversation([answered], [ASKED], [REPLY])), "nobody went on"
    assert not label(conversation([msgspec.structs.replace(answered, latency_s=2.1)], onwards, [REPLY]))
    over = [ASKED, turn(3.0, 6.0, "thank you very much")]
    assert not label(conversation([answered], over, [REPLY])), "it was not heard out"
    votes = label(conversation([signal("feedback", 4.5, value="up")], [ASKED], [REPLY]))
    assert [(each.opinion, each.confidence > 0.8) for each in votes] == [(Opinion.PRAISE, True)]


def test_repeating_is_no_praise() -> None:
    answered = signal("response", 2.0, 2.4, latency_s=0.4)
    again = signal("repeat", 5.0, 6.0, number=2, latency_s=3.0)
    found = label(conversation([answered, again], [ASKED, turn(5.0, 6.0)], [REPLY]))
    assert [each.opinion for each in found] == [Opinion.COMPLAINT]


def test_what_was_never_settled_does_not_count() -> None:
    assert not label(conversation([signal("cut_off", 1.5, 2.4, state=State.PROVISIONAL)]))
