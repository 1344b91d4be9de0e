"""`duologue`, also `python -m client`: pick the command, and load only what that command needs."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Final

from client import say, talk
from client.load import command as load

__all__ = ["main"]


_COMMANDS: Final[dict[str, tuple[Any, str, str]]] = {
    "say": (
        say,
        "say a sound file and record the answer",
        "Say a sound file to the server, in real time, and record what it answers.",
    ),
    "talk": (
        talk,
        "talk with a microphone",
        "Talk to the server with a microphone and loudspeakers, or with sound files in their place.",
    ),
    "load": (
        load,
        "call with many callers at once, and measure",
        "Call a server of this machine with many synthetic callers in real time, and say how it held.",
    ),
}
"""Each is a module with `EXIT_CODES`, `add_arguments` and `run`; what it is for, in short and as a sentence."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command of the client and exit with its code."""
    arguments = build_parser().parse_args(argv)
    sys.exit(arguments.run(arguments))


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    parser = argparse.ArgumentParser(prog="duologue", description="Talk to a full-duplex speech dialogue server.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (module, purpose, description) in _COMMANDS.items():
        form = argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(
            name, help=purpose, description=description, epilog=module.EXIT_CODES, formatter_class=form
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    main()
