"""Flags for who judges replies and who hears callers, for every command that makes pairs, and what they stand for."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from online_align.judge import Judge
    from online_align.transcribe import Recogniser

__all__ = ["add_arguments", "judge_of", "recogniser_of"]


def add_arguments(parser: argparse.ArgumentParser, *, judge: str, recogniser: str) -> None:
    """Add the flags, with these defaults."""
    parser.add_argument(
        "--judge",
        default=judge,
        help="`rules`, `none`, or the base URL of an OpenAI-compatible endpoint, with /v1 (default: %(default)s)",
    )
    parser.add_argument(
        "--answers", type=Path, nargs="+", default=[], help="for `rules`: tables of right answers, TOML or JSON"
    )
    parser.add_argument(
        "--judge-model", default=os.environ.get("DUOLOGUE_JUDGE_MODEL", ""), help="model's name at the endpoint"
    )
    parser.add_argument("--judge-requests", type=int, default=2000, help="at most so many (default: %(default)s)")
    parser.add_argument(
        "--recogniser",
        default=recogniser,
        help="faster-whisper model, `none`, or `auto`: the dev extra's if installed (default: %(default)s)",
    )


def judge_of(asked: argparse.Namespace) -> "Judge | None":
    """Make the judge that was asked for. Raises `JudgeError` and what reading tables of answers raises."""
    if asked.judge == "none":
        return None
    if asked.judge == "rules":
        from online_align.answers import Answers  # noqa: PLC0415
        from online_align.judge_rules import RuleJudge  # noqa: PLC0415

        return RuleJudge(Answers.read(*asked.answers))
    from online_align.judge_endpoint import EndpointJudge, EndpointSettings  # noqa: PLC0415

    settings = EndpointSettings(url=asked.judge, model=asked.judge_model, max_requests=asked.judge_requests)
    return EndpointJudge(settings, cache=asked.data_dir / "judge")


def recogniser_of(which: str) -> "Recogniser | None":
    """Make the recogniser that was asked for; None where `auto` finds none. Raises `RecogniserError`."""
    if which == "none":
        return None
    from online_align.transcribe import RecogniserError, Whisper  # noqa: PLC0415

    try:
        return Whisper(None if which == "auto" else which)
    except RecogniserError as problem:
        if which != "auto":
            raise
        print(f"duologue-align: callers are not transcribed: {problem}", file=sys.stderr)
        return None
