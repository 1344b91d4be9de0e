"""What a command shows to a server and which server it believes, from its command line and environment."""

import argparse
import ssl
from pathlib import Path

import pytest

from client.credentials import NOTHING, Credentials, add_credentials, read_credentials
from client.errors import CertificateFileError, TokenFileError


def credentials(*arguments: str, environment: str = "") -> Credentials:
    parser = argparse.ArgumentParser()
    add_credentials(parser)
    return read_credentials(parser.parse_args(arguments), {"DUOLOGUE_TOKEN": environment} if environment else {})


def test_a_token_comes_from_a_file_a_flag_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-a-file\n")
    assert credentials() == NOTHING
    assert NOTHING.headers == {}
    assert credentials(environment=" of-the-environment\n").token == "of-the-environment"
    assert credentials("--token", "given", environment="other").token == "given"
    shown = credentials("--token-file", str(file), environment="other")
    assert shown.headers == {"Authorization": "Bearer from-a-file"}


def test_any_certificate_is_believed_only_when_that_was_said(tmp_path: Path) -> None:
    assert credentials().tls is None
    insecure = credentials("--insecure").tls
    assert insecure is not None
    assert (insecure.verify_mode, insecure.check_hostname) == (ssl.CERT_NONE, False)


@pytest.mark.parametrize(
    ("flag", "problem", "sentence"),
    [("--token-file", TokenFileError, "Cannot read the token"), ("--ca", CertificateFileError, "give a PEM file")],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, flag: str, problem: type[Exception], sentence: str
) -> None:
    (tmp_path / "junk").write_bytes(b"\xff\xfejunk")
    for name in ("none", "junk"):
        with pytest.raises(problem, match=sentence) as caught:
            credentials(flag, str(tmp_path / name))
        assert name in str(caught.value)


@pytest.mark.parametrize("flags", [["--token", "a", "--token-file", "b"], ["--ca", "a", "--insecure"]])
def test_two_ways_at_once_are_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit):
        credentials(*flags)
