"""The codec, streaming both ways: sound to the user's tokens, the model's tokens to sound.

Upstream's `MimiModel` has one mask for both directions, but a row's encoder runs before its decoder has
anything to say. The two halves share no state, so the mask is set before each half.

Legend: B rows, S samples of a frame, U user codebooks, Q model codebooks (`dep_q`).
"""

from typing import Any

from torch import Tensor

from server.engine.rows import StreamingRows

__all__ = ["StreamingCodec"]


class StreamingCodec:
    """Every row's encoder and decoder of one `moshi.models.MimiModel`, which it puts in streaming mode."""

    def __init__(self, mimi: Any, rows: int) -> None:
        self._mimi = mimi
        self._rows = StreamingRows(mimi, rows)

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
