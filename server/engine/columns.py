"""The delayed grid of tokens: what the model reads next, and which whole columns are complete.

Moshi shifts codebook k by `delays[k]` frames, so the column that describes one 80 ms frame is spread over
several steps. This file owns the shifting and un-shifting for every row; it knows nothing of models.

A row's token of frame t in codebook k lies at position `t + 1 + delays[k]` of its grid; position 0 holds
start tokens, and so does every position up to `delays[k]`. Step n reads position n, writes what the model
said at n + 1 and what the user said at n + `delays[k]`. Two consequences, both as in upstream's `LMGen`:

- the user's frame of step 0 would belong to frame -1 and is never read;
- frame t is complete after step t + `max_delay`.

Masks (`moving_B`, `rows_B`) are bool on the CPU: the host plans each step without waiting for the device.

Legend: B rows, K = 1 + dep_q + user codebooks, U user codebooks, Q = dep_q, C ring positions.
"""

import torch
from torch import Tensor

__all__ = ["NOTHING", "TokenColumns"]

NOTHING = -2
"""What a column holds where nothing is out (`LMModel.ungenerated_token_id`)."""


class TokenColumns:
    """The last few positions of every row's grid, as one ring of int64 tokens on `device`."""

    def __init__(
        self, *, rows: int, delays: list[int], dep_q: int, text_start: int, audio_start: int, device: torch.device
    ) -> None:
        self._dep_q = dep_q
        self._max_delay = max(delays)
        self._ring_size = self._max_delay + 2
        self._delay_K = torch.tensor(delays, device=device)
        self._start_K = torch.tensor([text_start] + [audio_start] * (len(delays) - 1), device=device)
        self._token_BKC = torch.full((rows, len(delays), self._ring_size), NOTHING, device=device)
        self._logprob_BC = torch.full((rows, self._ring_size), torch.nan, device=device)
        self._step_B = torch.zeros(rows, dtype=torch.int64, device=device)
        self._host_step_B = torch.zeros(rows, dtype=torch.int64)
        self._device = device

    @property
    def step_B(self) -> Tensor:
        """How many steps each row has made, int64 `[B]` on the device."""
        return self._step_B

    def reset(self, rows_B: Tensor) -> None:
        """Start rows with True in `rows_B` again from an empty grid."""
        self._host_step_B.masked_fill_(rows_B, 0)
        rows = rows_B.to(self._device)
        self._step_B.masked_fill_(rows, 0)
        self._token_BKC.masked_fill_(rows[:, None, None], NOTHING)
        self._logprob_BC.masked_fill_(rows[:, None], torch.nan)

    def hears(self, moving_B: Tensor) -> Tensor:
        """Which rows' user frame of this step will ever be read, bool `[B]` on the CPU: all but a row's first."""
        return moving_B & (self._host_step_B > 0)

    def hear(self, user_BU: Tensor, moving_B: Tensor) -> None:
        """Write the user's tokens of this step (int64 `[B, U]`) for rows that move."""
        first = 1 + self._dep_q
        position = self._step_B[:, None] + self._delay_K[first:]
        self._put(slice(first, None), position, user_BU, moving_B.to(self._device))

    def next_input(self, moving_B: Tensor) -> Tensor:
        """What the temporal transformer reads now, int64 `[B, K, 1]`; start tokens for rows that stand still."""
        at_start = (self._step_B[:, None] <= self._delay_K) | ~moving_B.to(self._device)[:, None]
        position = (self._step_B % self._ring_size)[:, None, None].expand(-1, len(self._delay_K), 1)
        return torch.where(at_start[..., None], self._start_K[:, None], self._token_BKC.gather(2, position))

    def speak(self, text_B: Tensor, audio_BQ: Tensor, logprob_B: Tensor, moving_B: Tensor) -> None:
        """Write what the model said in this step for rows that move, and take them to their next step."""
        self._host_step_B += moving_B
        moving = moving_B.to(self._device)
        self._step_B += moving
        position = self._step_B[:, None]
        said = torch.cat([text_B[:, None], audio_BQ], dim=1)
        self._put(slice(1 + self._dep_q), position.expand_as(said), said, moving)
        ring = position % self._ring_size
        old = self._logprob_BC.gather(1, ring)
        self._logprob_BC.scatter_(1, ring, torch.where(moving[:, None], logprob_B[:, None], old))

    def complete(self, moving_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The newest frame whose every codebook is known, for rows that moved.

        Returns the column int64 `[B, K]`, the text token's log-probability float32 `[B]`, and bool `[B]` on
        the CPU: whether there is such a frame. Where there is none the others are `NOTHING` and NaN.
        """
        out_B = moving_B & (self._host_step_B > self._max_delay)
        silent = ~out_B.to(self._device)
        position = (self._step_B[:, None] - self._max_delay + self._delay_K) % self._ring_size
        column = self._token_BKC.gather(2, position[..., None])[..., 0]
        logprob = self._logprob_BC.gather(1, position[:, :1])[:, 0]
        return column.masked_fill(silent[:, None], NOTHING), logprob.masked_fill(silent, torch.nan), out_B

    def _put(self, codebooks: slice, position_BX: Tensor, value_BX: Tensor, moving: Tensor) -> None:
        ring = self._token_BKC[:, codebooks]
        index = (position_BX % self._ring_size)[..., None]
        ring.scatter_(2, index, torch.where(moving[:, None, None], value_BX[..., None], ring.gather(2, index)))
