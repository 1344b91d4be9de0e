"""The doors of the operator's program, as a process: what it refuses to start with, reads again, and never logs."""

import asyncio
import hashlib
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from websockets.exceptions import InvalidStatus

from tests.server.caller import calling, voice

ROOT = Path(__file__).parents[2]
ANNA, BERT, CHIEF = (f"{name}-0123456789-token" for name in ("anna", "bert", "chief"))


class Program:
    """`python -m server`, and everything it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log = ""

    async def said(self, pattern: str) -> str:
        """Wait for a line with this in it, and give the first group."""
        assert self.process.stderr is not None
        while (found := re.search(pattern, self.log)) is None:
            line = await self.process.stderr.readline()
            assert line, f"the program ended: {self.log}"
            self.log += line.decode()
        return found[1]


@asynccontextmanager
async def program(checkpoint: Path, *flags: str, **environment: str) -> AsyncIterator[Program]:
    command = ("-m", "server", "--checkpoint", str(checkpoint), "--slots", "1", "--port", "0", "--max-speed", "1000")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(*command, *flags),
        cwd=ROOT,
        env=os.environ | {"DUOLOGUE_LOG_LEVEL": "debug"} | environment,
        stderr=asyncio.subprocess.PIPE,
    )
    running = Program(process)
    try:
        yield running
        process.send_signal(signal.SIGTERM)
        running.log += (await process.communicate())[1].decode()
        assert process.returncode == 0, running.log
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_no_credential_is_ever_logged_and_a_hangup_reads_tokens_again(tiny: Path, tmp_path: Path) -> None:
    tokens, data = tmp_path / "tokens", tmp_path / "data"
    tokens.write_text(f"anna:{ANNA}\n")
    flags = ("--token-file", str(tokens), "--tls-self-signed", "--data-dir", str(data))
    cookies = []
    async with program(tiny, *flags, DUOLOGUE_ADMIN_TOKEN=CHIEF) as server:
        secure = await server.said(r"listening on (https://\S+),")
        shown = await server.said(r"fingerprint ([0-9A-F:]{95})")
        trusting = ssl.create_default_context(cafile=str(data / "tls" / "cert.pem"))
        assert shown.replace(":", "") == (await asyncio.to_thread(_fingerprint, secure)).replace(":", "")
        await server.said(r"(ready: )")
        async with calling(secure, f"?worker_auth_id={ANNA}&text_seed=1", ssl=trusting) as caller:
            await caller.greeted()
            await caller.talk(voice(4))
            words = caller.words
        async with aiohttp.ClientSession() as client:
            for token, status in ((ANNA, 200), (CHIEF, 200), ("wrong-0123456789", 401)):
                async with client.post(secure + "/api/login", json={"token": token}, ssl=trusting) as response:
                    assert response.status == status
                    cookies += [cookie.value for cookie in response.cookies.values()]
            async with client.get(f"{secure}/?token={ANNA}", ssl=trusting, allow_redirects=False) as response:
                assert response.status == 303
            async with client.get(secure + "/metrics", ssl=trusting, headers=_bearer(CHIEF)) as response:
                figures = await response.text()
        tokens.write_text(f"bert:{BERT}\n")
        server.process.send_signal(signal.SIGHUP)
        await server.said(r"(tokens read: 2)")
        with pytest.raises(InvalidStatus):
            async with calling(secure, additional_headers=_bearer(ANNA), ssl=trusting):
                pass
        async with calling(secure, additional_headers=_bearer(BERT), ssl=trusting) as caller:
            await caller.greeted()
            await caller.talk(voice(2))
            resume = caller.session["resume_token"]
    assert len(cookies) == 2
    for secret in (ANNA, BERT, CHIEF, "wrong-0123456789", resume, *cookies):
        assert secret not in server.log + figures
    assert "call " in server.log, "the log does hold what happened"
    for word in {word for word in words.split() if len(word) > 3}:
        assert word not in server.log
    assert [path.name for path in data.iterdir()] == ["tls"], "nobody permitted anything to be kept"


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _fingerprint(url: str) -> str:
    host, port = url.removeprefix("https://").split(":")
    pem = ssl.get_server_certificate((host, int(port)))
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest().upper()


@pytest.mark.parametrize(
    ("flags", "environment", "sentence"),
    [
        (["--host", "0.0.0.0"], {}, "expected --token-file, DUOLOGUE_TOKENS, or --allow-anonymous"),
        (["--token-file", "none"], {}, "got a file that cannot be read (No such file or directory) in none"),
        ([], {"DUOLOGUE_TOKENS": "anna:too-short"}, "got a token that cannot be one in line 1 of DUOLOGUE_TOKENS"),
        ([], {"DUOLOGUE_ADMIN_TOKEN": "too-short"}, "got a token that cannot be one in DUOLOGUE_ADMIN_TOKEN"),
        (["--tls-cert", "none"], {}, "expected both tls_cert and tls_key"),
        (["--allow-origin", "talk.example.org"], {}, "expected such as https://talk.example.org"),
        ([], {"DUOLOGUE_TRUSTED_PROXIES": "proxy"}, "got trusted_proxies = 'proxy'"),
    ],
)
def test_doors_that_may_not_be_opened_so_end_the_program_with_2(
    flags: list[str], environment: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server", *flags, "--data-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "too-short" not in done.stderr
    assert done.stderr.startswith("duologue-server: got ")
    assert len(done.stderr.splitlines()) == 1
