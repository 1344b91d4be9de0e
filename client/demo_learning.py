"""The demo's second half: people hesitate, the model takes their pauses, learns from it and stops, while it serves.

Recorded people call over the real socket and permit learning: some stop in the middle of a question, others do not,
and what those get shows the learner what is to stay. One call goes on all the time. `duologue-align once` is another
process that makes pairs of what was kept, trains an adapter, lets the gate judge it and puts it live; the server moves
the call that is under way. Then other people ask the same kind of question again. This file tells the story and counts;
it knows of learning only the command and what the server says.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from client.call import CallReport, hold_call
from client.demo_people import Asking, hesitations, load_people, plain_questions
from client.errors import ClientError
from client.judge import agrees
from client.link import open_link
from client.local_server import local_server
from client.recording import Recording
from client.sound import FRAME_S, FRAME_SIZE, Pcm

__all__ = ["Count", "Learned", "learn_while_serving", "table"]

_SAMPLING: Final = {"text_temperature": "0", "audio_temperature": "0"}
_CONSENT: Final = {"consent": "keep,train"}
_PAUSE_S: Final = 1.0
_SLOTS: Final = 17
_AT_ONCE: Final = 16
_SPEED: Final = 2.0
_LATE_S: Final = 0.08
_ROUND_S: Final = 1200.0
"""The learner computes when nothing else does: a minute, on a busy machine many."""
_TRAINING: Final = ("--batch", "4", "--learning-rate", "1.3e-3")
"""Some dozens of pairs are little to learn from, hence the steps are large; of single pairs some went astray."""
_MOVED_S: Final = 20.0
_SETTLE_S: Final = 2.0


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """How a group of calls went."""

    calls: int
    pauses: int
    """How many callers stopped in the middle."""
    took_pause: int
    """The model began before the caller had asked everything."""
    right: int
    said: tuple[str, ...]
    """The model's words in each call."""
    adapter: str | None


class Learned(msgspec.Struct, frozen=True, kw_only=True):
    """The whole story in figures."""

    before: Count
    taught: Count
    """The calls that it learned from."""
    after: Count
    round: dict[str, object]
    """What the learner says of its round."""
    round_s: float
    live_from: str | None
    """What the call that went on all the time spoke with at its beginning,"""
    live_to: str | None
    """and at its end."""
    live_dropped_ms: int

    @property
    def changed(self) -> int:
        """How many of those who asked twice were answered in other words."""
        return sum(was != now for was, now in zip(self.before.said, self.after.said, strict=True))

    @property
    def happened(self) -> bool:
        """Whether an adapter went live under a call, is heard, and takes fewer pauses than the model did before."""
        moved = self.live_to is not None and self.live_from != self.live_to
        return moved and self.changed > 0 and self.after.took_pause < self.before.took_pause


def learn_while_serving(
    checkpoint: str, folder: Path, *, hesitant: int = 48, plain: int = 96, askers: int = 32
) -> Learned:
    """Run it all with a fresh data folder below `folder`.

    So many permit learning: `hesitant` with a pause, `plain` without; the askers use other words. Raises ClientError.
    """
    people = load_people()
    known, new = ([p for p in people if (p.wording == "heldout") == asks] for asks in (False, True))
    asking = hesitations(new, askers, pause_s=_PAUSE_S, seed=2)
    stopping = hesitations(known, hesitant, pause_s=_PAUSE_S, seed=3)
    teaching = [*stopping, *plain_questions(known, plain, seed=4)]
    data = folder / "data"
    shutil.rmtree(data, ignore_errors=True)
    stop = len(stopping) + 2 * len(asking)
    print(f"{stop} callers stop for a second in the middle of a question, {plain} do not")
    flags = ["--slots", str(_SLOTS), "--data-dir", str(data), "--swap-live"]
    with local_server(checkpoint, log=folder / "learning.log", flags=flags) as url:
        return asyncio.run(_story(url, checkpoint, data, teaching, asking))


def table(learned: Learned) -> str:
    """Before and after, for people who read."""
    before, after = learned.before, learned.after
    lines = [
        f"{'':28}{'before':>10}{'after':>10}",
        f"{'pauses taken':28}{_of(before.took_pause, before.pauses):>10}{_of(after.took_pause, after.pauses):>10}",
        f"{'questions answered right':28}{_of(before.right, before.calls):>10}{_of(after.right, after.calls):>10}",
    ]
    lines.append(f"{learned.changed} of {after.calls} questions were answered in other words than before.")
    change = f"{learned.live_from or 'the base model'} and then with {learned.live_to or 'the same'}"
    lines.append(
        f"The call that went on all the time spoke with {change}; {learned.live_dropped_ms} ms of it were lost."
    )
    return "\n".join(lines)


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole}"


