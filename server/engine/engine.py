"""The engine: a fixed number of slots, each a live conversation with the model, stepped together.

This is the only door to everything that touches the model. It owns which slots are open and the order of one
frame's work; what each part does is in the files beside it. It knows nothing of sockets, clocks or journals.

Reference for its numbers. With one slot, greedy, the tokens are those of the `moshi` package driven as its own
server drives it: `MimiModel` and `LMGen(use_sampling=False)`, both streaming at batch 1; for the first frame
`mimi.encode`, then `mimi.reset_streaming()`; for every frame `lm_gen.step(codes)`; `mimi.decode` of what comes
out. So the first frame after `open` is not heard (it only starts the model), and what a step returns is the
frame `delay_frames` before the one it computes.

The work on a frame is done by a `FrameStep`, which `work` chooses: compiled for the processor (`native`), by kernels
on a GPU (`cuda`), or by upstream's modules (`upstream`) where those cannot serve. Compiled, a row's numbers are the
same to the last bit in any slot, at any width, in any company, and a step costs what its active rows cost. The other
two have the full width in every step; low-order bits of a product of matrices can depend on that width and on the
slot, so another slot or another number of slots gives the same tokens except where two logits are equal to about
seven digits (of 16 bits on a GPU, about three).
"""

import secrets
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.engine.adapter_places import NO_ADAPTER, AdapterInfo, AdapterPlaces
from server.engine.adapters import Widths, file_sha256
from server.engine.checkpoint import Checkpoint, load_checkpoint
from server.engine.frames import StageSeconds
from server.engine.params import SamplingParams
from server.engine.work import CacheDtype, Work, choose, device_of
from server.errors import AdapterError, EngineError, FrameError, SlotError

__all__ = ["AdapterInfo", "CacheDtype", "Engine", "FrameOutput", "Work"]

_SEED_BITS = 63
_WARM_UP_FRAMES = 4
_MAX_ADAPTERS = 4
_MOST_ADAPTERS = 64
_MOST_SLOTS = 4096


