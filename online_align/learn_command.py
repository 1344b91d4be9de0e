"""`duologue-align run` and `once`: the learner as a process. Reads flags, steps back behind everybody else, runs.

`once` makes one round of what waits and ends; `run` makes rounds until it is told to stop: when so many pairs wait, or
when so much time has passed and any do. Under `torchrun` several processes train one adapter. This file owns flags
and exit codes; `learning` owns what a learner does.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from online_align import judging
from online_align.background import add_background, step_back
from online_align.learning import Learner, opened
from online_align.on_journal import at_least_one, check_exists, device, port
from online_align.room import StorageError
from online_align.stopping import Stop, Stopped
from server.errors import DuologueError

__all__ = ["once", "parser", "run"]

log = logging.getLogger(__name__)

_NO_ROOM_S: Final = 60.0
"""Between two tries of a round that could not be written."""
_STOPPED: Final = {"run": 0, "once": 1}
"""Exit codes after SIGTERM or SIGINT: to `run` that is the end that was meant."""
_SETTINGS: Final = {
    "loss": "one of dpo, dpo-ln, simpo, apo-zero, ipo, cdpo, kto",
    "beta": "strength of the preference: each loss has its own best",
    "learning-rate": "of the temporal transformer's adapters",
    "batch": "pairs of one step",
    "rank": "of the adapters",
    "anchor": "weight of the supervised term",
    "replay": "chosen sides of earlier rounds for each new pair",
    "good": "good spans for each new pair",
    "audio-weight": "how much sound counts beside text: an ablation",
    "context-s": "seconds of the past that are read",
    "positions": "most positions read at once: bounds the memory",
    "seed": "of the order and of the adapter's beginning",
}


def run(arguments: Sequence[str]) -> int:
    """Make rounds until SIGTERM or SIGINT, also in the middle of one, which the next learner goes on with.

    Returns 0, or 1 after an error that will not mend itself.
    """
    return _started("run", arguments, _forever)


def once(arguments: Sequence[str]) -> int:
    """Make one round. Returns 0, also when nothing waits; 1 after an error, and when it is told to stop before."""
    return _started("once", arguments, _one)


def _started(name: str, arguments: Sequence[str], work: Callable[[Learner, argparse.Namespace], int]) -> int:
    asked = parser(name).parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    stop = Stop()
    try:
        with stop.heeded():
            if name == "once":  # `run` waits for a journal
                check_exists(asked)
            step_back(asked.threads, asked.priority)
            with opened(asked, _settings(asked), stop) as learner:
                return _until_stopped(name, work, learner, asked)
    except DuologueError as problem:
        print(f"duologue-align: {problem}", file=sys.stderr)
        return 1
    except Stopped:
        log.info("told to stop")
        return _STOPPED[name]


def _until_stopped(
    name: str, work: Callable[[Learner, argparse.Namespace], int], learner: Learner, asked: argparse.Namespace
) -> int:
    try:
        return work(learner, asked)
    except Stopped:
        log.info("told to stop%s", learner.left())
        return _STOPPED[name]


def _one(learner: Learner, asked: argparse.Namespace) -> int:
    made = learner.round(collect=True)
    if not learner.workers.first:
        return 0
    if asked.json:
        print(msgspec.json.encode(made).decode())
    else:
        print("no pair waits" if made is None else f"{made.adapter}: {made.outcome or made.stage}")
    return 0


def _forever(learner: Learner, asked: argparse.Namespace) -> NoReturn:
    last = time.monotonic()
    while True:
        due = time.monotonic() - last >= asked.every if asked.every else False
        try:
            if learner.is_due(asked.pairs_per_round, by_clock=due):
                learner.round()
                last = time.monotonic()
            elif due:
                last = time.monotonic()
        except StorageError as problem:
            log.error("tried again in %g s: %s", _NO_ROOM_S, problem)  # noqa: TRY400 - the sentence says all
            time.sleep(_NO_ROOM_S)
        time.sleep(asked.poll_s)


def _settings(asked: argparse.Namespace) -> Any:
    from online_align.settings import LearnerSettings  # noqa: PLC0415

    values: dict[str, Any] = {"checkpointing": asked.checkpointing}
    for flag, meant in _SETTINGS.items():
        name = flag.replace("-", "_")
        if (given := getattr(asked, name)) is None:
            continue
        try:
            msgspec.convert({name: given}, LearnerSettings, strict=False)
        except msgspec.ValidationError as problem:
            got = f"--{flag} {given!r} ({str(problem).partition(' - at ')[0]})"
            raise DuologueError(got=got, expected=meant, remedy="correct the flag") from problem
        values[name] = given
    return msgspec.convert(values, LearnerSettings, strict=False)


def parser(name: str) -> argparse.ArgumentParser:
    """Make the parser of `run` or `once`."""
    purpose = {"run": "Learn for as long as it runs.", "once": "Make one round of what waits."}[name]
    made = argparse.ArgumentParser(prog=f"duologue-align {name}", description=purpose)
    made.add_argument("--data-dir", type=Path, default=Path("data"), help="the server's data folder")
    url = os.environ.get("DUOLOGUE_JOURNAL_URL")
    made.add_argument("--journal-url", default=url, help="the database, where it is not in the data folder")
    made.add_argument("--checkpoint", default="mini", help="the base model: mini, a folder, or hf:owner/name")
    made.add_argument("--device", type=device, default="cpu", help="cpu or cuda (default: %(default)s)")
    add_background(made)
    made.add_argument("--most-pairs", type=at_least_one, default=512, help="in one round (default: %(default)s)")
    made.add_argument("--save-every", type=at_least_one, default=1, metavar="STEPS", help="how often a pass is saved")
    made.add_argument("--metrics-port", type=port, default=None, help="serve metrics there; 0 chooses a port")
    made.add_argument("--metrics-host", default="127.0.0.1", help="address for that (default: %(default)s)")
    made.add_argument("--metrics-textfile", type=Path, default=None, help="default: learner/metrics.prom")
    judging.add_arguments(made, judge="none", recogniser="none")
    made.add_argument("--no-collect", action="store_true", help="make no pairs: train on those that are there")
    made.add_argument("--no-release", action="store_true", help="stop when the adapter is staged: no gate, no canary")
    evidence = ("users", "turns", "gate")
    made.add_argument("--evidence", choices=evidence, default="users", help="what ends a canary (default: %(default)s)")
    made.add_argument("--checkpointing", action="store_true", help="less memory, a third slower")
    for flag, purpose in _SETTINGS.items():
        made.add_argument(f"--{flag}", default=None, help=purpose)
    if name == "once":
        made.add_argument("--json", action="store_true", help="print the round as JSON")
    else:
        made.add_argument("--pairs-per-round", type=at_least_one, default=32, help="that start one (%(default)s)")
        made.add_argument("--every", type=float, default=3600.0, metavar="S", help="seconds; 0 for never")
        made.add_argument("--poll-s", type=float, default=5.0, help="how often to look (default: %(default)s)")
    return made
