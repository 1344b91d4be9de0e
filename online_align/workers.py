"""One process or several that train the same adapter: `torchrun` starts them, FSDP2 shards the model among them.

Alone, nothing here does anything. Together, every process reads the same pairs in the same order and takes its share
of each step; gradients are averaged by FSDP. It knows no losses and no files.
"""

import os
from typing import Any, Self

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from online_align.policy import Policy

__all__ = ["Workers", "put", "whole"]


class Workers(msgspec.Struct, frozen=True, kw_only=True):
    """Who trains."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> Self:
        """Meet the others that `torchrun` started, over NCCL on GPUs and gloo otherwise; alone without `torchrun`."""
        if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(rank=dist.get_rank(), size=dist.get_world_size())

    def leave(self) -> None:
        """Part from the others."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def shard(self, policy: Policy) -> Policy:
        """Spread the model over all processes, a layer at a time; in place."""
        if self.size > 1:
            keep = MixedPrecisionPolicy()
            for layer in policy.layers:
                fully_shard(layer, mp_policy=keep)
            fully_shard(policy, mp_policy=keep)
        return policy

    def tell(self, value: Any) -> Any:
        """Give everybody what the first process has."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def sum(self, values: Tensor) -> Tensor:
        """Add up everybody's numbers."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


def whole(tensor: Tensor) -> Tensor:
    """A parameter, moment or gradient as one tensor, on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put(target: Tensor | nn.Parameter, value: Tensor) -> None:
    """Write a whole tensor into a parameter or moment, sharded or not."""
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)
