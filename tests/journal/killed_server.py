"""A real server with real callers, killed with -9 while everybody talks, and what its journal then holds.

`python -m tests.journal.killed_server --rounds 10` does it again and again on one data folder and says what was lost.
"""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
from websockets.exceptions import ConnectionClosed

from client.local_server import free_port, is_ready
from online_align.replay import load, replay
from server.journal import Journal, open_journal
from tests.server.caller import Caller, calling, voice
from tests.tiny_checkpoint import write_tiny_checkpoint

ROOT = Path(__file__).parents[2]
FRAME_S = 0.08
VOICE = voice(50)


class Heard(msgspec.Struct, kw_only=True):
    """What one caller had from the server, with the monotonic time of each."""

    session: str
    replies_at: list[float] = msgspec.field(default_factory=list)
    feedback_at: list[float] = msgspec.field(default_factory=list)
    """Of the signals that came back for its own feedback."""


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """How old, when the server was killed, was the oldest thing that is not in the journal. 0 where nothing is."""

    frames_s: float
    signals_s: float
    frames: int
    """Frames that are there."""


async def talk(caller: Caller, greeted: asyncio.Event, killed: asyncio.Event) -> Heard:
    """Talk in real time, with an opinion now and then, until the server is gone."""
    await caller.greeted()
    greeted.set()
    heard = Heard(session=caller.session["id"])
    listening = asyncio.create_task(note(caller, heard))
    due, count = time.monotonic(), 0
    with contextlib.suppress(ConnectionClosed):
        while not killed.is_set():
            await caller.send(1, caller.encode(VOICE[count % len(VOICE)]))
            if count % 5 == 0:
                await caller.send(4, b'{"type":"feedback","value":"up"}')
            count += 1
            due += FRAME_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    return heard


async def note(caller: Caller, heard: Heard) -> None:
    """Write down when each message came: after it was handed to the journal, so never too early."""
    seen = 0
    while True:
        for kind, body in caller.messages[seen:]:
            if kind == 1:
                heard.replies_at.append(time.monotonic())
            elif kind == 4 and json.loads(body).get("kind") == "feedback":
                heard.feedback_at.append(time.monotonic())
        seen = len(caller.messages)
        await asyncio.sleep(0.01)


def kill_in_the_middle(checkpoint: Path, data: Path, *, callers: int, after_s: float) -> tuple[list[Heard], float]:
    """Serve, let everybody talk for so many seconds, kill. Returns what they had, and when it was."""
    port = free_port()
    command = [sys.executable, "-m", "server", "--checkpoint", str(checkpoint), "--port", str(port)]
    with subprocess.Popen([*command, "--data-dir", str(data), "--slots", str(callers)], cwd=ROOT) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            while not is_ready(url + "/readyz"):
                assert process.poll() is None, "the server ended by itself"
                time.sleep(0.1)
            return asyncio.run(_talk_and_kill(process, url, callers, after_s))
        finally:
            process.kill()


async def _talk_and_kill(
    process: "subprocess.Popen[bytes]", url: str, callers: int, after_s: float
) -> tuple[list[Heard], float]:
    killed = asyncio.Event()
    greeted = [asyncio.Event() for _ in range(callers)]

    async def one(begins: asyncio.Event) -> Heard:
        async with calling(url, "?consent=keep") as caller:
            return await talk(caller, begins, killed)

    talking = [asyncio.create_task(one(each)) for each in greeted]
    await asyncio.gather(*(each.wait() for each in greeted))
    await asyncio.sleep(after_s)
    killed_at = time.monotonic()
    process.send_signal(signal.SIGKILL)
    killed.set()
    return list(await asyncio.gather(*talking)), killed_at


def judge(journal: Journal, heard: Heard, killed_at: float) -> Lost:
    """Compare what a caller had with what the journal holds of the call."""
    if heard.session not in [row.id for row in journal.reader.sessions()]:
        ticks, feedbacks = 0, 0
    else:
        there = journal.reader.columns(heard.session).ticks_T
        assert np.array_equal(there, np.arange(len(there))), "no gaps"
        ticks = len(there)
        feedbacks = sum(each.kind == "feedback" for each in journal.reader.signals(heard.session))
    return Lost(
        frames_s=_age_s(heard.replies_at, ticks, killed_at),
        signals_s=_age_s(heard.feedback_at, feedbacks, killed_at),
        frames=ticks,
    )


def _age_s(at: list[float], kept: int, killed_at: float) -> float:
    return max(0.0, killed_at - at[kept]) if kept < len(at) else 0.0


def damage(journal: Journal) -> list[str]:
    """What is wrong. A key whose session's first row was not yet written is nothing."""
    return [fault.what for fault in journal.reader.verify() if fault.what != "a key without a session"]


def differing(checkpoint: Path, journal: Journal, sessions: list[str]) -> list[str]:
    """Calls that do not replay to the last token."""
    model = load(str(checkpoint))
    known = {row.id for row in journal.reader.sessions()}
    return [
        each
        for each in sessions
        if each in known
        and replay(model, journal.reader.session(each), journal.reader.columns(each)).first_difference is not None
    ]


def main() -> None:
    """Kill again and again, and print what each time cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--callers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, data = write_tiny_checkpoint(Path(folder) / "tiny"), Path(folder) / "data"
        worst_s, frames = 0.0, 0
        for number in range(asked.rounds):
            after_s = draw.uniform(0.1, 5.0)
            heard, killed_at = kill_in_the_middle(checkpoint, data, callers=asked.callers, after_s=after_s)
            journal = open_journal(data)
            lost = [judge(journal, each, killed_at) for each in heard]
            wrong = damage(journal) + differing(checkpoint, journal, [each.session for each in heard])
            journal.engine.dispose()
            oldest_s = max(max(each.frames_s, each.signals_s) for each in lost)
            worst_s, frames = max(worst_s, oldest_s), frames + sum(each.frames for each in lost)
            print(
                f"round {number}: killed after {after_s:.2f} s, oldest lost {oldest_s:.2f} s, wrong: {wrong}",
                flush=True,
            )
        print(f"{asked.rounds} kills, {frames} frames kept, the oldest thing lost was {worst_s:.2f} s old")


if __name__ == "__main__":
    main()
