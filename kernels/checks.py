"""Whether a tensor is what an operation can address: kernels trust shapes, so their doors do not."""

import torch
from torch import Tensor

__all__ = ["expect"]


def expect(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None, *, apart: bool = False
) -> None:
    """Raise `ValueError` unless `tensor` is contiguous and of this shape and type; with `apart`, row by row."""
    whole = tensor[0].is_contiguous() if apart else tensor.is_contiguous()
    if tuple(tensor.shape) != shape or not whole or (dtype is not None and tensor.dtype != dtype):
        raise ValueError(
            f"{name} is {tensor.dtype} {list(tensor.shape)} with strides {list(tensor.stride())}; expected contiguous "
            f"{dtype or 'numbers'} {list(shape)}"
        )
