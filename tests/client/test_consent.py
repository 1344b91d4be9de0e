"""What the caller permits: asked once for each server, no unless yes, remembered, and never more than was said."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from client.consent import ConsentFile, consent_of, query_value
from client.errors import SettingsError
from server.protocol import Consent

URL = "ws://somewhere:8998"


class Person:
    """Answers in turn, and remembers what was asked."""

    def __init__(self, *answers: str) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    def answer(self, question: str) -> str:
        self.asked.append(question)
        return self._answers.pop(0)


@pytest.fixture
def file(tmp_path: Path) -> ConsentFile:
    return ConsentFile(tmp_path / "config" / "consent.json")


def permitted(choice: str | None, file: ConsentFile, asking: Callable[[str], str] | None, url: str = URL) -> Consent:
    return consent_of(choice, url, file, asking=asking, tell=lambda _: None)


@pytest.mark.parametrize(
    ("answers", "keep", "train"),
    [
        ([""], False, False),
        (["n"], False, False),
        (["perhaps"], False, False),
        (["y", ""], True, False),
        (["YES ", "y"], True, True),
    ],
)
def test_no_unless_it_is_clearly_yes(file: ConsentFile, answers: list[str], keep: bool, train: bool) -> None:
    person = Person(*answers)
    assert permitted(None, file, person.answer) == Consent(keep=keep, train=train)
    assert len(person.asked) == len(answers), "who says no to keeping is not asked about training"


def test_it_is_asked_once_for_each_server(file: ConsentFile) -> None:
    permitted(None, file, Person("y", "y").answer)
    again = Person()
    assert permitted(None, file, again.answer) == Consent(keep=True, train=True)
    assert not again.asked
    other = Person("n")
    assert permitted(None, file, other.answer, "wss://elsewhere") == Consent()
    assert other.asked, "what one operator may says nothing of another"
    assert set(msgspec.json.decode(file.path.read_bytes())["servers"]) == {"somewhere:8998", "elsewhere"}


def test_asking_again_replaces_the_answer(file: ConsentFile) -> None:
    permitted(None, file, Person("y", "y").answer)
    assert permitted("ask", file, Person("n").answer) == Consent()
    assert permitted(None, file, None) == Consent()


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("none", Consent()), ("keep", Consent(keep=True)), ("train", Consent(keep=True, train=True))],
)
def test_the_flag_is_for_one_call(file: ConsentFile, choice: str, expected: Consent) -> None:
    assert permitted(choice, file, None) == expected
    assert not file.path.exists()


def test_where_nobody_can_be_asked_nothing_is_permitted_and_nothing_remembered(file: ConsentFile) -> None:
    assert permitted(None, file, None) == permitted("ask", file, None) == Consent()
    assert not file.path.exists()


def test_the_explanation_says_what_for_whom_and_where_it_is_remembered(file: ConsentFile) -> None:
    said: list[str] = []
    consent_of(None, URL, file, asking=Person("n").answer, tell=said.append)
    for words in ("somewhere:8998", "your voice", "train", "refuse both", str(file.path), "deleted"):
        assert words in said[0], words


def test_a_password_in_the_address_is_not_written_down(file: ConsentFile) -> None:
    permitted(None, file, Person("n").answer, "wss://user:secret@host:1")
    assert b"secret" not in file.path.read_bytes()


def test_what_cannot_be_read_is_no_permission(file: ConsentFile) -> None:
    file.path.parent.mkdir()
    file.path.write_text('{"servers": {"somewhere:8998": {"keep": "always"}}}')
    with pytest.raises(SettingsError, match="Delete it to be asked again"):
        permitted(None, file, None)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"Cannot (read|remember)"):
        permitted(None, ConsentFile(tmp_path / "file" / "consent.json"), Person("n").answer)


def test_the_query_says_only_what_is_permitted() -> None:
    assert query_value(Consent()) == {}
    assert query_value(Consent(keep=True)) == {"consent": "keep"}
    assert query_value(Consent(keep=True, train=True)) == {"consent": "keep,train"}
