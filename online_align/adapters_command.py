"""`duologue-align adapters WHAT`: which adapters there are and why, moving them by hand, judging and comparing them.

Works on the journal's tables and the data folder; a server that runs follows within a second or two, and none is
needed: what is known of servers is said (`served`). It decides nothing: the gate's verdict is needed whoever promotes.
What loads a model takes its place behind the server (`background`).
"""

import argparse
from collections.abc import Callable, Sequence

import msgspec

from online_align.background import add_background, step_back
from online_align.bases import base_of, newest_base
from online_align.on_journal import add_place, do_on_journal, shown
from online_align.release import GateJudge, ReleaseSettings, submit, verdict_of
from online_align.served import served, when
from online_align.verdicts import Outcome, Verdict
from server.journal import Journal
from server.journal.registry import AdapterRegistry, AdapterRow, AdapterState, RegistryError, folder_of

__all__ = ["run"]


def run(arguments: Sequence[str]) -> int:
    """Do it. Returns 0, or 1 when something is refused or not there."""
    return do_on_journal(_parser().parse_args(arguments))


def _list(journal: Journal, asked: argparse.Namespace) -> int:
    rows = AdapterRegistry(journal.engine).list()
    if asked.json:
        servers = {row.id: served(journal, row) for row in rows}
        print(msgspec.json.encode({"adapters": rows, "servers": servers}).decode())
        return 0
    if not rows:
        print("no adapters yet: everybody hears the base model")
    for row in rows:
        notes = filter(None, ["withdrawn" if row.withdrawn else "", served(journal, row).note(row.state)])
        parent = shown(row.parent) or "the base model"
        print("  ".join((f"{shown(row.id):24} {row.state:12} {when(row.changed_at)}", f"from {parent}", *notes)))
    return 0


def _show(journal: Journal, asked: argparse.Namespace) -> int:
    registry = AdapterRegistry(journal.engine)
    row, said = registry.get(asked.id), registry.verdicts(asked.id)
    sessions, seen = registry.sessions_of(asked.id), served(journal, row)
    if asked.json:
        verdicts = [{"stage": each.stage, "at": each.at, "verdict": verdict_of(each)} for each in said]
        told = {"adapter": row, "server": seen, "sessions": sessions, "verdicts": verdicts}
        print(msgspec.json.encode(told).decode())
        return 0
    parent = row.parent or "the base model"
    print(shown(f"{row.id}: {row.state} since {when(row.changed_at)}, made {when(row.made_at)}"))
    print(shown(f"base {row.checkpoint}, from {parent}, learned from {len(sessions)} calls"))
    print(shown(f"files {row.path}, SHA-256 {row.sha256}"))
    if row.withdrawn:
        print("withdrawn: it learned from a call that was deleted, so it goes to nobody any more")
    _say(seen.sentences(row))
    for each in said:
        print()
        _say_verdict(f"{when(each.at)} {each.stage}", verdict_of(each))
    return 0


def _judge(journal: Journal, asked: argparse.Namespace) -> int:
    row = AdapterRegistry(journal.engine).get(asked.id)
    if row.state is not AdapterState.STAGED:
        raise RegistryError(
            got=f"adapter {row.id!r}, which is {row.state}",
            expected="one that is staged",
            remedy="see with `adapters show` what was said of it",
        )
    newest = newest_base(journal)
    if asked.checkpoint is None and newest is not None and not newest.is_same(base_of(row)):
        raise RegistryError(
            got=f"adapter {row.id!r}, which was learned on {row.checkpoint}, while calls have {newest.checkpoint}",
            expected="one that calls can have",
            remedy="name with --checkpoint the model that is to serve: its gate says what becomes of the adapter",
        )
    step_back(asked.threads, asked.priority)
    from server.engine import model_name  # noqa: PLC0415 - loads torch, which most words here never need

    checkpoint = asked.checkpoint or row.checkpoint
    settings = ReleaseSettings(data_dir=asked.data_dir, checkpoint=model_name(checkpoint), evidence=asked.evidence)
    verdict = submit(journal, row.id, settings, judge=GateJudge(checkpoint))
    row = AdapterRegistry(journal.engine).get(row.id)
    if asked.json:
        print(msgspec.json.encode({"adapter": row, "verdict": verdict}).decode())
    else:
        _say_verdict("gate", verdict)
        print(shown(f"{row.id} is {row.state}"))
    return 0 if verdict.passed else 1


def _promote(journal: Journal, asked: argparse.Namespace) -> int:
    reason = f"An operator promoted it: {asked.reason}"
    return _moved(journal, AdapterRegistry(journal.engine).promote(asked.id, reason=reason), asked)


def _roll_back(journal: Journal, asked: argparse.Namespace) -> int:
    registry = AdapterRegistry(journal.engine)
    registry.roll_back(asked.id, reason=f"An operator took it back: {asked.reason}")
    return _moved(journal, registry.get(asked.id), asked, live=registry.live())


