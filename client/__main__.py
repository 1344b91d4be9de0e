"""`duologue`, also `python -m client`: pick the command, and load only what that command needs."""

import argparse
import sys
from collections.abc import Sequence

from client import say, talk
from client.load import command as load

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command of the client and exit with its code."""
    arguments = build_parser().parse_args(argv)
    sys.exit(arguments.run(arguments))


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""

    parser = argparse.ArgumentParser(prog="duologue", description="Talk to a full-duplex speech dialogue server.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "say",
        help="say a sound file and record the answer",
        description="Say a sound file to the server, in real time, and record what it answers.",
        epilog=say.EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    say.add_arguments(command)
    command.set_defaults(run=say.run)
    command = commands.add_parser(
        "talk",
        help="talk with a microphone",
        description="Talk to the server with a microphone and loudspeakers, or with sound files in their place.",
        epilog=talk.EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    talk.add_arguments(command)
    command.set_defaults(run=talk.run)
    command = commands.add_parser(
        "load",
        help="call with many callers at once, and measure",
        description="Call a server of this machine with many synthetic callers in real time, and say how it held.",
        epilog=load.EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    load.add_arguments(command)
    command.set_defaults(run=load.run)
    return parser


if __name__ == "__main__":
    main()
