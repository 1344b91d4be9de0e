"""What the commands of the client have in common on their command lines: the server, sampling, exit codes.

It knows argparse and names of query parameters, no network.
"""

import argparse
import os
from collections.abc import Callable
from typing import Final

from client.credentials import add_credentials

__all__ = [
    "DEFAULT_URL",
    "EXIT_CODES",
    "above",
    "add_sampling_arguments",
    "add_server_arguments",
    "at_least",
    "sampling_query",
]

DEFAULT_URL: Final = "ws://127.0.0.1:8998"

EXIT_CODES: Final = """exit codes:
  0  the call was held to its end
  1  a fault of this program
  2  wrong arguments, or a file that cannot be read or written
  3  no dialogue server at that address
  4  the server wants a token
  5  the server refused the call, for the reason printed
  6  the server takes no call now: it is full, still loading, or about to stop
  7  the connection was lost during the call
  8  no microphone or loudspeakers that work (talk alone needs them)
  130  interrupted"""

_SAMPLING: Final = {
    "text_temperature": (float, "0 for greedy"),
    "text_topk": (int, "words to choose from, 0 for all"),
    "audio_temperature": (float, "0 for greedy"),
    "audio_topk": (int, "sounds to choose from, 0 for all"),
    "pad_mult": (float, "above 0 the model waits longer, below 0 it talks sooner"),
    "repetition_penalty": (float, "above 1 the model repeats itself less"),
    "repetition_penalty_context": (int, "how many words back that looks"),
}


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe how the server is found and how it lets the caller in."""
    url = os.environ.get("DUOLOGUE_URL", DEFAULT_URL)
    parser.add_argument(
        "--url", default=url, help="the server (default: %(default)s; the environment variable DUOLOGUE_URL changes it)"
    )
    add_credentials(parser)


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe how the model chooses its words and sounds."""
    group = parser.add_argument_group("sampling", "left out, the server's defaults hold")
    group.add_argument("--greedy", action="store_true", help="the most probable word and sound every time")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same call")
    for name, (kind, words) in _SAMPLING.items():
        group.add_argument("--" + name.replace("_", "-"), type=kind, metavar="N", help=words)


def sampling_query(arguments: argparse.Namespace) -> dict[str, str]:
    """Query parameters, under the names that the stock Moshi page uses, of the flags that were given."""
    query = {"text_temperature": "0", "audio_temperature": "0"} if arguments.greedy else {}
    given = {name: getattr(arguments, name) for name in _SAMPLING}
    query |= {name: str(value) for name, value in given.items() if value is not None}
    if arguments.seed is not None:
        query |= {"text_seed": str(arguments.seed), "audio_seed": str(arguments.seed)}
    return query


def above(limit: float) -> Callable[[str], float]:
    """Make a type for numbers above `limit`."""
    return _number(lambda value: value > limit, f"a number above {limit:g}")


def at_least(limit: float) -> Callable[[str], float]:
    """Make a type for numbers from `limit` on."""
    return _number(lambda value: value >= limit, f"a number from {limit:g}")


def _number(allowed: Callable[[float], bool], expected: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not allowed(value) or value == float("inf"):
            raise argparse.ArgumentTypeError(f"got {text!r}; expected {expected}")
        return value

    return parse
