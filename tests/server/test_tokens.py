"""Lines of a token file: what they may be, what is said about the others, and that no token is ever shown."""

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import TokenError
from server.tokens import Role, TokenBook, main, read_token_file, read_tokens

ANNA = "anna-has-a-long-token"
BERT = "bert-has-another-one"


def book(*lines: str) -> TokenBook:
    return TokenBook(read_tokens(lines, source="here"))


def test_a_token_finds_its_holder_plain_or_hashed() -> None:
    hashed = hashlib.sha256(BERT.encode()).hexdigest()
    known = book("# people", "", f"anna:{ANNA}", f" bert:sha256={hashed}:admin ")
    assert [(each.name, each.role) for each in known.holders] == [("anna", Role.CALLER), ("bert", Role.ADMIN)]
    assert known.find(ANNA) == known.holders[0]
    assert known.find(BERT) == known.holders[1]
    for wrong in ("", ANNA[:-1], ANNA + "x", hashed, f"sha256={hashed}", "é" * 20, "\ud800"):
        assert known.find(wrong) is None


def test_a_name_may_have_two_tokens_while_one_replaces_the_other() -> None:
    known = book(f"anna:{ANNA}", f"anna:{BERT}")
    assert {known.find(token).name for token in (ANNA, BERT)} == {"anna"}  # type: ignore[union-attr]


def test_a_mark_tells_tokens_apart_and_gives_none_away() -> None:
    known = book(f"anna:{ANNA}", f"anna:{BERT}")
    first, second = known.holders
    assert first.mark != second.mark
    assert known.marked(second.mark) == second
    assert known.marked("0" * 16) is None
    assert known.marked("\ud800é") is None
    assert first.mark not in hashlib.sha256(ANNA.encode()).hexdigest()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("anna", "a token that cannot be one"),
        (ANNA, "a token that cannot be one"),
        (f":{ANNA}", "without a name"),
        (f"an na:{ANNA}", "without a name"),
        (f"{'a' * 65}:{ANNA}", "without a name"),
        ("anna:short", "a token that cannot be one; expected 16 to 512"),
        (f"anna:{ANNA} x", "a token that cannot be one"),
        (f"anna:{'x' * 513}", "a token that cannot be one"),
        ("anna:sha256=12", "a hash of the wrong length"),
        (f"anna:{ANNA}:king", "an unknown role"),
        (f"anna:{ANNA}:", "an unknown role"),
    ],
)
def test_a_line_that_cannot_be_one_is_named_and_not_shown(line: str, complaint: str) -> None:
    with pytest.raises(TokenError) as caught:
        book("# first", line)
    sentence = str(caught.value)
    assert complaint.partition(";")[0] in sentence
    assert "line 2 of here" in sentence
    assert ANNA not in sentence
    assert "short" not in sentence


def test_one_token_for_two_people_is_refused() -> None:
    with pytest.raises(TokenError, match="one token twice in here"):
        book(f"anna:{ANNA}", f"bert:{ANNA}")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match=r"cannot be read \(No such file"):
        read_token_file(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(TokenError, match="not UTF-8"):
        read_token_file(tmp_path / "binary")


@given(st.lists(st.text()))
def test_lines_are_read_or_refused_and_nothing_else(lines: list[str]) -> None:
    with contextlib.suppress(TokenError):
        known = TokenBook(read_tokens(lines, source="here"))
        assert all(len(holder.digest) == 32 for holder in known.holders)
        assert known.find("\0".join(lines)) is None


def test_the_command_makes_a_line_that_its_token_opens(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server.tokens", "anna", "--role", "admin"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    file = tmp_path / "tokens"
    file.write_text(done.stdout)
    token = done.stderr.rpartition(": ")[2].strip()
    (holder,) = read_token_file(file)
    assert (holder.name, holder.role) == ("anna", Role.ADMIN)
    assert TokenBook((holder,)).find(token) == holder
    assert token not in done.stdout, "the file never holds it"


def test_the_command_gives_the_token_in_a_file_of_its_owner_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "token"
    assert main(["anna", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert book(said.out.strip()).find(out.read_text().strip()) is not None
    assert (said.err, out.stat().st_mode & 0o777) == ("", 0o600)
    assert main(["anna", "--out", str(out)]) == 2, "a token that is there is not lost"
    assert "File exists" in capsys.readouterr().err