class FrameOutput(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What one step gave, one row per slot. All tensors are on the CPU and belong to the caller.

    A row has nothing out when it was not active, and during its first `delay_frames` steps.
    """

    pcm: Tensor
    """float32 `[slots, frame_size]`: the model's sound; zeros where nothing is out."""
    text: Tensor
    """int64 `[slots]`: the model's text token of the same frame; -2 where nothing is out."""
    tokens: Tensor
    """int64 `[slots, 1 + dep_q + user codebooks]`: text, model audio and user audio of one frame, aligned as
    `LMModel.forward` takes them; -2 where nothing is out."""
    logprob: Tensor
    """float32 `[slots]`: natural log-softmax of `text`'s token, in fp32, before temperature, top-k, padding
    bonus and penalties; NaN where nothing is out."""
    damaged: Tensor
    """bool `[slots]`: the frame given to this active row was not sound (NaN, infinite, or beyond 16 times full
    scale) and was heard as silence."""
    stages: StageSeconds
    """Where the step's time went."""


class Engine:
    """A model and its slots. Not thread-safe: one thread at a time calls `open`, `step` and `close`.

    Made by `load`. The slots' state may live in the model's modules, so a model belongs to one engine.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        slots: int,
        device: torch.device,
        work: Work = "auto",
        max_adapters: int = _MAX_ADAPTERS,
        cache_dtype: CacheDtype = "auto",
    ) -> None:
        self._checkpoint = checkpoint
        self._slots = slots
        self._device = device
        self._open = [False] * slots
        self._adapter_of = [NO_ADAPTER] * slots
        self._base_sha256 = ""
        self._chosen = choose(checkpoint, slots, device, work=work, cache_dtype=cache_dtype, max_adapters=max_adapters)
        self._work = self._chosen.step
        self._places = AdapterPlaces(self._work.adapters)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        slots: int = 8,
        device: str = "auto",
        work: Work = "auto",
        max_adapters: int = _MAX_ADAPTERS,
        cache_dtype: CacheDtype = "auto",
    ) -> Self:
        """Load "mini", a folder, or "hf:owner/name", with room for `slots` conversations at once.

        `device` is "cpu", "cuda", "cuda:N" or "auto" (a GPU where there is one). The language model runs in
        float32 on a CPU and in bfloat16 on a GPU; the codec always in float32. Nothing is downloaded except
        for "hf:". `work` is "native" (compiled for the processor when it is first needed, in about two seconds),
        "kernels" (Triton's, which a short check at the start compares with upstream's modules), "upstream" (the `moshi`
        package's modules), or "auto": native on a CPU and kernels on a GPU where that is possible, otherwise upstream;
        `fallback` then says why. As many threads work as `torch.get_num_threads()` says now. `max_adapters` may be
        ready at once. `cache_dtype` is what the language model's keys and values are kept in: "auto" is its own type.
        Native work knows "bf16", too, which is faster and says other tokens now and then; kernels know all (with "int8"
        nearly twice as many calls fit). Raises `CheckpointError`, and
        `EngineError` for a bad `slots`, `device`, `work`, `max_adapters` or `cache_dtype`; as `SlotRoomError`, for more
        slots than a GPU's memory holds.
        """
        if not _is_whole(slots, 1, _MOST_SLOTS):
            raise EngineError(got=f"slots = {slots!r}", expected=f"1 to {_MOST_SLOTS}", remedy="try slots=8")
        if not _is_whole(max_adapters, 0, _MOST_ADAPTERS):
            raise EngineError(
                got=f"max_adapters = {max_adapters!r}", expected=f"0 to {_MOST_ADAPTERS}", remedy="leave it out"
            )
        place = device_of(device)
        dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
        return cls(
            load_checkpoint(checkpoint, device=place, dtype=dtype),
            slots=slots,
            device=place,
            work=work,
            max_adapters=max_adapters,
            cache_dtype=cache_dtype,
        )

    @property
    def checkpoint(self) -> str:
        """What `load` was asked for."""
        return self._checkpoint.name

    @property
    def recommended_sampling(self) -> SamplingParams:
        """What the checkpoint's `lm_gen_config` asks for; `open` uses it when no parameters are given."""
        return self._checkpoint.sampling

    @property
    def device(self) -> str:
        """Where the model runs, for example "cpu" or "cuda:0"."""
        return str(self._device)

    @property
    def work(self) -> str:
        """What does the work on a frame: "native", "upstream" or "kernels"."""
        return self._chosen.work

    @property
    def fallback(self) -> str:
        """Why that is not the best there is for this kind of device; empty where it is."""
        return self._chosen.fallback

    @property
    def cache_dtype(self) -> str:
        """What the language model's keys and values are kept in: "bf16", "fp16", "fp32" or "int8"."""
        return self._chosen.cache_dtype

    @property
    def slots(self) -> int:
        """How many conversations fit."""
        return self._slots

    @property
    def sample_rate(self) -> int:
        """Samples per second (Hz), in and out."""
        return int(self._checkpoint.mimi.sample_rate)

    @property
    def frame_size(self) -> int:
        """Samples in one frame."""
        return int(self._checkpoint.mimi.frame_size)

    @property
    def frame_rate(self) -> float:
        """Frames per second (Hz)."""
        return float(self._checkpoint.mimi.frame_rate)

    @property
    def delay_frames(self) -> int:
        """How many frames a step's output is behind the step: the largest codebook delay."""
        return int(max(self._checkpoint.lm.delays))

    @property
    def context_frames(self) -> int:
        """How many past frames the model attends to; a conversation may be longer."""
        return int(self._checkpoint.lm.context)

    @property
    def model_codebooks(self) -> int:
        """Audio codebooks of the model's side (`dep_q`)."""
        return int(self._checkpoint.lm.dep_q)

    @property
    def user_codebooks(self) -> int:
        """Audio codebooks of the user's side."""
        return int(self._checkpoint.lm.n_q - self._checkpoint.lm.dep_q)

    @property
    def text_padding_id(self) -> int:
        """The text token that says nothing."""
        return int(self._checkpoint.lm.text_padding_token_id)

    @property
    def end_of_text_padding_id(self) -> int:
        """The text token that ends a stretch of padding; it says nothing either."""
        return int(self._checkpoint.lm.end_of_text_padding_id)

    @property
    def text_tokenizer(self) -> Any:
        """The checkpoint's `sentencepiece.SentencePieceProcessor`."""
        return self._checkpoint.text_tokenizer

    @property
    def open_slots(self) -> tuple[int, ...]:
        """The slots that are open, ascending."""
        return tuple(slot for slot, is_open in enumerate(self._open) if is_open)

    def open(
        self,
        slot: int,
        params: SamplingParams | None = None,
        adapter: int | None = None,
        seed: int | None = None,
    ) -> int:
        """Start a conversation in a closed slot, with no memory of the last one there.

        `params` default to `recommended_sampling`. `seed` is 0 to 2**63 - 1; None draws one. Returns the seed in
        use, for the journal: with the same seed, parameters and sound the slot says the same again. `adapter` is a
        number that `load_adapter` gave; None is the model as it was loaded.
        Raises `SlotError`, `AdapterError`, or `EngineError` for a bad seed.
        """
        self._check_slot(slot, must_be_open=False)
        number = self._places.checked(adapter)
        seed = secrets.randbits(_SEED_BITS) if seed is None else _checked_seed(seed)
        self._work.open(slot, params or self.recommended_sampling, number, seed)
        self._open[slot] = True
        self._adapter_of[slot] = number
        return seed

    def close(self, slot: int) -> None:
        """End the conversation in an open slot. Raises `SlotError`."""
        self._check_slot(slot, must_be_open=True)
        self._work.close(slot)
        self._open[slot] = False
        self._adapter_of[slot] = NO_ADAPTER

    def load_adapter(
        self, folder: str | Path, *, sha256: str | None = None, pause: Callable[[], None] = lambda: None
    ) -> int:
        """Read an adapter's folder, check it and keep it ready. Returns the number by which slots may use it.

        Another thread may call this while `step` runs: no open conversation notices. `sha256` is that of
        `lora.safetensors`, where it is known. The work is done in slices of one layer, between which `pause` is called.
        Raises `AdapterError` when the folder is not a whole, finite adapter of this very model, and
        `AdapterRoomError` when there is no room for one more.
        """
        return self._places.load(Path(folder), base_sha256=lambda: self.base_sha256, sha256=sha256, pause=pause)

    def drop_adapter(self, adapter: int) -> None:
        """Forget an adapter that no open slot uses. Raises `AdapterError`."""
        number = self._places.checked(adapter)
        if number in self._adapter_of:
            users = [slot for slot, used in enumerate(self._adapter_of) if used == number]
            raise AdapterError(
                adapter, expected=f"one that no slot uses, and {users} do", remedy="move them to another first"
            )
        self._places.drop(number)

    def use_adapter(self, slot: int, adapter: int | None) -> None:
        """From its next frame on, let an open slot speak with another adapter. What it has said stays its past.

        Raises `SlotError` and `AdapterError`.
        """
        self._check_slot(slot, must_be_open=True)
        number = self._places.checked(adapter)
        self._work.use_adapter(slot, number)
        self._adapter_of[slot] = number

    @property
    def adapters(self) -> dict[int, AdapterInfo]:
        """The adapters that are ready, by number."""
        return self._places.ready

    @property
    def adapter_places(self) -> int:
        """How many adapters can be ready at once; 0 where the work on a frame knows none."""
        return self._places.count

    @property
    def adapter_layers(self) -> dict[str, Widths]:
        """The linear layers that an adapter has parts for, by name; none where `adapter_places` is 0."""
        return self._places.layers

    @property
    def base_sha256(self) -> str:
        """The SHA-256 of the language model's weights, which an adapter names as its base."""
        self._base_sha256 = self._base_sha256 or file_sha256(self._checkpoint.lm_path)
        return self._base_sha256

    def step(self, pcm: Tensor | NDArray[np.float32], active: Tensor | NDArray[np.bool_]) -> FrameOutput:
        """Hear and speak one frame in every active slot; the others do not move.

        `pcm` is float32 `[slots, frame_size]`, of which only active rows are read, and `active` bool `[slots]`;
        both may be arrays or CPU tensors and are left as they are. A frame that is not sound is heard as
        silence (see `FrameOutput.damaged`): it harms neither its own row nor another.
        Raises `FrameError` for a wrong shape or type and `SlotError` when a closed slot is active.
        """
        pcm_BS = _checked("pcm", pcm, torch.float32, (self._slots, self.frame_size))
        moving_B = _checked("active", active, torch.bool, (self._slots,))
        for slot in np.flatnonzero(moving_B.numpy()).tolist():
            self._check_slot(slot, must_be_open=True)
        stepped = self._work.step(pcm_BS, moving_B)
        return FrameOutput(
            pcm=stepped.pcm_BS,
            text=stepped.tokens_BK[:, 0],
            tokens=stepped.tokens_BK,
            logprob=stepped.logprob_B,
            damaged=stepped.damaged_B,
            stages=stepped.stages,
        )

    def warm_up(self, frames: int = _WARM_UP_FRAMES) -> None:
        """Run a few frames of silence in every slot, so that the first caller's are as fast as the rest.

        Raises `SlotError` when a slot is open.
        """
        for slot in range(self._slots):
            self._check_slot(slot, must_be_open=False)
        for slot in range(self._slots):
            self.open(slot, seed=0)
        silence = torch.zeros(self._slots, self.frame_size)
        everyone = torch.ones(self._slots, dtype=torch.bool)
        for _ in range(frames):
            self.step(silence, everyone)
        for slot in range(self._slots):
            self.close(slot)

    def measure_step(self, rows: int, frames: int = 5) -> float:
        """Median seconds of one step in which `rows` rows move: what the machine can hold, by its own clock.

        The calls are as old as the context, so that none will ever cost more. Every slot must be closed, and is closed
        again afterwards. Raises `SlotError` when one is open and
        `EngineError` for a bad `rows`.
        """
        if not _is_whole(rows, 1, self._slots):
            raise EngineError(got=f"rows = {rows!r}", expected=f"1 to {self._slots}", remedy="load with more slots")
        for slot in range(self._slots):
            self._check_slot(slot, must_be_open=False)
        for slot in range(rows):
            self.open(slot, seed=slot)
            self._work.age(slot, self.context_frames)
        noise = 0.1 * torch.randn(self._slots, self.frame_size, generator=torch.Generator().manual_seed(0))
        moving = torch.arange(self._slots) < rows
        seconds = []
        for _ in range(frames):
            began = time.perf_counter()
            self.step(noise, moving)
            seconds.append(time.perf_counter() - began)
        for slot in range(rows):
            self.close(slot)
        return statistics.median(seconds)

    def _check_slot(self, slot: int, *, must_be_open: bool) -> None:
        if not _is_whole(slot, 0, self._slots - 1):
            raise SlotError(
                slot, got=f"slot {slot!r}", expected=f"0 to {self._slots - 1}", remedy="load with more slots"
            )
        if self._open[slot] != must_be_open:
            states = ("closed", "open")
            raise SlotError(
                slot,
                got=f"slot {slot}, which is {states[not must_be_open]}",
                expected=f"one that is {states[must_be_open]}",
                remedy=f"{'open' if must_be_open else 'close'} it first",
            )


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _checked_seed(seed: int) -> int:
    if not _is_whole(seed, 0, 2**_SEED_BITS - 1):
        raise EngineError(
            got=f"seed = {seed!r}", expected=f"a whole number from 0 to 2**{_SEED_BITS} - 1", remedy="or leave it out"
        )
    return seed


def _checked(argument: str, value: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Give it as a tensor on the CPU, by no call that lets go of the interpreter's lock: each waits to get it back."""
    tensor = value
    if isinstance(value, np.ndarray):
        tensor = torch.from_numpy(value) if value.flags.writeable else torch.tensor(value)
    if not isinstance(tensor, Tensor):
        got = f"a {type(value).__name__}"
    elif tensor.dtype != dtype or tuple(tensor.shape) != shape:
        got = f"{tensor.dtype} {list(tensor.shape)}"
    else:
        return tensor if tensor.device.type == "cpu" else tensor.cpu()
    raise FrameError(argument, got=got, expected=f"{dtype} {list(shape)}", remedy="send one row per slot")
