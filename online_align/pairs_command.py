"""`duologue-align pairs`: make preference pairs from a journal, list them, or hear both sides of one."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from online_align import judging
from online_align.on_journal import add_place, at_least_one, do_on_journal
from online_align.pair_mix import Mix
from online_align.pair_store import PairStore, PairSummary
from online_align.records import Pair, PairKind
from server.engine import model_name
from server.journal import Journal, JournalError

__all__ = ["run"]

_CONTEXT_S: Final = 8.0


def run(arguments: Sequence[str]) -> int:
    """Do it. Returns 0, or 1 when something cannot be read, judged, said or written."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.wav and asked.inspect is None:
        parser.error("--wav needs --inspect ID: which pair is to be heard?")
    if asked.wav and asked.wav[0].absolute() == asked.wav[1].absolute():
        parser.error(f"--wav got {asked.wav[0]} twice; expected one file for each side")
    asked.do = _inspect if asked.inspect is not None else _list if asked.list else _build
    return do_on_journal(asked)


def _build(journal: Journal, asked: argparse.Namespace) -> int:
    from online_align.pairs import PairBuilder, PairSettings  # noqa: PLC0415 - torch takes seconds
    from online_align.replay import load  # noqa: PLC0415

    mix = Mix(per_user=asked.per_user, free=asked.free)
    settings = PairSettings(
        kinds=tuple(asked.kinds), min_confidence=asked.min_confidence, branches=asked.branches, mix=mix
    )
    builder = PairBuilder(
        journal,
        load(asked.checkpoint),
        data_dir=asked.data_dir,
        settings=settings,
        judge=judging.judge_of(asked),
        recogniser=judging.recogniser_of(asked.recogniser),
    )
    tally = builder.build(limit=asked.sessions, progress=None if asked.json else _progress)
    if asked.json:
        print(msgspec.json.encode(tally).decode())
        return 0
    print(f"{tally.sessions} calls, {tally.made.total()} pairs made, {tally.known} known")
    for name, counts in (("complaints", tally.complaints), ("made", tally.made), ("refused", tally.refused)):
        for what, count in sorted(counts.items()):
            print(f"  {name:10} {count:5}  {what}")
    return 0


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{line}", end="", file=sys.stderr, flush=True)


def _list(journal: Journal, asked: argparse.Namespace) -> int:
    found = PairStore(journal).summaries(kinds=asked.kinds, limit=asked.sessions)
    if asked.json:
        print(msgspec.json.encode(found).decode())
        return 0
    for each in found:
        print(_line(each))
    return 0


def _line(each: PairSummary) -> str:
    made = time.strftime("%Y-%m-%d %H:%M", time.gmtime(each.made_at))
    marks = each.evidence.scores
    judged = f"  {marks['rejected']:.1f} -> {marks['chosen']:.1f}" if {"chosen", "rejected"} <= marks.keys() else ""
    held = "  held out" if each.heldout else ""
    sure = f"{each.evidence.rule} {each.evidence.confidence:.2f}"
    return f"{each.id}  {each.kind}  {made}  call {each.session} frame {each.at_tick}  {sure}{judged}{held}"


def _inspect(journal: Journal, asked: argparse.Namespace) -> int:
    pair = PairStore(journal).get(asked.inspect)
    about = journal.reader.session(pair.session)
    frame_s = 1 / about.frame_rate
    if asked.wav:
        _write(pair, about, asked)
    told: dict[str, Any] = {
        "id": pair.id,
        "kind": pair.kind.value,
        "session": pair.session,
        "parts_at_s": round(pair.at_tick * frame_s, 2),
        "event_s": round((pair.at_tick + pair.event) * frame_s, 2),
        "context_s": round(len(pair.context_PK) * frame_s, 2),
        "policy": pair.policy,
        "heldout": pair.heldout,
        "evidence": msgspec.to_builtins(pair.evidence),
        "chosen": {"words": pair.chosen.words, "seconds": round(len(pair.chosen.tokens_TK) * frame_s, 2)},
        "rejected": {"words": pair.rejected.words, "seconds": round(len(pair.rejected.tokens_TK) * frame_s, 2)},
    }
    if asked.json:
        print(msgspec.json.encode(told).decode())
        return 0
    for name, value in told.items():
        print(f"{name:12} {value}")
    for path in asked.wav or ():
        print(f"wrote {path}: the caller left, the model right")
    return 0


def _write(pair: Pair, about: Any, asked: argparse.Namespace) -> None:
    """Write both sides, each after as much of the shared past as helps to understand it.

    Raises `JournalError` where that cannot be heard with this model, or not be written there.
    """
    import numpy as np  # noqa: PLC0415
    import soundfile  # noqa: PLC0415

    from online_align.replay import load, voices  # noqa: PLC0415

    checkpoint = load(asked.checkpoint)
    if model_name(checkpoint.name) != about.checkpoint:
        raise JournalError(
            got=f"a pair of a call with {about.checkpoint}, to be heard with {model_name(checkpoint.name)}",
            expected="the model that was called: another's codec makes other sounds of the same tokens",
            remedy="name it with --checkpoint",
        )
    before = pair.context_PK[-round(_CONTEXT_S * about.frame_rate) :]
    for path, side in zip(asked.wav, (pair.chosen, pair.rejected), strict=True):
        sound = voices(checkpoint, about, np.concatenate([before, side.tokens_TK]))
        try:
            soundfile.write(path, sound.T, int(checkpoint.mimi.sample_rate), format="WAV")
        except (soundfile.SoundFileError, OSError) as problem:
            raise JournalError(
                got=f"{path}, which cannot be written ({problem})",
                expected="a file in a folder that is there and can be written to",
                remedy="name another with --wav",
            ) from problem


def _kinds(text: str) -> list[PairKind]:
    try:
        return [PairKind(letter.strip().upper()) for letter in text.split(",")]
    except ValueError as problem:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected letters of A, B, C, D, as in B,D") from problem


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="duologue-align pairs",
        description="Make preference pairs from the calls in a journal; running it again adds what is new.",
    )
    add_place(parser)
    parser.add_argument("--checkpoint", default="mini", help="the model that was called (default: %(default)s)")
    parser.add_argument("--kinds", type=_kinds, default=list(PairKind), help="of A,B,C,D (default: all)")
    parser.add_argument(
        "--sessions", type=at_least_one, default=1000, help="the newest so many calls, or pairs of --list"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="list what there is")
    what.add_argument("--inspect", metavar="ID", help="tell all about one pair")
    parser.add_argument(
        "--wav", type=Path, nargs=2, metavar=("CHOSEN", "REJECTED"), help="with --inspect: write both sides as sound"
    )
    parser.add_argument("--min-confidence", type=float, default=0.5, help="of a complaint (default: %(default)s)")
    parser.add_argument(
        "--branches", type=at_least_one, default=8, help="samples a judge chooses from (default: %(default)s)"
    )
    parser.add_argument(
        "--per-user", type=at_least_one, default=Mix().per_user, help="pairs of one caller (default: %(default)s)"
    )
    parser.add_argument(
        "--free", type=int, default=Mix().free, help="pairs of a kind whatever the mix (default: %(default)s)"
    )
    judging.add_arguments(parser, judge="rules", recogniser="auto")
    return parser
