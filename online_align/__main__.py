"""`duologue-align`: picks the command. Each lives in a module of its own and is imported only when it is asked for."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

__all__ = ["main"]

COMMANDS: Final = {
    "adapters": ("online_align.adapters_command", "adapters: list, show, judge, promote, rollback, diff"),
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
        return code if int(os.environ.get("WORLD_SIZE", "1")) == 1 else _end(code)
    asked_for_help = given[:1] in (["-h"], ["--help"])
    out = sys.stdout if asked_for_help else sys.stderr
    print("usage: duologue-align COMMAND ...\n", file=out)
    for name, (_, purpose) in COMMANDS.items():
        print(f"  {name:10} {purpose}", file=out)
    if given and not asked_for_help:
        print(f"\ngot {given[0]!r}; expected one of {', '.join(COMMANDS)}", file=out)
    return 0 if asked_for_help else 2


def _end(code: int) -> NoReturn:
    """End one of `torchrun`'s processes without tearing the interpreter down.

    A thread of gloo may still be freeing a tensor that belongs to Python. It asks for the interpreter's lock, is ended
    in the middle of C++ and takes the process along with SIGABRT, though all work was done; `torchrun` ends everybody
    (pytorch/pytorch#179291). `destroy_process_group` does not join that thread while a sharded model holds the group.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
