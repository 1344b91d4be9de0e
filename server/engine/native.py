"""One frame on a CPU as one call into compiled code: a step costs what its moving rows cost.

This file joins the model's programs to the machine that runs them. A row's numbers are sums in a fixed order, so they
are the same to the last bit whatever the other rows do and however many there are. The interpreter's lock is free
during the call.

Legend: B rows, S samples of a frame.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.cpu import HIGHEST_RANK, AdapterMemory, FrameMachine, Program, RowMemory, Shape, Sites
from server.engine.checkpoint import Checkpoint
from server.engine.codec import decode_program, encode_program
from server.engine.depth import depth_program
from server.engine.frames import StageSeconds, Stepped
from server.engine.params import SamplingParams
from server.engine.temporal import temporal_program

__all__ = ["Hear", "NativeStep"]

Hear = Callable[[Program, RowMemory, Any, int], None]
"""Adds the hearing of one frame by a codec, as `codec.encode_program` does."""


class NativeStep:
    """All rows' state, and the compiled step over it.

    `threads` share the rows of a step between them. `hear` adds the program that makes the caller's tokens of a
    frame; a replay gives another than the codec's. With `bf16_rings` the language model's keys and values are kept in
    bfloat16: half the memory to read, and another token now and then. Raises `BuildError` where nothing can be
    compiled, and `UnsupportedModelError` for a model that the programs cannot express.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        rows: int,
        *,
        threads: int = 1,
        max_adapters: int = 0,
        hear: Hear = encode_program,
        bf16_rings: bool = False,
    ) -> None:
        lm, mimi = checkpoint.lm, checkpoint.mimi
        shape = Shape(
            frame_size=mimi.frame_size,
            dep_q=lm.dep_q,
            user_codebooks=lm.n_q - lm.dep_q,
            delays=lm.delays,
            text_card=lm.text_linear.out_features,
            card=lm.card,
            text_start=lm.text_initial_token_id,
            audio_start=lm.initial_token_id,
            pad_id=lm.text_padding_token_id,
            end_pad_id=lm.end_of_text_padding_id,
        )
        memory = RowMemory()
        sites = Sites()
        ear, think, speak, sound = programs = [Program(sites) for _ in range(4)]
        with torch.inference_mode():
            hear(ear, memory, mimi, shape.user_codebooks)
            hidden = temporal_program(think, memory, lm, bf16=bf16_rings)
            depth_program(speak, memory, lm, hidden)
            decode_program(sound, memory, mimi, lm.dep_q)
        self.adapters = AdapterMemory(sites.all, count=max_adapters, rank=HIGHEST_RANK)
        self.machine = FrameMachine(programs, memory, shape, rows, threads=threads, adapters=self.adapters)

    @property
    def row_bytes(self) -> int:
        """Memory of one row that has been used."""
        return self.machine.row_bytes

    def open(self, row: int, params: SamplingParams, adapter: int, seed: int) -> None:
        """Start a row from nothing."""
        self.machine.reset(row)
        self.use_adapter(row, adapter)
        self.machine.sampling[row]["seed"] = seed
        self.machine.sampling[row]["remembered"] = 0
        self.sample(row, params)

    def sample(self, row: int, params: SamplingParams) -> None:
        """From its next step on, a row turns logits into tokens like this."""
        cards = (self.machine.shape.text_card, self.machine.shape.card)
        how = self.machine.sampling[row]
        how["temperature"] = (params.text_temperature or 1.0, params.audio_temperature or 1.0)
        how["top_k"] = [min(k or n, n) for k, n in zip((params.text_topk, params.audio_topk), cards, strict=True)]
        how["greedy"] = (params.text_greedy, params.audio_greedy)
        how["pad_mult"] = params.pad_mult
        how["penalty"] = params.repetition_penalty
        how["window"] = 0 if params.repetition_penalty == 1.0 else params.repetition_penalty_context

    def use_adapter(self, row: int, adapter: int) -> None:
        """From its next step on, a row speaks with this adapter; its past stays what it was."""
        self.machine.adapter[row] = adapter

    def close(self, row: int) -> None:
        """Give the row's memory back."""
        self.machine.release(row)

    def age(self, row: int, frames: int) -> None:
        """Let an open row cost what a call of `frames` frames costs. What it then says means nothing."""
        self.machine.age(row, frames)

    def step(self, pcm_BS: Tensor, moving_B: Tensor) -> Stepped:
        """One frame of every row in `moving_B` (bool, CPU)."""
        rows = np.flatnonzero(moving_B.numpy()).astype(np.int32)
        frame = self.machine.step(pcm_BS.contiguous().numpy(), rows)
        encode, temporal, depth, decode = frame.seconds.tolist()
        return Stepped(
            torch.from_numpy(frame.tokens_BK),
            torch.from_numpy(frame.logprob_B),
            torch.from_numpy(frame.pcm_BS),
            torch.from_numpy(frame.damaged_B),
            StageSeconds(encode=encode, temporal=temporal, depth=depth, decode=decode),
        )
