"""Gumbel noise that depends on nothing but (seed, frame, codebook, token).

A row must draw the same tokens whatever its neighbours do and however wide the batch is, so no random
generator keeps a state here: each number is a hash of its own address. The hash is Philox4x32-10 (Salmon et
al., *Parallel Random Numbers: As Easy as 1, 2, 3*, SC 2011), the one that Triton computes too.

Legend: B rows, N blocks of four numbers, K audio codebooks, V vocabulary.
"""

import torch
from torch import Tensor

__all__ = ["NoiseSource", "philox"]

_LOW_32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LANES = 4


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the 64-bit product; int64 wraps round, which leaves both halves right."""
    product = b * a
    return (product >> 32) & _LOW_32, product & _LOW_32


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four random 32-bit numbers for each counter and key.

    All tensors are int64 holding 32-bit values and broadcast against one another; so do the four results.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW_32, (k1 + _KEY_STEPS[1]) & _LOW_32
    return c0, c1, c2, c3


def _gumbel(bits: Tensor) -> Tensor:
    """Standard Gumbel noise, float32, from 32-bit integers; always finite.

    The upper 23 bits make a uniform number strictly between 0 and 1 that float32 holds exactly.
    """
    uniform = ((bits >> 9).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))


class NoiseSource:
    """Noise for one frame of every row: one vocabulary of text and `dep_q` of audio.

    The counter is (token // 4, codebook, frame, 0) and the key is the seed; text is codebook 0.
    """

    def __init__(self, *, text_card: int, dep_q: int, card: int, device: torch.device) -> None:
        self._text_card, self._dep_q, self._card = text_card, dep_q, card
        self._text_blocks = -(-text_card // _LANES)
        audio_blocks = -(-card // _LANES)
        blocks = [torch.arange(self._text_blocks)] + [torch.arange(audio_blocks)] * dep_q
        codebooks = [torch.full_like(block, codebook) for codebook, block in enumerate(blocks)]
        self._block_1N = torch.cat(blocks)[None].to(device)
        self._codebook_1N = torch.cat(codebooks)[None].to(device)
        self._zero = torch.zeros(1, 1, dtype=torch.int64, device=device)

    def gumbel(self, seed_B: Tensor, frame_B: Tensor) -> tuple[Tensor, Tensor]:
        """Noise for the rows' current frames.

        `seed_B` is int64 of 63 bits, `frame_B` int64 below 2**32. Returns float32 `[B, V text]` and
        `[B, K, V audio]`.
        """
        key = (seed_B & _LOW_32)[:, None], (seed_B >> 32)[:, None]
        counter = self._block_1N, self._codebook_1N, frame_B[:, None], self._zero
        noise_BN4 = _gumbel(torch.stack(philox(counter, key), dim=-1))
        text = noise_BN4[:, : self._text_blocks].flatten(1)[:, : self._text_card]
        audio = noise_BN4[:, self._text_blocks :].reshape(len(seed_B), self._dep_q, -1)[..., : self._card]
        return text, audio
