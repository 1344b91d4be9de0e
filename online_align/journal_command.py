"""`duologue-align journal WHAT`: look into a journal, also while the server runs; delete from it; replay calls."""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from online_align.on_journal import add_place, do_on_journal
from server.journal import Journal, export
from server.journal.adapter_records import folder_of
from server.journal.registry import AdapterRegistry

__all__ = ["run"]

_DAY_S: Final = 86_400.0


def run(arguments: Sequence[str]) -> int:
    """Do it. Returns 0, 1 when something is wrong with the journal or what was asked for is not there."""
    return do_on_journal(_parser().parse_args(arguments))


def _stats(journal: Journal, asked: argparse.Namespace) -> int:
    figures = msgspec.to_builtins(journal.reader.stats())
    newest = journal.reader.sessions(limit=asked.newest)
    if asked.json:
        print(msgspec.json.encode(figures | {"newest": newest}).decode())
        return 0
    for name, value in figures.items():
        print(f"{name:10} {value}")
    for row in newest:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(row.started_at))
        print(f"{row.id}  {began} UTC  {row.end_reason or 'goes on'}{'  train' if row.train else ''}")
    return 0


def _verify(journal: Journal, _asked: argparse.Namespace) -> int:
    faults = list(journal.reader.verify())
    for fault in faults:
        print(f"{fault.session or 'database'}: {fault.what}")
    print(f"{len(faults)} faults in {journal.reader.stats().sessions} sessions")
    return 1 if faults else 0


def _delete(journal: Journal, asked: argparse.Namespace) -> int:
    if asked.user is not None:
        gone = journal.removal.user(asked.user)
        print(f"{len(gone)} sessions deleted")
        return 0
    marked = journal.removal.session(asked.session)
    print(f"session {asked.session} deleted; {marked} adapters had learned from it")
    return 0


def _sweep(journal: Journal, asked: argparse.Namespace) -> int:
    print(f"{len(journal.removal.sweep(older_than_s=asked.days * _DAY_S))} sessions deleted")
    return 0


def _export(journal: Journal, asked: argparse.Namespace) -> int:
    asked.out.write_bytes(export(journal.reader, asked.session))
    print(f"wrote {asked.out}")
    return 0


def _replay(journal: Journal, asked: argparse.Namespace) -> int:
    from online_align.replay import Takeover, load, replay, voices  # noqa: PLC0415 - torch takes seconds

    about, columns = journal.reader.session(asked.session), journal.reader.columns(asked.session)
    checkpoint = load(asked.checkpoint or about.checkpoint)
    adapter, takeovers = asked.adapter, []
    if adapter is None and not asked.base:
        adapter = _folder(journal, asked.data_dir, about.adapter)
        takeovers = [
            Takeover(step=change.step, adapter=_folder(journal, asked.data_dir, change.adapter))
            for change in journal.reader.adapter_changes(asked.session)
        ]
    again = replay(checkpoint, about, columns, adapter=adapter, takeovers=takeovers)
    frames = len(again.tokens_TK)
    if again.first_difference is None:
        print(f"{frames} frames, the same to the last token")
    else:
        at_s = again.first_difference / about.frame_rate
        print(f"{frames} frames, {again.differing} of them other, the first at {at_s:.2f} s")
    if asked.wav or asked.timeline:
        sides = voices(checkpoint, about, again.tokens_TK)
        _publish(journal, asked, checkpoint, again.tokens_TK, sides)
    return 0


def _transcribe(journal: Journal, asked: argparse.Namespace) -> int:
    from online_align.repeats import add_repeats  # noqa: PLC0415
    from online_align.replay import load  # noqa: PLC0415
    from online_align.transcribe import Whisper  # noqa: PLC0415

    if asked.session is not None:
        calls = [journal.reader.session(asked.session)]
    else:
        newest = journal.reader.sessions(trainable=True, limit=asked.newest)
        calls = [about for about in newest if about.ended_at is not None]
    recogniser, checkpoints = Whisper(asked.recogniser), {}
    for about in calls:
        name = asked.checkpoint or about.checkpoint
        if name not in checkpoints:
            checkpoints[name] = load(name)
        found = add_repeats(journal, checkpoints[name], about, recogniser)
        print(f"{about.id}: {len(found)} repeats" + "".join(f", at {each.t0:.1f} s" for each in found))
    return 0


