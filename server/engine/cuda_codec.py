"""The codec on a GPU: upstream's convolutions and quantiser, and its two transformers on kernels.

A frame brings two positions to each transformer (25 Hz against 12.5), which go through the same ring attention as the
language model's one. Hearing and speaking share no state, so each half has its own mask of rows, one tensor that all
its convolutions and its attention look at. Convolutions with their transformer are one CUDA graph for each half; the
change of frame rate and the quantiser stay outside, where upstream has them, because they exchange their state instead
of writing into it.

Legend: B rows, S samples of a frame, C latent width, T latent positions of a frame, Q model audio codebooks.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from moshi.models import MimiModel
from moshi.modules.streaming import StreamingModule
from torch import Tensor, nn
from torch.nn import functional

from server.engine.cuda_graph import recorded
from server.engine.cuda_rings import Rings
from server.engine.layers import plain_linear, require

__all__ = ["CodecTransformer", "Half", "KernelCodec"]


class CodecTransformer:
    """All rows' state of one of the codec's transformers (`ProjectedTransformer`), and its step of `times` positions.

    Raises `UnsupportedModelError` for layers of another kind.
    """

    def __init__(self, module: Any, moving_B: Tensor, *, times: int) -> None:
        require(module.conv_layout and len(module.output_projs) == 1, "a codec's transformer with several outputs")
        dtype = next(module.parameters()).dtype
        for layer in module.transformer.layers:
            require(layer.gating is None, "a codec's transformer with gates")
        self.rings = Rings(module.transformer, moving_B, times=times, dtype=dtype, kept=dtype)
        self.moving_B, self.times = moving_B, times
        """Who moves, and how many positions a moving row takes."""
        self._module = module

    def reset(self, rows_B: Tensor) -> None:
        """Forget the past of rows with True in `rows_B`: what was not written anew is not read."""
        self.rings.offset_B.masked_fill_(rows_B, 0)

    def age(self, row: int, frames: int) -> None:
        """Let a row's attention cost what it costs after so many frames."""
        self.rings.offset_B[row] = frames * self.times

    def step(self, x_BCT: Tensor) -> Tensor:
        """The transformer's output `[B, C, T]` of one frame, in which moving rows take `times` positions."""
        module = self._module
        x = x_BCT.transpose(1, 2)
        x = x if module.input_proj is None else module.input_proj(x)
        table = self.rings.table()
        for index, layer in enumerate(module.transformer.layers):
            attention = layer.self_attn
            qkv = functional.linear(layer.norm1(x), plain_linear(attention.in_projs[0]))
            attended = self.rings.attend(index, qkv, table)
            x = x + layer.layer_scale_1(functional.linear(attended, plain_linear(attention.out_projs[0])))
            update = layer.linear2(layer.activation(layer.linear1(layer.norm2(x))))
            x = x + layer.layer_scale_2(update)
        self.rings.advance()
        out: Tensor = module.output_projs[0](x).transpose(1, 2)
        return out


class Half(NamedTuple):
    """What is recorded of one direction: `replay` does what `once` does, from `given` to `made`."""

    transformer: CodecTransformer
    module: Any
    """Upstream's transformer."""
    once: Callable[[], None]
    replay: Callable[[], object]
    given: Tensor
    made: Tensor


