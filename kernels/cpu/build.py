"""Compile the C sources for this very processor, once, and load the result.

The library lies in the user's cache under a name made of everything it depends on: sources, compiler, flags and
processor. So a second start does not compile, two versions do not meet, and a cache carried to another machine is
not used there. This file owns files and compilers; it knows nothing of models.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Final

__all__ = ["BuildError", "Library", "load_library"]

log = logging.getLogger(__name__)

SOURCES: Final = Path(__file__).parent / "source"
_MAIN: Final = "frame.c"
_COMPILERS: Final = ("cc", "gcc", "clang")
_FLAGS: Final = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
"""No `-ffast-math`: it would let the order of a sum depend on how many rows there are."""
_NATIVE: Final = "-march=native"
_TIMEOUT_S: Final = 120.0

Library = ctypes.CDLL


class BuildError(RuntimeError):
    """The sources could not be compiled or loaded here; the message says why and what to do."""


@functools.cache
def load_library() -> Library:
    """Load the compiled library, compiling it first if this machine has not done so before (about two seconds).

    Raises `BuildError` where there is no working C compiler. Thread-safe between processes: each compiles to a file of
    its own and renames it.
    """
    compiler = _compiler()
    path = _cache_folder() / f"frame-{_fingerprint(compiler)}.so"
    if not path.exists():
        _compile(compiler, path)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as problem:
        raise BuildError(f"{path} does not load ({problem}): remove it, so that it is compiled again") from problem
    pointer = ctypes.c_void_p
    library.frame_step.argtypes = [pointer, pointer, ctypes.c_int, *[pointer] * 6]
    library.frame_step.restype = None
    library.stage_panels.argtypes = [pointer, ctypes.c_int, ctypes.c_int, pointer, ctypes.c_float, pointer]
    library.stage_panels.restype = ctypes.c_int
    library.encode_streams.argtypes = [pointer, pointer, ctypes.c_int]
    library.encode_streams.restype = None
    return library


def _compiler() -> str:
    named = os.environ.get("CC")
    for name in (named,) if named else _COMPILERS:
        if found := shutil.which(name):
            return found
    raise BuildError(f"no C compiler: looked for {named or ', '.join(_COMPILERS)}; install gcc or clang, or set CC")


def _fingerprint(compiler: str) -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False, timeout=_TIMEOUT_S).stdout
    for part in (compiler, version.decode(errors="replace"), *_FLAGS, platform.machine(), _processor()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:20]


def _processor() -> str:
    """What the processor can do, where the system tells: a native build runs only on its like."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _cache_folder() -> Path:
    """A folder that only this user can write, because what lies in it is run."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "duologue"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        mine = not hasattr(os, "getuid") or found.st_uid == os.getuid()
        if mine and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and os.access(folder, os.W_OK):
            return folder
        reason = "others can write it, or it is not this user's"
    except (OSError, RuntimeError) as problem:
        reason = str(problem)
    private = Path(tempfile.mkdtemp(prefix="duologue-"))
    log.warning("not keeping compiled code in %s (%s): compiling into %s for this run", folder, reason, private)
    return private


def _compile(compiler: str, path: Path) -> None:
    """Compile for this processor; where the compiler does not know it, for any of its kind."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        problem = ""
        for native in ((_NATIVE,), ()):
            command = [compiler, *_FLAGS, *native, "-o", str(made), str(SOURCES / _MAIN), "-lm"]
            try:
                result = subprocess.run(command, capture_output=True, check=False, text=True, timeout=_TIMEOUT_S)
            except (OSError, subprocess.TimeoutExpired) as failure:
                raise BuildError(f"{compiler} could not be run ({failure}): set CC to a C compiler") from failure
            if result.returncode == 0:
                made.replace(path)
                return
            problem = problem or " ".join(result.stderr.split())[:500]
        raise BuildError(f"{compiler} refused {SOURCES / _MAIN} ({problem}): set CC to another C compiler")
