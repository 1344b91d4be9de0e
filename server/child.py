"""`python -m server.child COMMAND...`: become another program, at low priority, that does not outlive its parent.

The priority is set before the program's first instruction, so that no thread of it has another; where the system can
(Linux), the program is killed when its parent dies, however that happens. It imports nothing of ours.
"""

import contextlib
import ctypes
import os
import signal
import sys
from typing import Final

__all__ = ["main"]

_NICE: Final = 15
_SET_PARENT_DEATH_SIGNAL: Final = 1
"""`PR_SET_PDEATHSIG` of prctl(2)."""


def main() -> None:
    """Never returns: the process goes on as the command. Exits with 127 when there is no such program."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    with contextlib.suppress(AttributeError, OSError):
        os.nice(_NICE)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("the parent has ended meanwhile")
    try:
        os.execvp(command[0], command)  # noqa: S606 - that is its purpose; no shell is wanted
    except OSError as problem:
        print(f"{command[0]} cannot be run: {problem.strerror}", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    main()
