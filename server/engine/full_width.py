"""What a frame at full width has around its language model, whatever computes that: the codec, the delayed grid of
tokens, and the way from the host's sound to the device and back.

Upstream's `MimiModel` has one mask for both directions, but a row's encoder runs before its decoder has anything to
say. The two halves share no state, so the mask is set before each half.

Legend: B rows, S samples of a frame, K all codebooks, Q model audio codebooks (`dep_q`).
"""

import contextlib
import functools
import time
from abc import ABC, abstractmethod
from typing import Any, Final, NamedTuple, Protocol

import torch
from moshi.utils.compile import no_compile
from torch import Tensor

from server.engine.checkpoint import Checkpoint
from server.engine.columns import TokenColumns
from server.engine.cuda_graph import on_device
from server.engine.frames import LOUDEST, StageSeconds, Stepped
from server.engine.rows import StreamingRows

__all__ = ["Codec", "FullWidthStep", "SamplingSizes", "StreamingCodec"]


_for_good: Final = contextlib.ExitStack()


class Codec(Protocol):
    """Every row's encoder and decoder; masks are bool on the CPU."""

    @property
    def frame_size(self) -> int:
        """Samples in one frame."""

    def reset(self, rows_B: Tensor) -> None:
        """Forget what rows with True in `rows_B` heard and said."""

    def encode(self, pcm_BS: Tensor, moving_B: Tensor) -> Tensor:
        """Tokens int64 `[B, codebooks]` of one frame, float32 `[B, S]`; only rows in `moving_B` remember it."""

    def decode(self, audio_BQ: Tensor, moving_B: Tensor) -> Tensor:
        """Sound float32 `[B, S]` of one frame of tokens; rows not in `moving_B` give zeros and stay as they are."""


class SamplingSizes(NamedTuple):
    """What sampling must know of a model."""

    rows: int
    text_card: int
    dep_q: int
    card: int
    padding_ids: tuple[int, ...]
    device: torch.device


class FullWidthStep(ABC):
    """The frame's order of work. Whoever inherits it thinks: `_think` reads `_columns` and speaks into them."""

    def __init__(self, checkpoint: Checkpoint, rows: int, device: torch.device) -> None:
        _never_compile()
        lm = checkpoint.lm
        self._device, self._rows = device, rows
        self._user_codebooks: int = lm.n_q - lm.dep_q
        self._model_codebooks: int = lm.dep_q
        self._sizes = SamplingSizes(
            rows=rows,
            text_card=lm.text_linear.out_features,
            dep_q=lm.dep_q,
            card=lm.card,
            padding_ids=(lm.text_padding_token_id, lm.end_of_text_padding_id),
            device=device,
        )
        with torch.inference_mode(), no_compile(), on_device(device):
            self._codec = self._make_codec(checkpoint.mimi)
            self._columns = TokenColumns(
                rows=rows,
                delays=lm.delays,
                dep_q=lm.dep_q,
                text_start=lm.text_initial_token_id,
                audio_start=lm.initial_token_id,
                device=device,
            )

    @property
    def frame_size(self) -> int:
        """Samples in one frame."""
        return self._codec.frame_size

    def step(self, pcm_BS: Tensor, moving_B: Tensor) -> Stepped:
        """One frame of every row in `moving_B` (bool, CPU)."""
        torch.set_flush_denormal(True)  # per thread, and denormals make convolutions many times slower
        with torch.inference_mode(), no_compile(), on_device(self._device):
            sound_B = pcm_BS.abs().amax(dim=1) <= LOUDEST  # False for NaN
            heard_BS = pcm_BS.masked_fill(~(moving_B & sound_B)[:, None], 0.0)
            tokens, logprob, spoken, stages = self._frame(heard_BS.to(self._device), moving_B)
        # Tensors made in inference mode refuse later writes; their copies are ordinary ones.
        return Stepped(
            tokens.cpu().clone(), logprob.cpu().clone(), spoken.cpu().clone(), (moving_B & ~sound_B).clone(), stages
        )

    def _frame(self, pcm_BS: Tensor, moving_B: Tensor) -> tuple[Tensor, Tensor, Tensor, StageSeconds]:
        columns = self._columns
        began = time.perf_counter()
        user = self._codec.encode(pcm_BS, columns.hears(moving_B))[:, : self._user_codebooks]
        columns.hear(user, moving_B)
        encoded = time.perf_counter()
        thought = self._think(moving_B)
        tokens, logprob, out_B = columns.complete(moving_B)
        voiced = time.perf_counter()
        spoken = self._codec.decode(tokens[:, 1 : 1 + self._model_codebooks], out_B)
        stages = StageSeconds(
            encode=encoded - began,
            temporal=thought - encoded,
            depth=voiced - thought,
            decode=time.perf_counter() - voiced,
        )
        return tokens, logprob, spoken, stages

    def _make_codec(self, mimi: Any) -> Codec:
        return StreamingCodec(mimi, self._rows)

    @abstractmethod
    def _think(self, moving_B: Tensor) -> float:
        """Read the next column and speak. Returns when the text was chosen, by `time.perf_counter`."""


@functools.cache
def _never_compile() -> None:
    """Enter `no_compile` for good: upstream's flag is one for the process, and whoever leaves first takes it from all.

    Two engines that step in two threads, as when one is warmed up beside another, would now and then compile.
    """
    _for_good.enter_context(no_compile())


class StreamingCodec:
    """Every row's encoder and decoder of one `moshi.models.MimiModel`, which it puts in streaming mode."""

    def __init__(self, mimi: Any, rows: int) -> None:
        self._mimi = mimi
        self._rows = StreamingRows(mimi, rows)

    @property
    def frame_size(self) -> int:
        """Samples in one frame."""
        return int(self._mimi.frame_size)

    def reset(self, rows_B: Tensor) -> None:
        """Forget what rows with True in `rows_B` (bool, CPU) heard and said."""
        self._rows.reset(rows_B)

    def encode(self, pcm_BS: Tensor, moving_B: Tensor) -> Tensor:
        """Tokens int64 `[B, codebooks]` of one frame, float32 `[B, S]`; only rows in `moving_B` remember it."""
        self._rows.select(moving_B)
        codes: Tensor = self._mimi.encode(pcm_BS[:, None])
        return codes[..., 0]

    def decode(self, audio_BQ: Tensor, moving_B: Tensor) -> Tensor:
        """Sound float32 `[B, S]` of one frame of tokens; rows not in `moving_B` give zeros and stay as they are."""
        self._rows.select(moving_B)
        pcm: Tensor = self._mimi.decode(audio_BQ.clamp(min=0)[..., None])
        return pcm[:, 0].masked_fill(~moving_B.to(pcm.device)[:, None], 0.0)
