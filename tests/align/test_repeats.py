"""What was said twice: by its words, in a real call by a real recogniser, and without a trace of the words."""

from pathlib import Path

import pytest

from online_align.__main__ import main
from online_align.conversation import Turn
from online_align.repeats import RepeatError, alike, find_repeats
from server.journal import open_journal, replace_signals
from server.signals import Signal, SignalKind
from tests.align.kept_calls import record_call
from tests.signals.sounds import clip


def turns(*texts: str, every_s: float = 5.0) -> list[Turn]:
    return [
        Turn(t0=number * every_s, t1=number * every_s + 2.0, first=0, last=0, text=text)
        for number, text in enumerate(texts)
    ]


def test_the_same_again_is_a_repeat_of_the_most_alike() -> None:
    said = turns("What is the capital of France?", "The capital of Frans", "No. I said", "what's the capital of France")
    (first, second) = find_repeats(said)
    assert (first.first, first.again) == (said[0], said[1])
    assert (second.first, second.again) == (said[0], said[3])
    assert first.alike < second.alike <= 1.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of Norway?", "What is the capital of Peru?"),
        ("What is two plus four?", "What is two plus five?"),
        ("What is two plus seven?", "What is two plus 11?"),
        ("Two plus four.", "Two minus four."),
        ("What is two plus four?", "What colour is the sky at night?"),
        ("Tell me about the moon.", "Tell me."),
        ("What is it?", "Who are you?"),
        ("Yes.", "Yes."),
        ("", ""),
    ],
)
def test_other_questions_are_none_however_many_words_they_share(one: str, other: str) -> None:
    assert find_repeats(turns(one, other)) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is ten minus eight?", "what is tan minus 8"),
        ("Name the capital of Austria please.", "In the capital of Austria, please."),
        ("What is the capital city of Iceland?", "I said, the capital of Iceland!"),
        ("Hello, my name is David.", "My name is David."),
    ],
)
def test_a_recogniser_may_mishear_and_people_say_it_otherwise(one: str, other: str) -> None:
    assert 0.6 < alike(one, other) == alike(other, one) <= 1.0
    assert len(find_repeats(turns(one, other))) == 1


def test_much_later_it_is_a_new_question() -> None:
    assert len(find_repeats(turns("Tell me about the moon.", "Tell me about the moon.", every_s=50.0))) == 1
    assert not find_repeats(turns("Tell me about the moon.", "Tell me about the moon.", every_s=70.0))


@pytest.mark.mini
@pytest.mark.slow
def test_a_question_asked_twice_in_a_kept_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once, other = clip("trained_14.opus"), clip("trained_07.opus")
    record_call(tmp_path, "call", [1.0, once, 3.0, other, 3.0, once, 2.0], train=True)
    again_s = 7.0 + (len(once) + len(other)) / 16_000
    journal = open_journal(tmp_path)
    replace_signals(journal.engine, "call", SignalKind.RESPONSE, [response()])
    for _ in range(2):
        assert main(["journal", "--data-dir", str(tmp_path), "transcribe"]) == 0
        assert "call: 1 repeats" in capsys.readouterr().out
        (response_there, repeat) = journal.reader.signals("call")
        assert (response_there.id, repeat.id, repeat.kind) == (1, 2, SignalKind.REPEAT)
        assert repeat.t0 == pytest.approx(again_s, abs=0.4)
        assert repeat.detector.startswith("repeat-1/whisper")
        assert repeat.confidence > 0.6
    journal.engine.dispose()
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"capital" not in path.read_bytes().lower()


def response() -> Signal:
    return Signal(id=0, kind=SignalKind.RESPONSE, t0=1.0, t1=2.0, confidence=0.9)


@pytest.mark.mini
def test_a_call_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    from online_align.repeats import add_repeats
    from server.journal import JournalWriter
    from tests.journal.calls import session

    journal = open_journal(tmp_path)
    writer = JournalWriter(journal.engine, journal.keys, most_waiting=20_000)
    writer.start()
    writer.begin(session("abc"))
    writer.stop()
    with pytest.raises(RepeatError, match="which goes on"):
        add_repeats(journal, None, journal.reader.session("abc"), None)  # type: ignore[arg-type]
    journal.engine.dispose()
