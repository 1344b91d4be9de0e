"""One step of the language model on kernels: a column of tokens in, text and audio tokens out, for all rows at once.

Products of matrices are torch's; all between them are `kernels`. Everything that is kept from step to step lies in
memory that never moves and is written in place, shapes never change, and nothing is decided on the host, so a CUDA
graph holds the whole step.

Only Moshi's family is known here: anything else raises `UnsupportedModelError`, and the engine runs upstream's modules.

Legend: B rows, K all codebooks, D width, H heads, V vocabulary.
"""

from typing import Any

import torch
from moshi.modules.gating import ActivationGating
from moshi.modules.transformer import RMSNorm, StreamingTransformer
from torch import Tensor, nn
from torch.nn import functional

from kernels.adapter_bank import AdapterBank
from kernels.depth_attention import depth_attention
from kernels.norm_gate import rms_norm, swiglu
from server.engine.cuda_rings import Rings
from server.engine.cuda_sampling import KernelSampling
from server.engine.layers import require

__all__ = ["KernelLanguage"]


class KernelLanguage:
    """All rows' state of one `moshi.models.LMModel`, and its step.

    `kept` is what the rings hold: any float type, or int8, which halves those of a 16-bit model.
    """

    def __init__(
        self, lm: Any, sampling: KernelSampling, bank: AdapterBank | None, *, rows: int, kept: torch.dtype
    ) -> None:
        require(lm.fuser is None and lm.condition_provider is None, "conditions")
        _check_transformer(lm.transformer, "rope")
        _check_transformer(lm.depformer, "none")
        self._lm, self._sampling, self._bank = lm, sampling, bank
        self._names = {module: name for name, module in lm.named_modules()}
        device, dtype = lm.text_linear.weight.device, lm.text_linear.weight.dtype
        self.adapter_B = torch.zeros(rows, dtype=torch.int64, device=device)
        self.moving_B = torch.zeros(rows, dtype=torch.bool, device=device)
        self.column_BK = torch.zeros(rows, lm.n_q + 1, dtype=torch.int64, device=device)
        """What the next step reads; valid tokens in every row."""
        self.kept = kept
        """What the rings hold."""
        self._rings = Rings(lm.transformer, self.moving_B, times=1, dtype=dtype, kept=kept)
        heads, width = _heads(lm.depformer)
        self._depth_attended = torch.zeros(rows, heads, width, dtype=dtype, device=device)
        self._depth = [
            [torch.zeros(rows, heads, lm.dep_q, width, dtype=dtype, device=device) for _ in "kv"]
            for _ in lm.depformer.layers
        ]

    @property
    def offset_B(self) -> Tensor:
        """Steps that each row has made, int64."""
        return self._rings.offset_B

    def step(self) -> None:
        """Read `column_BK`, choose `sampling.token_BK`, and take the rows of `moving_B` one step on."""
        hidden = self._temporal()
        token_B = self._sampling.pick_text(
            self._linear(self._lm.text_linear, hidden).float(), self.offset_B, self.moving_B
        )
        for codebook in range(self._lm.dep_q):
            logits = self._depth_logits(codebook, token_B, hidden)
            token_B = self._sampling.pick_audio(codebook, logits, self.offset_B, self.moving_B)
        self._sampling.remember(self.moving_B)
        self._rings.advance()

    def _temporal(self) -> Tensor:
        lm, column = self._lm, self.column_BK
        x: Tensor = sum(table(column[:, 1 + place]) for place, table in enumerate(lm.emb))
        total, update = x + lm.text_emb(column[:, 0]), None
        table = self._rings.table()
        for index, layer in enumerate(lm.transformer.layers):
            attention = layer.self_attn
            total, normed = _norm(layer.norm1, total, update)
            attended = self._rings.attend(index, self._linear(attention.in_projs[0], normed), table)
            update = self._linear(attention.out_projs[0], attended.flatten(0, 1))
            total, normed = _norm(layer.norm2, total, update)
            update = self._gate(layer.gating, normed)
        return _norm(lm.out_norm, total, update)[1]

    def _depth_logits(self, codebook: int, token_B: Tensor, hidden: Tensor) -> Tensor:
        lm = self._lm
        schedule = lm.depformer_weights_per_step_schedule or range(lm.dep_q)
        which = schedule[codebook]
        entry = lm.depformer_in[which if len(lm.depformer_in) > 1 else 0]
        table = lm.depformer_text_emb if codebook == 0 else lm.depformer_emb[codebook - 1]
        total, update = self._linear(entry, hidden) + table(token_B), None
        for layer, (k, v) in zip(lm.depformer.layers, self._depth, strict=True):
            attention = layer.self_attn
            weights = which if len(attention.in_projs) > 1 else 0
            total, normed = _norm(layer.norm1, total, update)
            qkv = self._linear(attention.in_projs[weights], normed).view(-1, 3, *self._depth_attended.shape[1:])
            depth_attention(qkv, k, v, codebook, self.moving_B, self._depth_attended)
            update = self._linear(attention.out_projs[weights], self._depth_attended.flatten(1))
            total, normed = _norm(layer.norm2, total, update)
            gates = layer.gating
            update = self._gate(gates[which] if isinstance(gates, nn.ModuleList) else gates, normed)
        normed = _norm(lm.depformer_norms[codebook], total, update)[1]
        return self._linear(lm.linears[codebook], normed).float()

    def _gate(self, gate: Any, x: Tensor) -> Tensor:
        return self._linear(gate.linear_out, swiglu(self._linear(gate.linear_in, x)))

    def _linear(self, module: nn.Linear, x: Tensor) -> Tensor:
        out = functional.linear(x, module.weight, module.bias)
        if self._bank is not None:
            self._bank.add(self._names[module], x, self.adapter_B, self.moving_B, out)
        return out


def _norm(module: nn.Module, x: Tensor, update: Tensor | None) -> tuple[Tensor, Tensor]:
    """The stream after `update`, and its norm."""
    if isinstance(module, RMSNorm):
        return rms_norm(x, update, module.alpha, module.eps)
    total = x if update is None else x + update
    return total, total


def _heads(transformer: StreamingTransformer) -> tuple[int, int]:
    """How many heads, and how wide."""
    attention: Any = transformer.layers[0].self_attn
    return attention.num_heads, attention.embed_dim // attention.num_heads


def _check_transformer(transformer: Any, positions: str) -> None:
    require(transformer.positional_embedding == positions, f"{transformer.positional_embedding!r} positions")
    for layer in transformer.layers:
        require(layer.self_attn.kv_repeat == 1, "keys that several heads share")
        require(layer.cross_attention is None and not layer.skip_self_attn, "attention to something else")
        scales = (layer.layer_scale_1, layer.layer_scale_2)
        require(all(isinstance(scale, nn.Identity) for scale in scales), "layer scales")
        for norm in (layer.norm1, layer.norm2):
            single = isinstance(norm, RMSNorm) and torch.float32 in {norm.dtype, norm.alpha.dtype}
            require(single, f"a norm of type {type(norm).__name__} that does not work in float32")
        gates = layer.gating if isinstance(layer.gating, nn.ModuleList) else [layer.gating]
        silu = all(type(gate) is ActivationGating and gate.activation is functional.silu for gate in gates)
        require(silu, "a feed-forward block without a SiLU gate")
    for module in transformer.modules():
        plain = not isinstance(module, nn.Linear) or (type(module) is nn.Linear and module.bias is None)
        require(plain, f"a linear layer of type {type(module).__name__} with extras")