def _folder(journal: Journal, data_dir: Path, adapter: str) -> Path | None:
    """Where an adapter lies that a call was spoken with; None for the base model."""
    return folder_of(data_dir, AdapterRegistry(journal.engine).get(adapter)) if adapter else None


def _publish(journal: Journal, asked: argparse.Namespace, checkpoint: Any, tokens_TK: Any, sides: Any) -> None:
    from online_align.timeline import draw, words  # noqa: PLC0415

    lm, rate = checkpoint.lm, int(checkpoint.mimi.sample_rate)
    if asked.wav:
        import soundfile  # noqa: PLC0415

        soundfile.write(asked.wav, sides.T, rate)
        print(f"wrote {asked.wav}: the caller left, the model right")
    if asked.timeline:
        silent = frozenset((int(lm.text_padding_token_id), int(lm.end_of_text_padding_id)))
        frame_s = 1 / journal.reader.session(asked.session).frame_rate
        said = words(checkpoint.text_tokenizer, tokens_TK[:, 0], silent, frame_s=frame_s)
        signals = journal.reader.signals(asked.session)
        draw(asked.timeline, sides, said, signals, sample_rate=rate, title=f"call {asked.session}")
        print(f"wrote {asked.timeline}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="duologue-align journal", description="Look into a server's journal.")
    add_place(parser)
    kinds = parser.add_subparsers(required=True, metavar="WHAT")

    def kind(name: str, do: Callable[[Journal, argparse.Namespace], int], purpose: str) -> argparse.ArgumentParser:
        made = kinds.add_parser(name, help=purpose, description=purpose)
        add_place(made, again=True)
        made.set_defaults(do=do)
        return made

    stats = kind("stats", _stats, "count what there is, and name the newest calls")
    stats.add_argument("--newest", type=int, default=10)
    stats.add_argument("--json", action="store_true")
    kind("verify", _verify, "open every row and say what is wrong")
    deletion = kind("delete", _delete, "delete a call, or all calls of somebody, for good")
    which = deletion.add_mutually_exclusive_group(required=True)
    which.add_argument("--session", metavar="ID")
    which.add_argument("--user", metavar="HASH")
    sweep = kind("sweep", _sweep, "delete calls older than so many days")
    sweep.add_argument("--days", type=float, required=True)
    exporting = kind("export", _export, "write everything that is known of a call, as JSON")
    exporting.add_argument("--session", metavar="ID", required=True)
    exporting.add_argument("--out", type=Path, required=True)
    hearing = kind("transcribe", _transcribe, "find what callers said twice, with a recogniser; the words are not kept")
    hearing.add_argument("--session", metavar="ID", help="one call (default: the newest that may be trained on)")
    hearing.add_argument("--newest", type=int, default=1000, help="how many of them (default: %(default)s)")
    hearing.add_argument("--checkpoint", default=None, help="default: the one that was called")
    hearing.add_argument("--recogniser", default=None, help="folder or name of a faster-whisper model")
    again = kind("replay", _replay, "run a call again and compare; render it")
    again.add_argument("--session", metavar="ID", required=True)
    again.add_argument("--checkpoint", default=None, help="default: the one that was called")
    other = again.add_mutually_exclusive_group()
    other.add_argument("--adapter", type=Path, default=None, help="folder of an adapter to speak with throughout")
    other.add_argument("--base", action="store_true", help="speak without adapter (default: those of the call)")
    again.add_argument("--wav", type=Path, default=None, help="write both sides as they sound")
    again.add_argument("--timeline", type=Path, default=None, help="write a picture of the call")
    return parser
