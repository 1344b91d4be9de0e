"""The model that is trained: upstream's language model, frozen, with low-rank adapters on its temporal transformer.

It gives the log-probability of every frame's text token on both sides of preference pairs, from one reading of their
shared past, as serving would have given it: upstream's modules and weights in the same order of operations, float32
unless loaded otherwise. The logits of the vocabulary are never held. It knows no losses, files or rounds.

Legend: B pairs, S positions of a row, D width, H heads, N scored frames of the longer side, Q model audio codebooks,
K tokens of a column, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from moshi.utils.compile import no_compile
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint as recomputed

from kernels.chunked_logp import chunked_logp
from online_align.batches import Batch, Grid
from online_align.lora import adapt, parts_of
from online_align.losses import mix_streams
from online_align.temporal import TemporalLayer, View, norm
from server.engine.checkpoint import Checkpoint
from server.errors import DuologueError

__all__ = ["Policy", "PolicyError"]

_TEMPORAL: Final = "transformer."
_LAYERS: Final = "layers."
_PROBE_FRAMES: Final = 256
_DEPTH: Final = ("depformer", "depformer_in", "linears")


class PolicyError(DuologueError):
    """A model that cannot be trained, or an adapter that does not fit it."""


class Policy(nn.Module):
    """A language model of Moshi's family with adapters to train. It takes the model for itself.

    With an `audio_weight` above 0, what the model's sound is counts too and the depth transformer learns as well: for
    the ablation of section 1.7 of the paper, which found that unstable. `rank` and `scaling` are the adapters'. With
    `checkpointing`, a layer's inner values are computed again for the gradient: slower and a few times smaller.
    Raises `PolicyError` for a model of another family.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        rank: int = 16,
        scaling: float = 2.0,
        seed: int = 0,
        checkpointing: bool = False,
        audio_weight: float = 0.0,
    ) -> None:
        super().__init__()
        lm = checkpoint.lm
        _check_family(lm)
        self.linear_widths = _linear_widths(lm)
        """Inputs and outputs of every linear layer of the model by name: what an exported adapter must cover."""
        self.rank, self.scaling, self.checkpointing, self.enabled = rank, scaling, checkpointing, True
        self.grid = _grid(checkpoint)
        lm.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        adapt(lm.transformer, rank=rank, scaling=scaling, generator=generator)
        self._audio_weight = audio_weight
        if audio_weight > 0:
            for part in _DEPTH:
                adapt(getattr(lm, part), rank=rank, scaling=scaling, generator=generator)
                self.add_module(part, getattr(lm, part))
        self.text_emb, self.emb = lm.text_emb, lm.emb
        self.layers = nn.ModuleList(TemporalLayer(layer) for layer in lm.transformer.layers)
        self.out_norm, self.text_linear = lm.out_norm, lm.text_linear
        self._frequency = _frequencies(lm)
        self._speak = lm.forward_depformer_training

    def forward(self, batch: Batch) -> Tensor:
        """Log-probabilities of both sides' text tokens, float32 `[B, 2, N]`, in nats; 0 beyond a side's end.

        With an `audio_weight`, that much of the mean of the frame's audio tokens is added.
        """
        hidden = self.hidden(batch)
        audio = self.audio_logp(hidden, batch) if self._audio_weight > 0 else None
        # Cloned, because FSDP hangs its hooks on what a module returns, which must be no view.
        return mix_streams(self.text_logp(hidden, batch), audio, audio_weight=self._audio_weight).clone()

    def hidden(self, batch: Batch) -> Tensor:
        """What the model thinks before it says each scored frame, `[B, 2, N, D]`."""
        size, _, frames = batch.index_B2N.shape
        with no_compile():
            x_BSD = self._read(batch.tokens_BSK)
            turn = self._turn(batch.position_BS)
            view = View.of(batch, x_BSD.dtype)
            asked_BN = batch.index_B2N.reshape(size, -1)
            last = len(self.layers) - 1
            for number, layer in enumerate(self.layers):
                # Of the last layer only what is scored is needed.
                x_BSD = self._through(layer, x_BSD, turn, view, asked_BN if number == last else None)
            x_BSD = norm(self.out_norm)(x_BSD)
        return x_BSD.view(size, 2, frames, -1)

    def text_logp(self, hidden_B2ND: Tensor, batch: Batch) -> Tensor:
        """Log-probabilities of the text tokens, float32 `[B, 2, N]`."""
        text_B2N = batch.columns_B2NK[..., 0].contiguous()
        flat = hidden_B2ND.reshape(-1, hidden_B2ND.shape[-1])
        return chunked_logp(flat, self.text_linear.weight, text_B2N.reshape(-1)).view(text_B2N.shape)

    def audio_logp(self, hidden_B2ND: Tensor, batch: Batch) -> Tensor:
        """Log-probabilities of the audio tokens that each step says, float32 `[B, 2, N, Q]`; 0 where it says none."""
        said = batch.columns_B2NK.flatten(0, 2)
        with no_compile():
            logits = self._speak(said[..., None], hidden_B2ND.flatten(0, 2)[:, None])
        target = said[:, 1 : 1 + self.grid.model_codebooks]
        real = (target >= 0) & (target < self.grid.audio_start)
        logp = torch.log_softmax(logits[:, :, 0].float(), dim=-1)
        picked = logp.gather(2, torch.where(real, target, 0)[..., None])[..., 0]
        return torch.where(real, picked, 0.0).view(*batch.index_B2N.shape, -1)

    def text_distribution(self, hidden_ND: Tensor) -> Tensor:
        """All log-probabilities of the text stream, float32 `[N, V]`: for measuring divergence on a few frames."""
        return torch.log_softmax(functional.linear(hidden_ND, self.text_linear.weight).float(), dim=-1)

    @torch.no_grad()
    def divergence(self, batch: Batch, reference: Callable[[], Any]) -> float:
        """Mean KL(policy || reference) of the text stream over the chosen sides' frames, in nats.

        `reference` is a context manager in which this model speaks as the reference, such as `without_adapter`.
        """
        real = batch.real_B2N[:, 0] > 0
        ours = self.hidden(batch)[:, 0][real]
        with reference():
            theirs = self.hidden(batch)[:, 0][real]
        total = 0.0
        for at in range(0, len(ours), _PROBE_FRAMES):
            p = self.text_distribution(ours[at : at + _PROBE_FRAMES])
            q = self.text_distribution(theirs[at : at + _PROBE_FRAMES])
            total += float((p.exp() * (p - q)).sum())
        return total / max(1, len(ours))

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Speak as the base model."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def learned(self) -> dict[str, Tensor]:
        """What is trained, float32, by upstream's names (`transformer.layers.0....lora_A.weight`). Not copies."""
        return {_upstream(name): tensor for name, tensor in self.named_parameters() if tensor.requires_grad}

    @torch.no_grad()
    def learn_from(self, parts: Mapping[str, Tensor]) -> None:
        """Go on from an adapter: its tensors by upstream's names, of this rank. Raises `PolicyError`."""
        for name, tensor in self.learned().items():
            given = parts.get(name)
            if given is None or given.shape != tensor.shape:
                raise PolicyError(
                    got=f"an adapter with {name} of {'nothing' if given is None else list(given.shape)}",
                    expected=f"{list(tensor.shape)}",
                    remedy=f"go on from an adapter of rank {self.rank}, or train from the base model",
                )
            tensor.copy_(given)

    def _through(self, layer: nn.Module, x: Tensor, turn: Tensor, view: View, asked: Tensor | None) -> Tensor:
        given = (x, turn, view, asked, self.enabled)
        if self.checkpointing and torch.is_grad_enabled():
            made: Tensor = recomputed(layer, *given, use_reentrant=False, preserve_rng_state=False)
            return made
        out: Tensor = layer(*given)
        return out

    def _read(self, tokens_BSK: Tensor) -> Tensor:
        """Sum the embeddings of a column, in upstream's order: audio first, text last."""
        x: Tensor = self.emb[0](tokens_BSK[..., 1])
        for index in range(1, len(self.emb)):
            x = x + self.emb[index](tokens_BSK[..., 1 + index])
        read: Tensor = x + self.text_emb(tokens_BSK[..., 0])
        return read

    def _turn(self, position_BS: Tensor) -> Tensor:
        """Rotation of each position, complex64 `[B, 1, S, head / 2]`."""
        angle = position_BS[:, None, :, None].float() * self._frequency.to(position_BS.device)
        return torch.polar(torch.ones_like(angle), angle)


