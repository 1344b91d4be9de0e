"""The codec as `kernels.cpu` programs: sound to the caller's tokens, and the model's tokens to sound.

Sound is kept with time first, `[time, channels]`. A convolution's input lies behind its history in one stretch of
memory (a `_Window`), so its windows are overlapping rows of a product; a transposed convolution of stride S is a
product of the present and the last input with S outputs. Nothing is copied but the histories.

Legend: C channels, K kernel, S stride, O and I outputs and inputs, L positions in one frame.
"""

from typing import Any, NamedTuple

import torch
from moshi.modules.conv import StreamingConv1d, StreamingConvTranspose1d
from moshi.modules.seanet import SEANetResnetBlock
from torch import Tensor, nn

from kernels.cpu import Program, RowMemory
from kernels.cpu.program import LANES, Counter, Tokens
from server.engine.layers import require, transformer

__all__ = ["decode_program", "encode_program"]


class _Window(NamedTuple):
    """Where a convolution's input is: `history` floats, then one frame's."""

    start: int
    history: int
    length: int
    channels: int

    @property
    def data(self) -> int:
        return self.start + self.history


def encode_program(program: Program, memory: RowMemory, mimi: Any, codebooks: int) -> None:
    """Add the hearing of one frame by `mimi` (`moshi.models.MimiModel`): the first `codebooks` tokens."""
    network = _Network(program, memory, Counter.HEARD)
    layers = list(mimi.encoder.model)
    ear = network.window(layers[0], mimi.frame_size)
    latents = network.window(mimi.downsample.conv, mimi.frame_size // mimi.encoder.hop_length)
    program.hear(ear.data, mimi.frame_size)
    network.sequence(layers, ear, latents.data)
    network.transformer(mimi.encoder_transformer, latents)
    latent = memory.scratch(mimi.dimension)
    network.convolve(mimi.downsample.conv, latents, latent)
    quantizer = mimi.quantizer
    index = 0
    for branch in (quantizer.rvq_first, quantizer.rvq_rest):
        residual = memory.scratch(branch.dimension)
        program.matmul(latent, residual, _projection(branch.input_proj))
        for layer in branch.vq.layers:
            if index < codebooks:
                require(isinstance(layer.project_in, nn.Identity), "a codebook with a projection")
                program.quantise(residual, layer.embedding, index)
            index += 1
    require(index >= codebooks, f"{index} codebooks for {codebooks}")


def decode_program(program: Program, memory: RowMemory, mimi: Any, codebooks: int) -> None:
    """Add the saying of one complete frame by `mimi`: the model's `codebooks` tokens to sound."""
    network = _Network(program, memory, Counter.SPOKEN)
    latent = network.window(mimi.upsample.convtr, 1)
    tables = _decoding_tables(mimi.quantizer)[:codebooks]
    require(len(tables) == codebooks, f"{len(tables)} codebooks for {codebooks}")
    for index, table in enumerate(tables):
        program.embed(latent.data, table, Tokens.COMPLETE, 1 + index, add=index > 0)
    layers = list(mimi.decoder.model)
    latents = network.window(layers[0], mimi.frame_size // mimi.decoder.hop_length)
    network.convolve(mimi.upsample.convtr, latent, latents.data)
    network.transformer(mimi.decoder_transformer, latents)
    sound = memory.scratch(mimi.frame_size)
    network.sequence(layers, latents, sound)
    program.say(sound, mimi.frame_size)


class _Network:
    """Convolutions of one direction."""

    def __init__(self, program: Program, memory: RowMemory, counter: Counter) -> None:
        self._program, self._memory, self._counter = program, memory, counter

    def window(self, module: Any, length: int) -> _Window:
        """Make room for the input of a streaming convolution, `length` positions in one frame."""
        if isinstance(module, StreamingConvTranspose1d):
            inner = module.convtr.convtr
            kernel, stride = inner.kernel_size[0], inner.stride[0]
            require(kernel == 2 * stride, f"a transposed convolution of kernel {kernel} and stride {stride}")
            history = 1
        else:
            require(isinstance(module, StreamingConv1d), f"a layer of type {type(module).__name__}")
            inner = module.conv.conv
            require(inner.dilation[0] == 1 and inner.groups == 1, "a dilated or grouped convolution")
            history = inner.kernel_size[0] - inner.stride[0]
        channels = inner.in_channels
        start = self._memory.scratch((history + length) * channels)
        self._memory.states.append(slice(start, start + history * channels))
        return _Window(start, history * channels, length, channels)

    def convolve(self, module: Any, window: _Window, y: int, *, add: bool = False) -> None:
        """A convolution, plain or transposed, from its window to `y` `[L', O]`; then its history moves on."""
        if isinstance(module, StreamingConvTranspose1d):
            weight, bias, stride = _transposed(module.convtr.convtr)
        else:
            inner = module.conv.conv
            weight, bias, stride = inner.weight.permute(0, 2, 1).flatten(1), inner.bias, inner.stride[0]
            if module.pad_mode == "replicate":
                self._program.replicate(window.start, window.channels, window.history // window.channels, self._counter)
        positions = window.length // stride
        together = _together(weight.shape[0], positions)
        self._program.matmul(
            window.start,
            y,
            _side_by_side(weight, stride * window.channels, together),
            None if bias is None else bias.repeat(together),
            times=positions // together,
            x_stride=together * stride * window.channels,
            y_stride=together * weight.shape[0],
            add=add,
        )
        self._program.shift(window.start, window.history, window.length * window.channels)

    def sequence(self, layers: list[nn.Module], window: _Window, y: int) -> None:
        """SEANet's layers, from the first one's window to `y`: convolutions with ELU and residual blocks between."""
        waiting, x, length = layers[0], -1, window.length
        active = False
        for layer in layers[1:]:
            if x < 0:
                length, channels = _output(waiting, window)
                x = self._memory.scratch(length * channels)
                self.convolve(waiting, window, x)
            if isinstance(layer, SEANetResnetBlock):
                self._block(layer, x, length)
            elif isinstance(layer, nn.ELU):
                require(layer.alpha == 1.0, "an ELU with another alpha")
                active = True
            else:
                require(active, "a convolution without an activation before it")
                waiting, window = layer, self._activated(layer, x, length)
                x, active = -1, False
        require(x < 0, "no convolution at the end")
        self.convolve(waiting, window, y)

    def transformer(self, module: Any, latents: _Window) -> None:
        """One of the codec's transformers, in place on a window's new positions."""
        require(module.input_proj is None, "a transformer of another width than the codec")
        require(all(isinstance(projection, nn.Identity) for projection in module.output_projs), "output projections")
        transformer(
            self._program, self._memory, module.transformer, latents.data, counter=self._counter, times=latents.length
        )

    def _activated(self, module: Any, x: int, length: int) -> _Window:
        """The window of a convolution, filled with the ELU of `x`."""
        window = self.window(module, length)
        self._program.elu(x, window.data, length * window.channels)
        return window

    def _block(self, module: SEANetResnetBlock, x: int, length: int) -> None:
        """A residual block, in place on `x`."""
        require(isinstance(module.shortcut, nn.Identity), "a residual block with a convolution beside it")
        layers: list[Any] = list(module.block)
        require([type(layer) for layer in layers] == [nn.ELU, StreamingConv1d] * 2, "another residual block")
        first = self._activated(layers[1], x, length)
        inner = self._memory.scratch(length * layers[1].conv.conv.out_channels)
        self.convolve(layers[1], first, inner)
        self.convolve(layers[3], self._activated(layers[3], inner, length), x, add=True)


def _output(module: Any, window: _Window) -> tuple[int, int]:
    """Positions and channels of what a convolution gives for one frame."""
    if isinstance(module, StreamingConvTranspose1d):
        inner = module.convtr.convtr
        return window.length * inner.stride[0], inner.out_channels
    inner = module.conv.conv
    return window.length // inner.stride[0], inner.out_channels


def _transposed(inner: nn.ConvTranspose1d) -> tuple[Tensor, Tensor | None, int]:
    """Weight `[S O, 2 I]` over the last and the present input, bias `[S O]`, and the stride over the input: 1."""
    stride, groups = inner.stride[0], inner.groups
    weight_IOK = inner.weight
    if groups > 1:
        require(groups == inner.in_channels == inner.out_channels, "a convolution of a few groups")
        weight_IOK = torch.diag_embed(weight_IOK[:, 0].T).permute(1, 2, 0)
    last, present = weight_IOK[..., stride:], weight_IOK[..., :stride]
    weight = torch.cat([last, present]).permute(2, 1, 0).flatten(0, 1)
    return weight, None if inner.bias is None else inner.bias.repeat(stride), 1


def _together(outputs: int, positions: int) -> int:
    """How many positions of a convolution to compute as one: fewer than sixteen outputs leave lanes idle."""
    return next((count for count in range(LANES // outputs, 1, -1) if positions % count == 0), 1)


def _side_by_side(weight_OI: Tensor, step: int, together: int) -> Tensor:
    """A convolution's weight for `together` positions, `step` floats apart: `[together O, (together - 1) step + I]`."""
    outputs, width = weight_OI.shape
    wide = weight_OI.new_zeros(together, outputs, (together - 1) * step + width)
    for position in range(together):
        wide[position, :, position * step : position * step + width] = weight_OI
    return wide.flatten(0, 1)


def _projection(module: Any) -> Tensor:
    """The weight `[O, I]` of a quantiser's projection."""
    require(isinstance(module, nn.Conv1d) and module.bias is None, "a quantiser without a plain projection")
    weight: Tensor = module.weight[..., 0]
    return weight


def _decoding_tables(quantizer: Any) -> list[Tensor]:
    """What each token of each codebook adds to the latent, `[V, dimension]`."""
    return [
        layer.embedding @ _projection(branch.output_proj).T
        for branch in (quantizer.rvq_first, quantizer.rvq_rest)
        for layer in branch.vq.layers
    ]