def _moved(journal: Journal, row: AdapterRow, asked: argparse.Namespace, *, live: AdapterRow | None = None) -> int:
    seen = served(journal, row)
    if asked.json:
        print(msgspec.json.encode({"adapter": row, "server": seen, "live": live}).decode())
        return 0
    print(shown(f"{row.id} is {row.state}"))
    if row.state is AdapterState.ROLLED_BACK:
        print(f"live is {shown(live.id) if live else 'the base model'}")
    else:
        _say(seen.sentences(row))
    return 0


def _say_verdict(by: str, verdict: Verdict) -> None:
    print(f"{by}: {'passed' if verdict.passed else 'refused'}. {shown(verdict.reason)}")
    for check in verdict.checks:
        mark = {Outcome.PASSED: "ok", Outcome.FAILED: "NO", Outcome.UNKNOWN: "? "}[check.outcome]
        figures = f"{_number(check.value):>8} {_number(check.base):>8}"
        print(shown(f"  {mark} {check.name:26} {figures}  {check.limit}"))


def _say(sentences: Sequence[str]) -> None:
    for each in sentences:
        print(shown(each))


def _diff(journal: Journal, asked: argparse.Namespace) -> int:
    registry = AdapterRegistry(journal.engine)
    rows = [None if name == "base" else registry.get(name) for name in (asked.first, asked.second)]
    step_back(asked.threads, asked.priority)
    # Loads torch and a model, which most words here never need.
    from online_align.compare import Compared, compare  # noqa: PLC0415
    from online_align.gate import Gate, GateSettings  # noqa: PLC0415
    from online_align.probes import Sizes  # noqa: PLC0415

    sides = [
        None if row is None else Compared(folder=folder_of(asked.data_dir, row), sha256=row.sha256) for row in rows
    ]
    checkpoint = asked.checkpoint or next((row.checkpoint for row in rows if row is not None), "mini")
    sizes = Sizes(question=16, pause=12, interruption=8, hum=6, nobody=3) if asked.quick else Sizes()
    found = compare(Gate(checkpoint, GateSettings(sizes=sizes)), sides[0], sides[1])
    if asked.json:
        print(msgspec.json.encode({"first": asked.first, "second": asked.second, "difference": found}).decode())
        return 0
    drift = found.drift
    print(f"KL of {asked.second} from {asked.first}: {drift.kl:.4g} nats a frame (99 %: {drift.kl_p99:.4g})")
    print(f"entropy over words: {drift.entropy_first:.3g} and {drift.entropy:.3g} nats\n")
    print(f"{'behaviour':28} {asked.first[:12]:>12} {asked.second[:12]:>12}  of")
    for name, one in found.first.items():
        print(f"{name:28} {_number(one.value):>12} {_number(found.second[name].value):>12}  {one.of} ({one.unit})")
    print(f"\n{'change beside its weight':44} {asked.first[:12]:>12} {asked.second[:12]:>12}")
    for layer, (one_norm, other_norm) in found.norms.items():
        print(f"{layer:44} {one_norm:12.5f} {other_norm:12.5f}")
    return 0


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="duologue-align adapters", description="Adapters: why, and where they are.")
    add_place(parser)
    kinds = parser.add_subparsers(required=True, metavar="WHAT")

    def kind(name: str, do: Callable[[Journal, argparse.Namespace], int], purpose: str) -> argparse.ArgumentParser:
        made = kinds.add_parser(name, help=purpose, description=purpose)
        add_place(made, again=True)
        made.add_argument("--json", action="store_true", help="print one JSON object")
        made.set_defaults(do=do)
        return made

    kind("list", _list, "name every adapter and its state")
    kind("show", _show, "one adapter with its verdicts, check by check").add_argument("id", metavar="ID")
    moves = (
        ("promote", _promote, "one step on: staged to canary, or canary to live"),
        ("rollback", _roll_back, "take a canary or live adapter back"),
    )
    for name, do, purpose in moves:
        move = kind(name, do, purpose)
        move.add_argument("id", metavar="ID")
        move.add_argument("--reason", default="no reason given", help="kept with the verdict")
    judging = kind("judge", _judge, "let the gate judge a staged adapter: it becomes the canary, or is rejected")
    judging.add_argument("id", metavar="ID")
    judging.add_argument(
        "--evidence", choices=("users", "turns", "gate"), default="users",
        help="what is to end its canary; with `gate` it goes live at once (default: %(default)s)",
    )  # fmt: skip
    comparison = kind("diff", _diff, "norms by layer, KL and behaviour of two adapters, or of one and `base`")
    comparison.add_argument("first", metavar="ID")
    comparison.add_argument("second", metavar="ID")
    comparison.add_argument("--quick", action="store_true", help="fewer probes")
    for computing in (judging, comparison):
        computing.add_argument("--checkpoint", default=None, help="default: the one it was learned on, by name")
        add_background(computing)
    return parser
