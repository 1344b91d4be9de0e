"""Kernels without Triton, without a driver, and in the interpreter: they always import, and say what is missing."""

import ast
import inspect
import os
import subprocess
import sys
from types import ModuleType

import pytest

from kernels import depth_attention, dialect, lora_delta, norm_gate, registry, ring_decode, sample

pytestmark = pytest.mark.timeout(300)  # the interpreter shares its core with whatever else runs

EVERYTHING = """
import torch
import kernels.aot, kernels.registry, kernels.roofline, server.engine.cuda
from kernels import dialect
from kernels.norm_gate import rms_norm, rms_norm_kernel, swiglu
from kernels.sample import sample_topk
x = torch.randn(2, 8)
assert torch.allclose(rms_norm(x, None, torch.ones(8), 1e-8)[1], x / x.square().mean(1, True).sqrt(), atol=1e-5)
assert swiglu(x).shape == (2, 4)
assert not dialect.INTERPRETED
"""
WITHOUT = (
    "import sys\nsys.modules['triton'] = None\n"
    + EVERYTHING
    + """
assert not dialect.PRESENT
try:
    rms_norm_kernel[(1,)]()
except dialect.TritonMissingError as error:
    assert "rms_norm_kernel" in str(error) and "install" in str(error)
else:
    raise AssertionError("launched")
assert kernels.aot.main(["--check"]) == 1
"""
)


def run(program: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", program],
        env=environment | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip


def test_without_triton_references_run_and_launches_say_what_is_missing() -> None:
    finished = run(WITHOUT)
    assert finished.returncode == 0, finished.stderr
    assert "Triton is not installed" in finished.stdout


@pytest.mark.skipif(not dialect.PRESENT, reason="Triton is not installed")
def test_with_triton_and_without_a_driver_references_run() -> None:
    finished = run(EVERYTHING + "assert dialect.PRESENT\n")
    assert finished.returncode == 0, finished.stderr


def test_powers_of_two() -> None:
    assert [dialect.power_of_two(number) for number in (1, 2, 3, 16, 17)] == [1, 2, 4, 16, 32]


NARROW = {
    "qkv",
    "k",
    "v",
    "x",
    "update",
    "total",
    "alpha",
    "dout",
    "dtotal",
    "down",
    "up",
    "out",
    "logits",
    "raw",
    "given",
}
"""Arguments that may be 16 bits wide."""


@pytest.mark.parametrize("module", [ring_decode, depth_attention, norm_gate, lora_delta, sample])
def test_what_may_be_sixteen_bits_wide_is_widened_as_it_is_loaded(module: ModuleType) -> None:
    """The interpreter computes nonsense with bfloat16, so nothing may be done with it before it is float32."""
    tree = ast.parse(inspect.getsource(module))
    widened = {
        node.func.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "to"
        and ast.unparse(node.args[0]) == "tl.float32"
    }
    loads = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.load"]
    narrow = [node for node in loads if ast.unparse(node.args[0]).split(" ")[0] in NARROW]
    assert narrow
    assert [ast.unparse(node) for node in narrow if node not in widened] == []


@pytest.mark.skipif(not dialect.PRESENT, reason="Triton is not installed")
def test_the_registry_names_every_kernel_and_every_argument() -> None:
    modules = {sys.modules[variant.kernel.fn.__module__] for variant in registry.VARIANTS}
    written = {id(kernel) for module in modules for name, kernel in vars(module).items() if name.endswith("_kernel")}
    assert written == {id(variant.kernel) for variant in registry.VARIANTS}
    for variant in registry.VARIANTS:
        for argument in variant.kernel.arg_names:
            assert (argument in variant.constants) != (argument in variant.types), f"{variant.name}: {argument}"
    assert len({variant.name for variant in registry.VARIANTS}) == len(registry.VARIANTS)