def _frequencies(lm: Any) -> Tensor:
    attention = lm.transformer.layers[0].self_attn
    half = attention.embed_dim // attention.num_heads // 2
    return torch.exp(torch.arange(half).float() * (-math.log(attention.rope.max_period) / half))


def _linear_widths(lm: nn.Module) -> dict[str, tuple[int, int]]:
    return {
        name: (module.in_features, module.out_features)
        for name, module in lm.named_modules()
        if isinstance(module, nn.Linear)
    }


def _grid(checkpoint: Checkpoint) -> Grid:
    lm = checkpoint.lm
    return Grid(
        delays=tuple(lm.delays),
        text_start=lm.text_initial_token_id,
        audio_start=lm.initial_token_id,
        model_codebooks=lm.dep_q,
        context=lm.context,
        frame_rate=float(checkpoint.mimi.frame_rate),
    )


def _upstream(name: str) -> str:
    """Upstream's name of one of our parameters."""
    if not name.startswith(_LAYERS):
        return name
    _, number, _, rest = name.split(".", 3)
    return f"{_TEMPORAL}{_LAYERS}{number}.{rest}"


def _check_family(lm: Any) -> None:
    """The forward pass above is written for Moshi's kind of transformer and must not run on another unnoticed."""
    layer = lm.transformer.layers[0]
    attention = layer.self_attn
    rules = (
        (not any(True for _ in parts_of(lm)), "a model that already has adapters"),
        (lm.fuser is None and lm.condition_provider is None, "a conditioned model"),
        (lm.transformer.positional_embedding == "rope", "positions other than rope"),
        (attention.rope is not None and attention.rope.interleave, "another kind of rope"),
        (attention.causal and attention.kv_repeat == 1 and len(attention.in_projs) == 1, "another kind of attention"),
        (layer.cross_attention is None and not layer.skip_self_attn, "cross attention, or a layer without any"),
        (lm.text_linear.bias is None, "a bias on the text logits"),
    )
    for holds, got in rules:
        if not holds:
            raise PolicyError(got=got, expected="a plain dialogue model of Moshi's family", remedy="train another")
