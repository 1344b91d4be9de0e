"""How far an adapter moves the model's text distribution, frame by frame, on calls as the base model had them.

The columns are given to upstream's own modules in float32, once as loaded and once with the adapter added to the
weights: another way than the serving engine's and the learner's, so that a mistake in one of them shows. It knows no
limits.

Legend: B calls, T frames, K tokens of a column, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import numpy as np
import torch
from moshi.utils.compile import no_compile
from numpy.typing import NDArray
from torch import Tensor

from server.engine.adapters import AdapterFile

__all__ = ["Drift", "columns_batch", "drift", "text_logits", "using"]

_NO_TOKEN: Final = -1
_BATCH: Final = 8

Columns = NDArray[np.integer]


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """What differs between two policies on the same frames, in nats."""

    frames: int
    kl: float
    """Mean over frames of KL(first || second)."""
    kl_p99: float
    entropy: float
    """Mean entropy of the second's distribution over frames in which either says a word; see `entropy_first`."""
    entropy_first: float
    logprob_change: float
    """Mean over those frames of the second's log-probability of the recorded token less the first's."""


@contextmanager
def using(lm: Any, file: AdapterFile | None) -> Iterator[Any]:
    """The model with an adapter added to its float32 weights, for as long as the block lasts; None changes nothing."""
    modules = dict(lm.named_modules())
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for name, part in (file.parts if file else {}).items():
            if part.b.any():
                weight = modules[name].weight
                assert weight.dtype == torch.float32, "smaller types round an adapter away"
                kept.append((weight, weight.detach().clone()))
                with torch.no_grad():
                    weight.add_(part.b @ part.a, alpha=file.scaling if file else 0.0)
        yield lm
    finally:
        with torch.no_grad():
            for weight, before in kept:
                weight.copy_(before)


def columns_batch(calls: Sequence[Columns]) -> Tensor:
    """Calls `[T, K]` of several lengths as int64 `[B, T, K]`, filled up at the end, where nothing looks back from."""
    longest = max(len(call) for call in calls)
    filled = np.full((len(calls), longest, calls[0].shape[1]), _NO_TOKEN, np.int64)
    for row, call in zip(filled, calls, strict=True):
        row[: len(call)] = call
    return torch.from_numpy(filled)


def text_logits(lm: Any, columns_BTK: Tensor) -> Tensor:
    """Logits of each frame's text token given all before it, float32 `[B, T, V]`, as `LMModel.forward` has them."""
    calls, frames, codebooks = columns_BTK.shape
    read_BKT = torch.full((calls, codebooks, frames), int(lm.initial_token_id))
    read_BKT[:, 0] = int(lm.text_initial_token_id)
    for codebook, delay in enumerate(lm.delays):
        read_BKT[:, codebook, 1 + delay :] = columns_BTK[:, : max(0, frames - 1 - delay), codebook]
    with torch.inference_mode(), no_compile():
        logits: Tensor = lm.forward_text(read_BKT)[1][:, 0].float()
    return logits


def drift(
    lm: Any, calls: Sequence[Columns], first: AdapterFile | None, second: AdapterFile | None, *, silent: Sequence[int]
) -> Drift:
    """Compare two policies on calls `[T, K]`. `silent` are the text tokens that say nothing."""
    quiet = torch.tensor(list(silent))
    kl, spoken = [], []
    for start in range(0, len(calls), _BATCH):
        columns = columns_batch(calls[start : start + _BATCH])
        with using(lm, first):
            one = text_logits(lm, columns).log_softmax(-1)
        with using(lm, second):
            other = text_logits(lm, columns).log_softmax(-1)
        real = columns[..., 0] >= 0
        each = (one.exp() * (one - other)).sum(-1)
        kl.append(each[real])
        says = torch.isin(columns[..., 0], quiet, invert=True) & real
        token = columns[..., 0].clamp(min=0)[..., None]
        change = (other.gather(-1, token) - one.gather(-1, token))[..., 0]
        spoken.append(torch.stack([_entropy(one)[says], _entropy(other)[says], change[says]]))
    kl_N = torch.cat(kl)
    before, after, change = torch.cat(spoken, dim=1).mean(dim=1).tolist()
    return Drift(
        frames=len(kl_N),
        kl=float(kl_N.mean()),
        kl_p99=float(kl_N.quantile(0.99)),
        entropy=after,
        entropy_first=before,
        logprob_change=change,
    )


def _entropy(log_BTV: Tensor) -> Tensor:
    return -(log_BTV.exp() * log_BTV).sum(-1)
