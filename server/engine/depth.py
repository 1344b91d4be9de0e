"""The depth transformer as a `kernels.cpu` program: one frame's audio tokens, codebook after codebook."""

from typing import Any

from kernels.cpu import Program, RowMemory
from kernels.cpu.program import Tokens
from server.engine.layers import StepLayer, embedding_table, linear_names, norm, plain_linear, require
from server.engine.temporal import TEXT, pick_scratch

__all__ = ["depth_program"]


def depth_program(program: Program, memory: RowMemory, lm: Any, hidden: int) -> None:
    """Add all steps of one frame of `lm` (`moshi.models.LMModel`), from the hidden state `[dim]` at `hidden`.

    The codebooks' steps are written out one after another: each has its own weights, and its position is known.
    """
    depformer = lm.depformer
    require(depformer.positional_embedding == "none", f"{depformer.positional_embedding!r} positions in the depth")
    schedule = lm.depformer_weights_per_step_schedule or list(range(lm.dep_q))
    names = linear_names(lm)
    width = lm.depformer_in[0].out_features
    x = memory.scratch(width)
    layers = StepLayer(program, memory, depformer.layers, times=1, capacity=lm.dep_q, names=names)
    logits = memory.scratch(lm.card)
    scratch = pick_scratch(memory, lm.card)
    for step in range(lm.dep_q):
        first = lm.depformer_in[schedule[step] if len(lm.depformer_in) > 1 else 0]
        program.matmul(hidden, x, plain_linear(first), name=names[id(first)])
        table = lm.depformer_text_emb if step == TEXT else lm.depformer_emb[step - 1]
        program.embed(x, embedding_table(table), Tokens.SAID, step, add=True)
        for index, layer in enumerate(depformer.layers):
            several = len(layer.self_attn.in_projs) > 1
            layers.add(index, layer, x, at=step, weights=schedule[step] if several else 0)
        norm(program, lm.depformer_norms[step], x, x)
        last = lm.linears[step]
        program.matmul(x, logits, last.weight, last.bias, name=names[id(last)])
        program.pick(logits, scratch, lm.card, step + 1)
