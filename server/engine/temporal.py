"""The temporal transformer as a `kernels.cpu` program: a column of tokens to a hidden state and the text token."""

from typing import Any

from kernels.cpu import Program, RowMemory
from kernels.cpu.program import LANES, Counter
from server.engine.layers import embedding_table, linear_names, norm, require, transformer

__all__ = ["TEXT", "pick_scratch", "temporal_program"]

TEXT = 0
"""The text's place among the tokens that the model says."""


def temporal_program(program: Program, memory: RowMemory, lm: Any, *, bf16: bool = False) -> int:
    """Add one step of `lm` (`moshi.models.LMModel`), whose rings keep float32 or bfloat16.

    Returns where its hidden state `[dim]` is.
    """
    require(lm.fuser is None and lm.condition_provider is None, "conditions")
    x = memory.scratch(lm.dim)
    hidden = memory.scratch(lm.dim)
    text_card = lm.text_linear.out_features
    logits = memory.scratch(text_card)
    program.column(x, [embedding_table(lm.text_emb), *(embedding_table(table) for table in lm.emb)])
    names = linear_names(lm)
    transformer(program, memory, lm.transformer, x, counter=Counter.STEPS, names=names, bf16=bf16)
    norm(program, lm.out_norm, x, hidden)
    program.matmul(hidden, logits, lm.text_linear.weight, lm.text_linear.bias, name=names[id(lm.text_linear)])
    program.pick(logits, pick_scratch(memory, text_card), text_card, TEXT)
    return hidden


def pick_scratch(memory: RowMemory, card: int) -> int:
    """Room in which a token is chosen from `card` logits."""
    return memory.scratch(2 * card + 4 * LANES)