class KernelCodec:
    """Every row's encoder and decoder of one `moshi.models.MimiModel`, whose convolutions it puts in streaming mode.

    Its methods are those of `full_width.StreamingCodec`. Raises `UnsupportedModelError` for a codec that is not built
    like Mimi.
    """

    def __init__(self, mimi: MimiModel, rows: int) -> None:
        model: Any = mimi
        device = next(model.parameters()).device
        times = round(model.encoder_frame_rate / model.frame_rate)
        require(model.encoder_transformer is not None and model.decoder_transformer is not None, "a plain codec")
        require(times == 1 or model.resample_method == "conv", "a codec that changes its frame rate otherwise")
        self._mimi, self._device = model, device
        self._hears_B, self._speaks_B = (torch.zeros(rows, dtype=torch.bool, device=device) for _ in range(2))
        self._listener = CodecTransformer(model.encoder_transformer, self._hears_B, times=times)
        self._speaker = CodecTransformer(model.decoder_transformer, self._speaks_B, times=times)
        changes = (model.downsample.conv,), (model.upsample.convtr,)
        ears, mouth = changes if times > 1 else ((), ())
        self._ears = _streaming((model.encoder, *ears), rows, self._hears_B)
        self._mouth = _streaming((*mouth, model.decoder), rows, self._speaks_B)
        self._pcm_B1S = torch.zeros(rows, 1, model.frame_size, device=device)
        self._heard_BCT, self._meant_BCT = (torch.zeros(rows, model.dimension, times, device=device) for _ in range(2))
        self._said_B1S = torch.zeros_like(self._pcm_B1S)
        self._hear = recorded(self._hear_once, device)
        self._speak = recorded(self._speak_once, device)

    @property
    def frame_size(self) -> int:
        """Samples in one frame."""
        return int(self._mimi.frame_size)

    @property
    def transformers(self) -> tuple[CodecTransformer, CodecTransformer]:
        """The encoder's and the decoder's."""
        return self._listener, self._speaker

    @property
    def halves(self) -> dict[str, Half]:
        """What is recorded, for whoever checks it."""
        upstream = self._mimi.encoder_transformer, self._mimi.decoder_transformer
        ears = self._hear_once, self._hear, self._pcm_B1S, self._heard_BCT
        mouth = self._speak_once, self._speak, self._meant_BCT, self._said_B1S
        return {
            "hearing": Half(self._listener, upstream[0], *ears),
            "speaking": Half(self._speaker, upstream[1], *mouth),
        }

    def reset(self, rows_B: Tensor) -> None:
        """Forget what rows with True in `rows_B` (bool, CPU) heard and said."""
        rows = rows_B.to(self._device)
        for part in (*self._ears, *self._mouth):
            part.reset_streaming(rows)
        for transformer in self.transformers:
            transformer.reset(rows)

    def encode(self, pcm_BS: Tensor, moving_B: Tensor) -> Tensor:
        """Tokens int64 `[B, codebooks]` of one frame, float32 `[B, S]`; only rows in `moving_B` remember it."""
        self._hears_B.copy_(moving_B)
        self._pcm_B1S.copy_(pcm_BS[:, None])
        self._hear()
        codes: Tensor = self._mimi.quantizer.encode(self._mimi._to_framerate(self._heard_BCT))  # noqa: SLF001 - its own way
        return codes[..., 0]

    def decode(self, audio_BQ: Tensor, moving_B: Tensor) -> Tensor:
        """Sound float32 `[B, S]` of one frame of tokens; rows not in `moving_B` give zeros and stay as they are."""
        self._speaks_B.copy_(moving_B)
        latent = self._mimi.quantizer.decode(audio_BQ.clamp(min=0)[..., None])
        self._meant_BCT.copy_(self._mimi._to_encoder_framerate(latent))  # noqa: SLF001 - its own way
        self._speak()
        return self._said_B1S[:, 0].masked_fill(~self._speaks_B[:, None], 0.0)

    def _hear_once(self) -> None:
        self._heard_BCT.copy_(self._listener.step(self._mimi.encoder(self._pcm_B1S)))

    def _speak_once(self) -> None:
        self._said_B1S.copy_(self._mimi.decoder(self._speaker.step(self._meant_BCT)))


def _streaming(parts: Iterable[Any], rows: int, moving_B: Tensor) -> tuple[Any, ...]:
    """Put parts of the codec in streaming mode, all with one mask, and return them.

    Upstream gives each layer a mask of its own, and sets them one by one.
    """
    started = tuple(parts)
    for part in started:
        part.streaming_forever(rows)
        for module in _streaming_modules(part):
            module._streaming_state.exec_mask = moving_B  # noqa: SLF001 - one tensor for all
    return started


def _streaming_modules(part: nn.Module) -> list[StreamingModule[Any]]:
    return [module for module in part.modules() if isinstance(module, StreamingModule)]
