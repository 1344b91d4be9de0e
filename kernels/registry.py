"""Every kernel in every form in which it is compiled: argument types, constants, warps.

The ahead-of-time lane compiles these; the figures are Moshi 7B's and its codec's. This file knows no figures of a GPU.
"""

from typing import Any, Final

import msgspec

from kernels import chunked_logp as logp
from kernels import combine as merge
from kernels import depth_attention, norm_gate, sample
from kernels import lora_delta as lora
from kernels import ring_decode as ring

__all__ = ["VARIANTS", "Variant"]

_TYPES: Final = {"fp32": "*fp32", "fp16": "*fp16", "bf16": "*bf16", "int8": "*i8"}


class Variant(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One kernel as it is compiled."""

    name: str
    kernel: Any
    """What `kernels.dialect.jit` made."""
    types: dict[str, str]
    """Triton's type of each argument that is not a constant; `*` is a pointer, and every pointer is 16-byte aligned."""
    constants: dict[str, Any]
    warps: int = 4
    asynchronous: bool = False
    """Whether it is worthless unless its loads are asynchronous copies."""


def _ring(name: str, model: str, cache: str, *, times: int, heads: int, width: int, slots: int) -> Variant:
    pointers = ("cosine", "sine", "k_scale", "v_scale", "partial", "weight")
    types = {"qkv": _TYPES[model], "k": _TYPES[cache], "v": _TYPES[cache], "offset": "*i64", "moving": "*i1"}
    types |= dict.fromkeys(pointers, "*fp32") | {"row_stride": "i32", "score_scale": "fp32"}
    if cache != "int8":
        types |= {"k_scale": _TYPES[cache], "v_scale": _TYPES[cache]}
    tile = ring.TILE_INT8 if cache == "int8" else ring.TILE
    constants = {"T": times, "H": heads, "D": width, "S": slots, "P": ring.SPLITS, "WIDE": width, "TILE_S": tile}
    return Variant(
        name=f"ring_decode/{name}",
        kernel=ring.ring_decode_kernel,
        types=types,
        constants=constants | {"INT8": cache == "int8", "LEAST_S": ring.LEAST, "STAGES": ring.STAGES},
        asynchronous=True,
    )


def _rings() -> list[Variant]:
    moshi: Any = {"times": 1, "heads": 32, "width": 128, "slots": 3000}
    mimi: Any = {"times": 2, "heads": 8, "width": 64, "slots": 250}
    return [
        *(_ring(f"{cache}-q1", cache, cache, **moshi) for cache in ("bf16", "fp16", "fp32")),
        _ring("int8-q1", "bf16", "int8", **moshi),
        *(_ring(f"bf16-in-{cache}-q1", "bf16", cache, **moshi) for cache in ("fp16", "fp32")),
        _ring("fp32-q2", "fp32", "fp32", **mimi),
        _ring("bf16-q2", "bf16", "bf16", **mimi),
        _ring("int8-q2", "bf16", "int8", **mimi),
    ]


def _merges(model: str) -> list[Variant]:
    """What follows the ring in one attention, the codec's in float32 too, and the depth transformer's own."""
    partials = {"partial": "*fp32", "weight": "*fp32", "moving": "*i1", "out": _TYPES[model]}
    depth = dict.fromkeys(("qkv", "k", "v", "out"), _TYPES[model]) | {"moving": "*i1", "position": "i32"}
    return [
        Variant(
            name=f"combine/{model}-q1",
            kernel=merge.combine_kernel,
            types=partials,
            constants={"T": 1, "H": 32, "D": 128, "P": ring.SPLITS, "WIDE": 128},
        ),
        Variant(
            name=f"combine/{model}-q2",
            kernel=merge.combine_kernel,
            types=partials,
            constants={"T": 2, "H": 8, "D": 64, "P": ring.SPLITS, "WIDE": 64},
        ),
        Variant(
            name="combine/fp32-q2",
            kernel=merge.combine_kernel,
            types=partials | {"out": _TYPES["fp32"]},
            constants={"T": 2, "H": 8, "D": 64, "P": ring.SPLITS, "WIDE": 64},
        ),
        Variant(
            name=f"depth_attention/{model}",
            kernel=depth_attention.depth_attention_kernel,
            types=depth | {"scale": "fp32"},
            constants={"H": 16, "D": 64, "S": 8, "WIDE": 64, "DEEP": 8},
            warps=depth_attention.WARPS,
        ),
    ]


def _layers(model: str) -> list[Variant]:
    kind = _TYPES[model]
    norm = dict.fromkeys(("x", "update", "alpha", "total", "out", "dtotal", "dout", "dx"), kind) | {"epsilon": "fp32"}
    gate = dict.fromkeys(("x", "out", "dout", "dx"), kind)
    temporal, depth = {"N": 4096, "WIDE": 4096}, {"N": 1024, "WIDE": 1024}
    gated = {"N": 11264, "BLOCK_N": norm_gate.BLOCK}
    return [
        Variant(
            name=f"rms_norm/{model}-4096",
            kernel=norm_gate.rms_norm_kernel,
            types=norm,
            constants=temporal | {"RESIDUAL": True},
            warps=norm_gate.WARPS,
        ),
        Variant(
            name=f"rms_norm/{model}-1024",
            kernel=norm_gate.rms_norm_kernel,
            types=norm,
            constants=depth | {"RESIDUAL": True},
            warps=norm_gate.WARPS,
        ),
        Variant(
            name=f"rms_norm_backward/{model}",
            kernel=norm_gate.rms_norm_backward_kernel,
            types=norm,
            constants=temporal,
            warps=norm_gate.WARPS,
        ),
        Variant(name=f"swiglu/{model}", kernel=norm_gate.swiglu_kernel, types=gate, constants=gated),
        Variant(name=f"swiglu_backward/{model}", kernel=norm_gate.swiglu_backward_kernel, types=gate, constants=gated),
    ]


def _choices() -> list[Variant]:
    types = dict.fromkeys(("logits", "raw", "temperature", "noise_scale", "pad_mult", "logprob"), "*fp32")
    types |= dict.fromkeys(("top_k", "seed", "frame", "token"), "*i64")
    types |= {"moving": "*i1", "codebook": "i32", "pad_id": "i32"}
    return [
        Variant(
            name=f"sample_topk/{name}",
            kernel=sample.sample_topk_kernel,
            types=types,
            constants={"V": card, "BLOCK_V": sample.BLOCK},
            warps=sample.WARPS,
        )
        for name, card in (("text-32000", 32000), ("audio-2048", 2048))
    ]


def _adapters(model: str) -> list[Variant]:
    types = {"inner": "*fp32", "scaling": "*fp32", "adapter": "*i64", "moving": "*i1"}
    types |= dict.fromkeys(("x", "down", "up", "out"), _TYPES[model])
    shrink = {"WIDTH_IN": 4096, "BLOCK_R": lora.RANKS, "BLOCK_I": lora.INPUTS}
    expand = {"WIDTH_OUT": 12288, "BLOCK_O": lora.OUTPUTS}
    made = []
    for rank in (16, 128):
        name = f"{model}-r{rank}"
        narrow, wide = shrink | {"R": rank}, expand | {"R": rank, "WIDE": rank}
        made += [
            Variant(
                name=f"lora_shrink/{name}",
                kernel=lora.lora_shrink_kernel,
                types=types,
                constants=narrow,
                asynchronous=True,
            ),
            Variant(name=f"lora_expand/{name}", kernel=lora.lora_expand_kernel, types=types, constants=wide),
        ]
    return made


def _training() -> list[Variant]:
    types = dict.fromkeys(("logits", "peak", "total", "picked", "lse", "dlogp"), "*fp32")
    types |= {"target": "*i64", "first": "i32", "size": "i32"}
    block = {"BLOCK_C": logp.BLOCK}
    return [
        Variant(name="logp_absorb/fp32", kernel=logp.logp_absorb_kernel, types=types, constants=block),
        Variant(name="logp_gradient/fp32", kernel=logp.logp_gradient_kernel, types=types, constants=block),
    ]


VARIANTS: Final[tuple[Variant, ...]] = (
    *_rings(),
    *_merges("bf16"),
    *_layers("bf16"),
    *_choices(),
    *_adapters("bf16"),
    *_training(),
)
