"""The whole suite as two processes side by side: `python -m tests`, for `make test`.

Tests in the folders `COMPUTES` do little else, and step back behind all others, many of which hold calls in real time:
those wait for the clock for most of their time, and must not be late because of a test beside them. What those behind
print is shown when both have ended.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["COMPUTES", "main", "side_by_side"]

COMPUTES: Final = ("align", "engine", "kernels", "recipes", "signals")
_BEHIND: Final = ("nice", "-n", "10")
_PYTEST: Final = (sys.executable, "-m", "pytest")


def main(root: Path) -> int:
    """Run all tests of the project in `root`. Returns 0 when all passed."""
    folders = [f"tests/{name}" for name in COMPUTES]
    caches = ("-o", "cache_dir=.pytest_cache/computes")
    return side_by_side(
        root,
        behind=[*_BEHIND, *_PYTEST, *caches, *folders],
        ahead=[*_PYTEST, *(f"--ignore={folder}" for folder in folders)],
    )


def side_by_side(root: Path, *, behind: Sequence[str], ahead: Sequence[str]) -> int:
    """Run two commands in `root`, on one core one after the other. Returns the exit code of one that fails, or 0."""
    with tempfile.TemporaryFile("w+") as log:
        with subprocess.Popen(behind, cwd=root, stdout=log, stderr=subprocess.STDOUT) as computing:
            if _cores() == 1:
                computing.wait()
            keeping = subprocess.run(ahead, cwd=root, check=False).returncode
        log.seek(0)
        print(log.read())
    return keeping or computing.returncode


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parents[1]))
