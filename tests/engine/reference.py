"""Sampling written a second time, one row and one number at a time, from the text of its description."""

import math

from server.engine import SamplingParams

_WORD = 2**32


def philox_ints(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 on Python's integers (Salmon et al., SC 2011)."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        left, right = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [right // _WORD ^ c[1] ^ k0, right % _WORD, left // _WORD ^ c[3] ^ k1, left % _WORD]
        k0, k1 = (k0 + 0x9E3779B9) % _WORD, (k1 + 0xBB67AE85) % _WORD
    return c


def gumbel(seed: int, frame: int, codebook: int, token: int) -> float:
    bits = philox_ints([token // 4, codebook, frame, 0], [seed % _WORD, seed // _WORD])[token % 4]
    uniform = (bits // 512 + 0.5) / 2**23
    return -math.log(-math.log(uniform))


def scores(
    logits: list[float], *, temperature: float, top_k: int, greedy: bool, noise: list[float], bonus: dict[int, float]
) -> list[float]:
    """The numbers whose argmax is the token."""
    warmed = [logit if greedy else logit / temperature for logit in logits]
    warmed = [value + bonus.get(token, 0.0) for token, value in enumerate(warmed)]
    if greedy:
        return warmed
    threshold = sorted(warmed, reverse=True)[min(top_k or len(warmed), len(warmed)) - 1]
    return [value + extra if value >= threshold else -math.inf for value, extra in zip(warmed, noise, strict=True)]


def punish(logits: list[float], said: list[int], params: SamplingParams, padding: tuple[int, ...]) -> list[float]:
    """Repetition penalty against `said`, oldest first."""
    words = [token for token in said if token not in padding]
    recent = words[max(len(words) - params.repetition_penalty_context, 0) :]
    penalty = params.repetition_penalty
    return [
        logit if token not in recent else logit / penalty if logit > 0 else logit * penalty
        for token, logit in enumerate(logits)
    ]
