"""The depth transformer as a `kernels.cpu` program: one frame's audio tokens, codebook after codebook."""

from typing import Any

import torch

from kernels.cpu import Program, RowMemory
from kernels.cpu.program import Tokens
from server.engine.layers import StepLayer, embedding_table, norm, plain_linear, require
from server.engine.temporal import TEXT, pick_scratch

__all__ = ["depth_program"]


def depth_program(program: Program, memory: RowMemory, lm: Any, hidden: int) -> None:
    """Add all steps of one frame of `lm` (`moshi.models.LMModel`), from the hidden state `[dim]` at `hidden`.

    The codebooks' steps are written out one after another: each has its own weights, and its position is known.
    """
    depformer = lm.depformer
    require(depformer.positional_embedding == "none", f"{depformer.positional_embedding!r} positions in the depth")
    schedule = lm.depformer_weights_per_step_schedule or list(range(lm.dep_q))
    inputs = [plain_linear(module, "depformer_in") for module in lm.depformer_in]
    width = inputs[0].shape[0]
    all_inputs = torch.cat([inputs[schedule[step]] if len(inputs) > 1 else inputs[0] for step in range(lm.dep_q)])
    x = memory.scratch(lm.dep_q * width)
    program.matmul(hidden, x, all_inputs)
    layers = StepLayer(program, memory, depformer.layers, times=1, capacity=lm.dep_q)
    logits = memory.scratch(lm.card)
    scratch = pick_scratch(memory, lm.card)
    for step in range(lm.dep_q):
        here = x + step * width
        table = lm.depformer_text_emb if step == TEXT else lm.depformer_emb[step - 1]
        program.embed(here, embedding_table(table), Tokens.SAID, step, add=True)
        for index, layer in enumerate(depformer.layers):
            several = len(layer.self_attn.in_projs) > 1
            layers.add(index, layer, here, at=step, weights=schedule[step] if several else 0)
        norm(program, lm.depformer_norms[step], here, here)
        program.matmul(here, logits, lm.linears[step].weight, lm.linears[step].bias)
        program.pick(logits, scratch, lm.card, step + 1)
