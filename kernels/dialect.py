"""The one door to Triton: the rest of `kernels` imports on machines that have no GPU, no driver and no Triton.

This file owns where Triton comes from and when it is used. A kernel is launched on tensors of a GPU, and, when the
environment variable `TRITON_INTERPRET` is 1 as this file is first imported, on any tensor: Triton's interpreter then
runs the programs one after another in Python, which is how they are tested. Everywhere else an operation runs its
torch reference. Nothing here knows what a kernel computes.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

from torch import Tensor

__all__ = ["INTERPRETED", "PRESENT", "TritonMissingError", "constexpr", "jit", "power_of_two", "tl", "uses_triton"]


class TritonMissingError(RuntimeError):
    """A kernel was to be launched where Triton is not installed."""

    def __init__(self, kernel: str) -> None:
        super().__init__(
            f"kernel {kernel} was to run on a GPU, but Triton is not installed; expected the version that belongs to "
            "this torch (torch's CUDA builds for Linux bring it); install it, or run on the CPU"
        )
        self.kernel = kernel


class _Unlaunchable:
    """What `jit` makes of a function where there is no Triton."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = function.__name__

    def __getitem__(self, grid: object) -> NoReturn:
        raise TritonMissingError(self._name)


def _import_triton() -> tuple[Any, Any]:
    try:
        return importlib.import_module("triton"), importlib.import_module("triton.language")
    except ImportError:
        return None, None


_triton, tl = _import_triton()

PRESENT: Final[bool] = _triton is not None
"""Whether Triton is installed."""

INTERPRETED: Final[bool] = PRESENT and bool(_triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, in this process and for good."""

if TYPE_CHECKING:
    constexpr = Any
else:
    constexpr = tl.constexpr if PRESENT else Any
"""A kernel's argument that is known when it is compiled. The interpreter goes by this spelling.

A kernel's other arguments have no annotation: Triton compiles annotations, too, and knows no types of Python.
"""


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`; without Triton, something that raises `TritonMissingError` when it is launched."""
    return _triton.jit(function) if PRESENT else _Unlaunchable(function)


def uses_triton(tensor: Tensor) -> bool:
    """Whether operations on this tensor launch kernels, rather than run their references."""
    return INTERPRETED or tensor.is_cuda


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`, which is at least 1."""
    return 1 << (number - 1).bit_length()
