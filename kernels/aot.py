"""Compile every kernel for every architecture, without a GPU, and hold what came out against `aot_golden.json`.

    python -m kernels.aot            compile, print what changed, write the golden file anew
    python -m kernels.aot --check    compile, print what changed, exit 1 if anything did
    python -m kernels.aot --check --only ring_decode

Each architecture has a process of its own: Triton keeps state between targets. Nothing is launched, so neither a
driver nor a GPU is needed; `ptxas` and `cuobjdump` come with Triton. Compile time is printed and not compared, for it
is the machine's; everything else is exact for one version of Triton, and the golden file names that version.

What no kernel may have, whatever the golden file says: a stack frame or local memory (registers that spilled), more
shared memory than a processor has, and, where they are what makes it fast, no asynchronous copies.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec

from kernels import dialect

__all__ = ["ARCHITECTURES", "GOLDEN", "Compiled", "compile_all", "differences", "main", "violations"]

ARCHITECTURES: Final = (80, 90, 100, 120)
"""A100; H100 and H200; B200; consumer Blackwell."""
GOLDEN: Final = Path(__file__).with_name("aot_golden.json")
_SHARED_LIMIT: Final = {80: 163, 90: 227, 100: 227, 120: 99}
_KIB: Final = 1024
_LANES: Final = 32
_ALIGNED: Final = [["tt.divisibility", 16]]
_FAILED: Final = 1


class Compiled(msgspec.Struct, frozen=True, kw_only=True):
    """What a compiler made of one kernel for one architecture."""

    registers: int
    """Of a thread."""
    stack: int
    """Bytes of a thread."""
    local: int
    """Bytes of a thread."""
    shared: int
    """Bytes of a block."""
    vector_loads: int
    """Instructions that load 128 bits from global memory, asynchronous ones among them."""
    async_copies: int
    """Instructions that copy from global to shared memory and do not wait."""
    seconds: float = 0.0
    """What compiling took; not in the golden file."""


def compile_all(architectures: Sequence[int] = ARCHITECTURES, only: str = "") -> dict[str, Compiled]:
    """Compile every variant whose name begins with `only`, one process per architecture after another.

    Keys are `kernel/form/sm_NN`.
    """
    found: dict[str, Compiled] = {}
    for architecture in architectures:
        with tempfile.TemporaryDirectory() as cache:
            environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
            environment |= {"TRITON_CACHE_DIR": cache, "TRITON_DISABLE_LINE_INFO": "1"}
            finished = subprocess.run(
                [sys.executable, "-m", "kernels.aot", "--worker", str(architecture), "--only", only],
                env=environment,
                cwd=Path(__file__).parents[1],
                stdout=subprocess.PIPE,
                check=True,
            )
        found |= msgspec.json.decode(finished.stdout, type=dict[str, Compiled])
    return found


def compile_here(architecture: int, only: str = "") -> dict[str, Compiled]:
    """Likewise, for one architecture and in this process, which is then good for no other."""
    from kernels.registry import VARIANTS  # noqa: PLC0415 - imports every kernel; only workers need that

    return {
        f"{variant.name}/sm_{architecture}": _compile(variant, architecture)
        for variant in VARIANTS
        if variant.name.startswith(only)
    }


def _compile(variant: Any, architecture: int) -> Compiled:
    triton: Any = import_module("triton.compiler")
    target = import_module("triton.backends.compiler").GPUTarget("cuda", architecture, _LANES)
    names = variant.kernel.arg_names
    constants = {name: value for name, value in variant.constants.items() if name in names}
    signature = {name: "constexpr" if name in constants else variant.types[name] for name in names}
    aligned = {(place,): _ALIGNED for place, name in enumerate(names) if signature[name][0] in "*i"}
    began = time.perf_counter()
    made = triton.compile(
        triton.ASTSource(variant.kernel, signature, constants, aligned),
        target=target,
        options={"num_warps": variant.warps},
    )
    seconds = time.perf_counter() - began
    usage = _usage(made.asm["cubin"])
    ptx = made.asm["ptx"]
    return Compiled(
        registers=usage["REG"],
        stack=usage["STACK"],
        local=usage["LOCAL"],
        shared=made.metadata.shared,
        vector_loads=len(re.findall(r"ld\.global\S*\.v4\.b32|ld\.global\S*\.v2\.b64|cp\.async\.cg\S* .*0x10", ptx)),
        async_copies=len(re.findall(r"cp\.async\.c[ag]", ptx)),
        seconds=round(seconds, 2),
    )


def _usage(cubin: bytes) -> dict[str, int]:
    tool = import_module("triton").knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [tool, "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said)}


def violations(found: dict[str, Compiled]) -> list[str]:
    """What no kernel may have, one line each."""
    from kernels.registry import VARIANTS  # noqa: PLC0415

    needs_copies = {variant.name for variant in VARIANTS if variant.asynchronous}
    said = []
    for key, made in found.items():
        name, architecture = key.rsplit("/sm_", 1)
        if made.stack or made.local:
            said.append(f"{key}: registers spilled ({made.stack} bytes of stack, {made.local} local)")
        if made.shared > _SHARED_LIMIT[int(architecture)] * _KIB:
            said.append(f"{key}: {made.shared} bytes of shared memory; an sm_{architecture} has "
                        f"{_SHARED_LIMIT[int(architecture)] * _KIB}")  # fmt: skip
        if name in needs_copies and not made.async_copies:
            said.append(f"{key}: no asynchronous copies")
    return said


def differences(golden: dict[str, Any], found: dict[str, Compiled]) -> list[str]:
    """What changed against the golden file, one line for each figure."""
    known = golden["kernels"]
    said = [f"{key}: gone" for key in known if key not in found] + [f"{key}: new" for key in found if key not in known]
    for key, made in found.items():
        for figure, was in known.get(key, {}).items():
            now = getattr(made, figure)
            if now != was:
                said.append(f"{key}: {figure} {was} -> {now}")
    return said


def _golden_form(found: dict[str, Compiled], version: str) -> dict[str, Any]:
    kernels = {}
    for key in sorted(found):
        kernels[key] = msgspec.to_builtins(found[key])
        del kernels[key]["seconds"]
    return {"triton": version, "kernels": kernels}


def _print_table(found: dict[str, Compiled]) -> None:
    print(f"{'kernel':44} {'regs':>5} {'stack':>5} {'shared':>7} {'128-bit':>7} {'async':>5} {'s':>6}")
    for key, made in found.items():
        print(f"{key:44} {made.registers:5} {made.stack:5} {made.shared:7} {made.vector_loads:7} {made.async_copies:5} "
              f"{made.seconds:6.2f}")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 for a violation, or, with `--check`, for any difference."""
    parser = argparse.ArgumentParser(prog="python -m kernels.aot", description="compile every kernel without a GPU")
    parser.add_argument("--check", action="store_true", help="compare with the golden file and leave it as it is")
    parser.add_argument("--only", default="", metavar="NAME", help="kernels whose name begins so")
    parser.add_argument("--worker", type=int, metavar="SM", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if not dialect.PRESENT:
        print("Triton is not installed: nothing can be compiled. On Linux, install the version in requirements.lock.")
        return _FAILED
    if chosen.worker:
        sys.stdout.buffer.write(msgspec.json.encode(compile_here(chosen.worker, chosen.only)))
        return 0
    if chosen.only and not chosen.check:
        parser.error("--only needs --check: the golden file is of all kernels")
    return _report(compile_all(only=chosen.only), check=chosen.check, only=chosen.only)


def _report(found: dict[str, Compiled], *, check: bool, only: str) -> int:
    now = version("triton")
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"triton": None, "kernels": {}}
    golden["kernels"] = {key: made for key, made in golden["kernels"].items() if key.startswith(only)}
    changed = differences(golden, found)
    if golden["triton"] != now:
        changed.insert(0, f"triton {golden['triton']} -> {now}")
    wrong = violations(found)
    _print_table(found)
    for line in wrong:
        print("not allowed:", line)
    for line in changed:
        print("changed:", line)
    if not check and not wrong:
        GOLDEN.write_text(json.dumps(_golden_form(found, now), indent=1) + "\n")
    print(f"{len(found)} kernels compiled, {len(changed)} changes, {len(wrong)} not allowed")
    return _FAILED if wrong or (check and changed) else 0


if __name__ == "__main__":
    sys.exit(main())
