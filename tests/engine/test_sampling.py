"""Batched sampling against the one-row reference, and against the distribution it promises."""

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from server.engine import SamplingParams
from server.engine.sampling import RowSampling
from tests.engine.reference import gumbel, punish, scores

CPU = torch.device("cpu")
ROWS, TEXT_CARD, DEP_Q, CARD = 3, 11, 2, 9
PADDING = (3, 0)

PARAMS = st.builds(
    SamplingParams,
    use_sampling=st.booleans(),
    text_temperature=st.sampled_from([0, 0.3, 1.0, 2.0]),
    audio_temperature=st.sampled_from([0, 0.3, 1.0, 2.0]),
    text_topk=st.sampled_from([0, 1, 2, 5, 25]),
    audio_topk=st.sampled_from([0, 1, 3, 250]),
    pad_mult=st.sampled_from([0.0, -2.0, 1.5]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3, 4.0]),
    repetition_penalty_context=st.sampled_from([0, 1, 3, 256]),
)


def new_sampling(rows: int = ROWS, text_card: int = TEXT_CARD) -> RowSampling:
    return RowSampling(rows=rows, text_card=text_card, dep_q=DEP_Q, card=CARD, padding_ids=PADDING, device=CPU)


def _best(values: list[float]) -> int:
    """The argmax, where rounding cannot change it."""
    first, second = sorted(values, reverse=True)[:2]
    assume(first - second > 1e-4)
    return values.index(first)


@given(
    params=st.lists(PARAMS, min_size=ROWS, max_size=ROWS),
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=ROWS, max_size=ROWS),
    logit_seed=st.integers(0, 1000),
    pauses=st.lists(st.sets(st.integers(0, ROWS - 1)), min_size=6, max_size=6),
)
@settings(max_examples=40, deadline=None)
def test_every_row_follows_the_reference(
    params: list[SamplingParams], seeds: list[int], logit_seed: int, pauses: list[set[int]]
) -> None:
    sampling, step_B = new_sampling(), torch.zeros(ROWS, dtype=torch.int64)
    said: list[list[int]] = [[] for _ in range(ROWS)]
    for row in range(ROWS):
        sampling.set(row, params[row], seeds[row])
    generator = torch.Generator().manual_seed(logit_seed)
    for paused in pauses:
        moving_B = torch.tensor([row not in paused for row in range(ROWS)])
        text_logits = torch.randn(ROWS, TEXT_CARD, generator=generator) * 2
        audio_logits = torch.randn(DEP_Q, ROWS, CARD, generator=generator) * 2
        sampling.begin_frame(step_B)
        text, logprob = sampling.pick_text(text_logits)
        audio = torch.stack([sampling.pick_audio(k, audio_logits[k]) for k in range(DEP_Q)], dim=1)
        sampling.remember(text, moving_B)
        for row in range(ROWS):
            choice, seed, step = params[row], seeds[row], int(step_B[row])
            values = scores(
                punish(text_logits[row].tolist(), said[row], choice, PADDING),
                temperature=choice.text_temperature,
                top_k=choice.text_topk,
                greedy=choice.text_greedy,
                noise=[gumbel(seed, step, 0, token) for token in range(TEXT_CARD)],
                bonus={PADDING[0]: choice.pad_mult},
            )
            assert int(text[row]) == _best(values)
            wanted = torch.log_softmax(text_logits[row], 0)[text[row]]
            torch.testing.assert_close(logprob[row], wanted)
            for codebook in range(DEP_Q):
                values = scores(
                    audio_logits[codebook, row].tolist(),
                    temperature=choice.audio_temperature,
                    top_k=choice.audio_topk,
                    greedy=choice.audio_greedy,
                    noise=[gumbel(seed, step, 1 + codebook, token) for token in range(CARD)],
                    bonus={},
                )
                assert int(audio[row, codebook]) == _best(values)
            if moving_B[row]:
                said[row].append(int(text[row]))
        step_B += moving_B


def test_samples_follow_the_softmax_of_the_top_k() -> None:
    """Chi-square over many frames: 5 kept tokens, 4 degrees of freedom, 30 is far beyond 0.001 %."""
    rows, frames = 400, 25
    sampling = new_sampling(rows)
    logits = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, -3.0, 1.5, -0.2, 0.1, -2.0, -1.5])
    for row in range(rows):
        sampling.set(row, SamplingParams(text_temperature=0.8, text_topk=5), seed=row * 7919)
    counts = torch.zeros(TEXT_CARD)
    for frame in range(frames):
        sampling.begin_frame(torch.full((rows,), frame))
        text, _ = sampling.pick_text(logits.expand(rows, -1))
        counts += torch.bincount(text, minlength=TEXT_CARD)
    kept = logits.topk(5).indices
    assert counts.sum() == counts[kept].sum() == rows * frames
    expected = torch.softmax(logits[kept] / 0.8, 0) * rows * frames
    assert float(((counts[kept] - expected) ** 2 / expected).sum()) < 30


def test_odds_of_padding_are_multiplied() -> None:
    """`pad_mult` = b multiplies the odds of padding by exp(b), at any temperature."""
    rows, frames, bonus = 400, 25, 1.0
    sampling = new_sampling(rows)
    logits = torch.zeros(TEXT_CARD)
    for row in range(rows):
        params = SamplingParams(text_temperature=0.5, text_topk=0, pad_mult=bonus)
        sampling.set(row, params, seed=row * 104729)
    silent = 0
    for frame in range(frames):
        sampling.begin_frame(torch.full((rows,), frame))
        silent += int((sampling.pick_text(logits.expand(rows, -1))[0] == PADDING[0]).sum())
    odds = torch.tensor(bonus).exp().item() / (TEXT_CARD - 1)
    wanted = odds / (1 + odds)
    spread = (wanted * (1 - wanted) / (rows * frames)) ** 0.5
    assert abs(silent / (rows * frames) - wanted) < 5 * spread


def test_closed_rows_cost_no_noise() -> None:
    sampling = new_sampling()
    sampling.set(1, SamplingParams(), seed=1)
    sampling.begin_frame(torch.zeros(ROWS, dtype=torch.int64))
    assert sampling._noise_text is not None
    sampling.clear(1)
    sampling.begin_frame(torch.zeros(ROWS, dtype=torch.int64))
    assert sampling._noise_text is None
