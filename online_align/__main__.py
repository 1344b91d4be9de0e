"""`duologue-align`: picks the command. Each lives in a module of its own and is imported only when it is asked for."""

import importlib
import sys
from collections.abc import Sequence
from typing import Final

__all__ = ["main"]

COMMANDS: Final = {
    "adapters": ("online_align.adapters_command", "adapters: list, show, promote, rollback, diff"),
    "evaluate": ("online_align.evaluate.command", "measure what the project claims"),
    "once": ("online_align.once_command", "make one round of learning from the pairs that wait"),
    "run": ("online_align.learn_command", "learn for as long as it runs: rounds by count of pairs or by the clock"),
    "journal": ("online_align.journal_command", "look into the journal: stats, verify, export, delete, replay"),
    "pairs": ("online_align.pairs_command", "make preference pairs from kept calls, list them, hear both sides"),
}
"""Every command's module, which has `run(arguments) -> exit code`, and what it is for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code; 2 for no or an unknown one."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in COMMANDS:
        module, _ = COMMANDS[given[0]]
        code: int = importlib.import_module(module).run(given[1:])
        return code
    asked_for_help = given[:1] in (["-h"], ["--help"])
    out = sys.stdout if asked_for_help else sys.stderr
    print("usage: duologue-align COMMAND ...\n", file=out)
    for name, (_, purpose) in COMMANDS.items():
        print(f"  {name:10} {purpose}", file=out)
    if given and not asked_for_help:
        print(f"\ngot {given[0]!r}; expected one of {', '.join(COMMANDS)}", file=out)
    return 0 if asked_for_help else 2


if __name__ == "__main__":
    sys.exit(main())
