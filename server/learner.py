"""The learner beside the server: a process at low priority, started again when it ends, and ended with the server.

`--learn` asks for it. The server needs nothing of it: they share the journal and the data folder, and when it cannot
start, calls are served all the same. It waits for a journal, for a server alone writes nothing before a caller permits
it. Another base model is another process. This file owns the process and its log; it knows nothing of pairs or
training.
"""

import asyncio
import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from server.config import ServerConfig
from server.journal.database import exists

__all__ = ["Learner", "command_of", "learner_of"]

log = logging.getLogger("learner")

_LOOK_S: Final = 1.0
_SHORTEST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 300.0
_WELL_S: Final = 60.0
"""A process that has lived so long was well: the next one need not wait long."""
_LAST_S: Final = 8.0
_LAST_WORDS_S: Final = 1.0
_CHUNK: Final = 4096
_LONGEST_LINE: Final = 2000
_BREAKS: Final = re.compile(rb"\r\n|\n")
_SECRETS: Final = ("DUOLOGUE_ADMIN_TOKEN", "DUOLOGUE_TOKENS")


def command_of(config: ServerConfig, checkpoint: str) -> list[str]:
    """What learns beside a server whose base model is `checkpoint`."""
    command = [sys.executable, "-m", "online_align", "run", "--data-dir", str(config.data_dir)]
    command += ["--checkpoint", checkpoint, "--evidence", config.evidence]
    command += ["--judge", config.judge, "--recogniser", config.recogniser]
    command += ["--judge-model", config.judge_model] if config.judge_model else []
    command += ["--loss", config.loss, "--beta", str(config.beta)]
    command += ["--pairs-per-round", str(config.pairs_per_round), "--every", str(config.round_every_s)]
    command += ["--answers", *config.answers] if config.answers else []
    return command


def learner_of(config: ServerConfig) -> "Learner":
    """Make the learner of a server that begins."""
    command = command_of(config, config.checkpoint)
    # The database's URL may hold a password, and whoever is on the machine reads command lines.
    known = {} if config.journal_url is None else {"DUOLOGUE_JOURNAL_URL": config.journal_url}
    return Learner(command, may_start=lambda: exists(config.data_dir, config.journal_url), environment=known)


class Learner:
    """One command that is to run all the time, once `may_start` says so. `pause_s` is the shortest between two.

    It gets the server's environment without its secrets, and `environment` besides.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        may_start: Callable[[], bool],
        environment: Mapping[str, str] = MappingProxyType({}),
        pause_s: float = _SHORTEST_PAUSE_S,
    ) -> None:
        self.pid: int | None = None
        """Of the process; None while there is none."""
        self._command = list(command)
        self._may_start = may_start
        self._environment = environment
        self._pause_s = pause_s
        self._changed = asyncio.Event()

    def become(self, command: Sequence[str]) -> None:
        """Run this from now on: a process with another command is ended, and the next begins at once."""
        if self._command != list(command):
            self._command = list(command)
            self._changed.set()

    async def run(self) -> None:
        """Keep it running, until cancelled; then end it."""
        while not await asyncio.to_thread(self._may_start):  # noqa: ASYNC110 - a file, which tells nobody
            await asyncio.sleep(_LOOK_S)
        pause_s = self._pause_s
        while True:
            began = time.monotonic()
            outcome = await self._live()
            if self._changed.is_set():
                log.info("%s; it is started with another base model", outcome)
                pause_s = self._pause_s
                continue
            lived_s = time.monotonic() - began
            pause_s = self._pause_s if lived_s > _WELL_S else pause_s
            log.warning("%s after %.1f s; it is started again in %.1f s", outcome, lived_s, pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _live(self) -> str:
        """Start it, pass on what it says, and wait for its end, or for another command. Says how that was."""
        self._changed.clear()
        child = [sys.executable, "-m", "server.child", str(os.getpid()), *self._command]
        environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
        environment.update(self._environment)
        environment.setdefault("OMP_NUM_THREADS", "1")
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *child, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=asyncio.subprocess.STDOUT, env=environment
            )
        except OSError as problem:
            return f"it cannot be started ({problem.strerror})"
        self.pid = process.pid
        log.info("started as process %d", process.pid)
        assert process.stdout is not None, "it was asked for"
        words = asyncio.create_task(_pass_on(process.stdout), name="learner-words")
        change = asyncio.create_task(self._changed.wait(), name="learner-change")
        try:
            await asyncio.wait({words, change}, return_when=asyncio.FIRST_COMPLETED)
            if self._changed.is_set():
                await _end(process)
                await asyncio.wait({words}, timeout=_LAST_WORDS_S)
            return f"it ended with code {await process.wait()}"
        finally:
            words.cancel()
            change.cancel()
            await _end(process)
            self.pid = None


async def _pass_on(output: asyncio.StreamReader) -> None:
    """Log its lines; of one that is written over again and again, as a progress bar is, the last state."""
    rest = b""
    while chunk := await output.read(_CHUNK):
        *lines, rest = _BREAKS.split(rest + chunk)
        for line in lines:
            _say(line)
        rest = rest.rpartition(b"\r")[2][-_LONGEST_LINE:]
    _say(rest)


def _say(line: bytes) -> None:
    text = line.rpartition(b"\r")[2][:_LONGEST_LINE].decode(errors="replace").strip()
    if text:
        log.info("%s", text)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask it to end, and see to it."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_S):
            await process.wait()
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
