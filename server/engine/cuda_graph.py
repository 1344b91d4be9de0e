"""Work on a GPU that is recorded once and replayed from then on, so that the host starts it with a single call.

Whatever is recorded reads and writes memory that keeps its place, has shapes that never change and decides nothing on
the host. On a CPU, where kernels are interpreted, the work is simply done.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch

__all__ = ["on_device", "recorded"]

_WARM_UPS: Final = 2


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Inside, kernels are launched on `device`: each thread has a present GPU of its own, the first one by default."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def recorded(work: Callable[[], None], device: torch.device) -> Callable[[], object]:
    """`work` as one CUDA graph: call what comes back. It is done twice before and once as it is recorded.

    Other threads may go on using the GPU meanwhile.
    """
    if device.type != "cuda":
        return work
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):  # compiles every kernel and lets the libraries take their memory
            work()
    torch.cuda.current_stream(device).wait_stream(side)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay
