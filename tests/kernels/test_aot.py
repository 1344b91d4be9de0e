"""The ahead-of-time lane: real compilation of one kernel, and differences and violations that must be seen."""

import json

import msgspec
import pytest

from kernels import aot, dialect, registry
from kernels.aot import Compiled, differences, violations

pytestmark = pytest.mark.skipif(not dialect.PRESENT, reason="Triton is not installed")

GOOD = Compiled(registers=40, stack=0, local=0, shared=1024, vector_loads=4, async_copies=8)


@pytest.mark.timeout(300)
def test_one_kernel_compiles_as_the_golden_file_says() -> None:
    """In a process of its own, without a driver, while this one interprets."""
    golden = json.loads(aot.GOLDEN.read_text())
    found = aot.compile_all((90,), only="swiglu/")
    assert list(found) == ["swiglu/bf16/sm_90"]
    golden["kernels"] = {key: made for key, made in golden["kernels"].items() if key in found}
    assert differences(golden, found) == []


def test_the_golden_file_is_of_every_kernel_and_allowed() -> None:
    golden = json.loads(aot.GOLDEN.read_text())
    wanted = {f"{variant.name}/sm_{sm}" for variant in registry.VARIANTS for sm in aot.ARCHITECTURES}
    assert set(golden["kernels"]) == wanted
    assert violations({key: msgspec.convert(made, Compiled) for key, made in golden["kernels"].items()}) == []


def test_every_difference_is_said() -> None:
    known = msgspec.to_builtins(GOOD)
    del known["seconds"]
    golden = {"kernels": {"a/x/sm_80": known, "b/x/sm_80": known}}
    found = {"a/x/sm_80": msgspec.structs.replace(GOOD, registers=41, seconds=9.0), "c/x/sm_80": GOOD}
    assert differences(golden, found) == ["b/x/sm_80: gone", "c/x/sm_80: new", "a/x/sm_80: registers 40 -> 41"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stack": 8}, "spilled"),
        ({"local": 16}, "spilled"),
        ({"shared": 164 * 1024}, "shared memory"),
        ({"async_copies": 0}, "asynchronous"),
    ],
)
def test_every_violation_is_said(change: dict[str, int], said: str) -> None:
    (line,) = violations({"ring_decode/bf16-q1/sm_80": msgspec.structs.replace(GOOD, **change)})
    assert said in line
    assert violations({"ring_decode/bf16-q1/sm_80": GOOD}) == []


def test_a_part_is_never_written_as_the_whole() -> None:
    with pytest.raises(SystemExit):
        aot.main(["--only", "swiglu"])
