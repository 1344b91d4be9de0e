"""The server's secret: in memory, then kept for good, and never another for the same folder."""

from pathlib import Path

import pytest

from server.errors import ConfigError
from server.secret import ServerSecret, main


def test_nothing_is_written_before_it_must_be_kept(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    secret = ServerSecret(folder)
    assert not folder.exists()
    assert not secret.is_kept
    secret.keep()
    secret.keep()
    assert [path.name for path in folder.iterdir()] == ["user.key"]
    assert (folder / "user.key").stat().st_mode & 0o777 == 0o600
    again = ServerSecret(folder)
    assert again.is_kept
    assert again.user_hash("anna") == secret.user_hash("anna")
    assert again.sign("cookie", b"x") == secret.sign("cookie", b"x")


def test_a_hash_says_nothing_and_is_another_on_another_server(tmp_path: Path) -> None:
    secret, other = ServerSecret(tmp_path), ServerSecret(tmp_path)
    assert secret.user_hash("anna") != secret.user_hash("bert")
    assert secret.user_hash("anna") != other.user_hash("anna")
    assert secret.user_hash("") == "", "the anonymous cannot be told apart"
    assert secret.sign("user", b"anna") != secret.sign("cookie", b"anna")


def test_a_secret_that_is_there_is_never_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    early, other = ServerSecret(tmp_path), ServerSecret(tmp_path)
    other.keep()
    early.keep()
    assert "is another server's" in caplog.text
    assert ServerSecret(tmp_path).user_hash("anna") == other.user_hash("anna")
    assert [path.name for path in tmp_path.iterdir()] == ["user.key"]


def test_a_file_that_is_no_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "user.key").write_bytes(b"short")
    with pytest.raises(ConfigError, match=r"user\.key with 5 bytes; expected 32 random bytes"):
        ServerSecret(tmp_path)


def test_the_command_says_what_stands_for_somebody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["anna", "--data-dir", str(tmp_path)]
    assert main(asked) == 1
    assert "nothing of anybody was ever kept" in capsys.readouterr().err
    secret = ServerSecret(tmp_path)
    secret.keep()
    assert main(asked) == 0
    assert capsys.readouterr().out == secret.user_hash("anna") + "\n"
    (tmp_path / "user.key").write_bytes(b"")
    assert main(asked) == 2