async def _story(
    url: str, checkpoint: str, data: Path, teaching: Sequence[Asking], asking: Sequence[Asking]
) -> Learned:
    over = asyncio.Event()
    live = asyncio.create_task(_go_on_calling(url, over))
    try:
        before = await _group(url, asking, {})
        _tell("before", before)
        taught = await _group(url, teaching, _CONSENT)
        _tell("calls that permit learning", taught)
        await asyncio.sleep(_SETTLE_S)  # the journal commits several times a second
        began_at = time.monotonic()
        made = await asyncio.to_thread(_one_round, data, checkpoint)
        round_s = time.monotonic() - began_at
        print(f"one round of learning in {round_s:.0f} s: {made.get('outcome') or made.get('stage')}")
        moved_to = await _wait_for_move(url)
        after = await _group(url, asking, {})
        _tell("after", after)
    finally:
        over.set()
        report = await live
    return Learned(
        before=before,
        taught=taught,
        after=after,
        round=made,
        round_s=round(round_s, 1),
        live_from=report.adapter,
        live_to=moved_to,
        live_dropped_ms=report.dropped_ms + report.skipped_ms,
    )


async def _group(url: str, asked: Sequence[Asking], query: dict[str, str]) -> Count:
    """Let them all call, some at a time, and count."""
    turnstile = asyncio.Semaphore(_AT_ONCE)

    async def one(question: Asking) -> CallReport:
        async with turnstile, open_link(url, query=_SAMPLING | query) as link:
            with Recording() as recording:
                return await hold_call(link, question.frames(), recording, url=url, speed=_SPEED)

    reports = await asyncio.gather(*(one(question) for question in asked))
    pairs = list(zip(asked, reports, strict=True))
    paused = [(q, r) for q, r in pairs if q.pause_at_s is not None]
    return Count(
        calls=len(pairs),
        pauses=len(paused),
        took_pause=sum(bool(r.pieces) and r.pieces[0].t_s + _LATE_S < q.end_s for q, r in paused),
        right=sum(agrees(q.expected, r.text) for q, r in pairs),
        said=tuple(r.text for r in reports),
        adapter=next((r.adapter for r in reports if r.adapter), None),
    )


async def _go_on_calling(url: str, over: asyncio.Event) -> CallReport:
    """One call in real time that says nothing and hears everything, until it is over."""
    async with open_link(url, query=_SAMPLING) as link:
        with Recording() as recording:
            return await hold_call(link, _until(over), recording, url=url)


def _until(over: asyncio.Event) -> Iterator[Pcm]:
    rng = np.random.default_rng(0)
    while not over.is_set():
        yield (3e-4 * rng.standard_normal(FRAME_SIZE)).astype(np.float32)


def _one_round(data: Path, checkpoint: str) -> dict[str, object]:
    """The learner as a process of its own. Raises ClientError when it fails or has nothing to learn from."""
    command = [sys.executable, "-m", "online_align", "once", "--data-dir", str(data), "--checkpoint", checkpoint]
    command += ["--evidence", "gate", *_TRAINING, "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ROUND_S, check=False)
    except subprocess.TimeoutExpired as problem:
        raise ClientError(
            f"The learner made no round in {_ROUND_S:g} s: it computes when nothing else does. Try again on a machine"
            " that does less meanwhile."
        ) from problem
    made = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 and done.stdout.strip() else None
    if not isinstance(made, dict):
        raise ClientError(f"The learner made no round (code {done.returncode}): {done.stderr.strip()[-600:]}")
    return made


async def _wait_for_move(url: str) -> str | None:
    """Until the call that is under way speaks with something new, or has had time enough."""
    deadline = time.monotonic() + _MOVED_S
    while time.monotonic() < deadline:
        for session in await asyncio.to_thread(_sessions, url):
            if session.get("adapter"):
                return str(session["adapter"])
        await asyncio.sleep(FRAME_S)
    return None


def _sessions(url: str) -> list[dict[str, object]]:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url.replace("ws://", "http://") + "/api/sessions", timeout=10) as response:
        found: list[dict[str, object]] = json.load(response)["sessions"]
    return found


def _tell(name: str, count: Count) -> None:
    with_ = f", with {count.adapter}" if count.adapter else ""
    took, right = _of(count.took_pause, count.pauses), _of(count.right, count.calls)
    print(f"{name}: it took {took} pauses and answered {right} right{with_}")
