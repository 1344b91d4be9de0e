"""Which of three ways does the work on a frame, and what is said where the best one cannot.

On a CPU that is the compiled step, on a GPU the kernels; upstream's modules serve where those cannot. Kernels are
believed only after `cuda_check` has compared them with upstream on the model and the GPU at hand: when they fail, the
engine runs upstream's modules and says so, loudly, unless it was asked for what only kernels can.
"""

import gc
import logging
from typing import Final, Literal, NamedTuple, get_args

import torch

from kernels.cpu import BuildError, UnsupportedModelError
from server.engine.checkpoint import Checkpoint
from server.engine.cuda_memory import check_room
from server.engine.frames import FrameStep
from server.engine.native import NativeStep
from server.engine.rows import stop_streaming
from server.engine.upstream import UpstreamStep
from server.errors import EngineError

__all__ = ["CacheDtype", "Chosen", "Work", "choose", "device_of"]

log = logging.getLogger(__name__)

Work = Literal["auto", "native", "upstream", "kernels"]
"""What does the work on a frame."""

CacheDtype = Literal["auto", "bf16", "fp16", "fp32", "int8"]
"""What the language model's rings of keys and values hold; "auto" is the model's own type."""

_KEPT: Final = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "int8": torch.int8}
_NAMES: Final = {dtype: name for name, dtype in _KEPT.items()}


class Chosen(NamedTuple):
    """What was chosen."""

    step: FrameStep
    work: Work
    cache_dtype: str
    """Never "auto"."""
    fallback: str
    """Why it is not what it should be; empty where it is."""


def choose(
    checkpoint: Checkpoint, slots: int, device: torch.device, *, work: Work, cache_dtype: CacheDtype, max_adapters: int
) -> Chosen:
    """Make what does the work on a frame.

    Raises `EngineError` for a `work` or `cache_dtype` that is unknown, or that cannot be had here, and `SlotRoomError`
    for more slots than a GPU's memory holds.
    """
    for name, value, kind in (("work", work, Work), ("cache_dtype", cache_dtype, CacheDtype)):
        if value not in get_args(kind):
            raise EngineError(
                got=f"{name} = {value!r}", expected=f"one of {', '.join(get_args(kind))}", remedy="leave it out"
            )
    wishes = _Wishes(checkpoint, slots, device, cache_dtype, max_adapters)
    if work == "kernels" or (work == "auto" and device.type != "cpu"):
        return _on_kernels(wishes, required=work == "kernels")
    if work == "upstream":
        _check_kept(wishes, {wishes.own}, "the moshi package's modules", "leave it out: only our own work keeps others")
        return _on_upstream(wishes)
    _check_kept(wishes, {wishes.own, torch.bfloat16}, "a CPU's step", "leave it out: only a GPU's kernels keep others")
    return _on_a_cpu(wishes, required=work == "native")


class _Wishes(NamedTuple):
    """What an engine was asked for."""

    checkpoint: Checkpoint
    slots: int
    device: torch.device
    cache_dtype: CacheDtype
    max_adapters: int

    @property
    def own(self) -> torch.dtype:
        """The language model's type."""
        dtype: torch.dtype = self.checkpoint.lm.text_linear.weight.dtype
        return dtype

    @property
    def kept(self) -> torch.dtype:
        """What the rings are to hold."""
        return _KEPT.get(self.cache_dtype, self.own)


def _on_a_cpu(wishes: _Wishes, *, required: bool) -> Chosen:
    name = wishes.checkpoint.name
    try:
        step = NativeStep(
            wishes.checkpoint,
            wishes.slots,
            threads=torch.get_num_threads(),
            max_adapters=wishes.max_adapters,
            bf16_rings=wishes.kept == torch.bfloat16,
        )
    except (BuildError, UnsupportedModelError) as problem:
        if required or wishes.kept != wishes.own:
            raise EngineError(
                got=f"no compiled step for {name} ({problem})",
                expected="a C compiler and a model of Moshi's family",
                remedy="leave out work and cache_dtype: then the moshi package's modules are run",
            ) from problem
        log.warning("%s runs on the moshi package's modules, several times slower: %s", name, problem)
        return _on_upstream(wishes, fallback=str(problem))
    return Chosen(step, "native", _NAMES[wishes.kept], "")


def _on_upstream(wishes: _Wishes, *, fallback: str = "") -> Chosen:
    step = UpstreamStep(wishes.checkpoint, wishes.slots, wishes.device)
    return Chosen(step, "upstream", _NAMES[wishes.own], fallback)


def _on_kernels(wishes: _Wishes, *, required: bool) -> Chosen:
    from server.engine.cuda import HIGHEST_RANK  # noqa: PLC0415 - imports Triton, which only a GPU needs

    check_room(
        wishes.checkpoint,
        wishes.slots,
        wishes.device,
        kept=wishes.kept,
        max_adapters=wishes.max_adapters,
        rank=HIGHEST_RANK,
    )
    step, problem = _checked_kernels(wishes)
    if step is not None:
        return Chosen(step, "kernels", _NAMES[wishes.kept], "")
    name = wishes.checkpoint.name
    if required or wishes.kept != wishes.own:
        asked = 'work="kernels"' if required else f"cache_dtype={wishes.cache_dtype!r}, which only kernels can keep"
        raise EngineError(
            got=f"{asked}, and no kernels for {name} ({problem})",
            expected="Triton, a model of Moshi's family, and a GPU on which the kernels agree with upstream's modules",
            remedy="leave it out: the moshi package's modules then do the work",
        )
    log.error(
        "THE KERNELS ARE NOT USED: %s. %s runs on the moshi package's modules: right, but slower, and with room for "
        "fewer callers; /api/info says so, too",
        problem,
        name,
    )
    return _on_upstream(wishes, fallback=problem)


def _checked_kernels(wishes: _Wishes) -> tuple[FrameStep | None, str]:
    """Kernels that agree with upstream, or None and why not; the model is then as it was before."""
    from server.engine.cuda import KernelStep  # noqa: PLC0415 - imports Triton, which only a GPU needs
    from server.engine.cuda_check import disagreement  # noqa: PLC0415

    step: KernelStep | None = None
    try:
        step = KernelStep(
            wishes.checkpoint, wishes.slots, wishes.device, max_adapters=wishes.max_adapters, kept=wishes.kept
        )
        problem = disagreement(step, wishes.checkpoint)
    except UnsupportedModelError as refused:
        problem = str(refused)
    except Exception as broken:  # whatever a compiler, a driver or a recording may raise
        log.exception("the kernels' start")
        problem = f"{type(broken).__name__}: {str(broken).partition(chr(10))[0]}"
    if not problem:
        return step, ""
    step = None  # its memory is needed for what comes instead
    stop_streaming(wishes.checkpoint.lm)
    stop_streaming(wishes.checkpoint.mimi)
    gc.collect()
    if wishes.device.type == "cuda":
        torch.cuda.empty_cache()
    return None, problem


def _check_kept(wishes: _Wishes, known: set[torch.dtype], who: str, remedy: str) -> None:
    if wishes.kept not in known:
        names = " or ".join(sorted({_NAMES[each] for each in known}))
        raise EngineError(
            got=f"cache_dtype = {wishes.cache_dtype!r} on {wishes.device} with {who}",
            expected=f"auto, or {names}",
            remedy=remedy,
        )


def device_of(name: str) -> torch.device:
    """The device of a name, "auto" being a GPU where there is one. Raises `EngineError` for one that is not there."""
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:
        raise EngineError(
            got=f"device {name!r}, which cannot be used ({error})",
            expected='"auto", "cpu", "cuda" or "cuda:N"',
            remedy='"cpu" works everywhere',
        ) from error
