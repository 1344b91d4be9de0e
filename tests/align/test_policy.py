"""The policy's numbers are serving's and upstream's; its gradients are those of plain autograd on two sequences."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from moshi.modules.lora import replace_all_linear_with_lora
from moshi.utils.compile import no_compile
from torch import Tensor

from online_align.batches import Batch, PairError, batches, collate, pack
from online_align.policy import Policy, PolicyError
from online_align.records import Pair, PairKind
from server.engine import Engine
from server.engine.checkpoint import Checkpoint, load_checkpoint
from tests.align.preferences import columns, make_pair, random_pair, spoken
from tests.engine.stock import Stock
from tests.tiny_checkpoint import write_tiny_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["plain", "two frames of delay"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {"delays": [0, 0, 2, 2, 2, 1, 2, 2, 2]} if request.param != "plain" else {}
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), lm_overrides=changes)


def load(folder: Path) -> Checkpoint:
    return load_checkpoint(folder, device=CPU, dtype=torch.float32)


def lively(policy: Policy, seed: int = 1) -> Policy:
    """With an adapter that changes something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in policy.learned().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return policy


def batch_of(policy: Policy, *pairs: Pair, context: int | None = None) -> Batch:
    return collate([pack(pair, policy.grid, context=context) for pair in pairs], policy.grid, CPU)


def test_equals_what_the_engine_wrote_into_the_journal(folder: Path) -> None:
    """A call longer than the model's context, sampled; both sides are what was said, so every number is known."""
    engine = Engine.load(folder, slots=1, device="cpu", work="native")
    said, logprob = spoken(engine, 44, seed=3)
    policy = Policy(load(folder), rank=4)
    pairs = [make_pair(f"at {at}", said[:at], said[at:], said[at : at + 6]) for at in (0, 5, 30)]
    with torch.no_grad():
        got = policy(batch_of(policy, *pairs)).numpy()
    for row, at in enumerate((0, 5, 30)):
        np.testing.assert_allclose(got[row, 0, : len(said) - at], logprob[at:], atol=1e-4)
        np.testing.assert_allclose(got[row, 1, :6], logprob[at : at + 6], atol=1e-4)
        assert not got[row, 1, 6:].any()


@pytest.mark.mini
def test_equals_the_journal_for_the_embedded_model() -> None:
    engine = Engine.load("mini", slots=1, device="cpu")
    said, logprob = spoken(engine, 40, seed=4)
    policy = Policy(load_checkpoint("mini", device=CPU, dtype=torch.float32))
    with torch.no_grad():
        got = policy(batch_of(policy, make_pair("one", said[:20], said[20:], said[20:30]))).numpy()
    np.testing.assert_allclose(got[0, 0], logprob[20:], atol=1e-4)
    np.testing.assert_allclose(got[0, 1, :10], logprob[20:30], atol=1e-4)


def test_the_shared_past_changes_nothing(folder: Path) -> None:
    """Sides that part at once, later, at their end or never: each as upstream reads it alone."""
    policy, stock = Policy(load(folder), rank=4), Stock(folder)
    pairs = [random_pair(1), random_pair(2, same=4), random_pair(3, same=7, past=0), random_pair(4, same=8, rejected=9)]
    with torch.no_grad():
        got = policy(batch_of(policy, *pairs))
    for row, pair in enumerate(pairs):
        for side, tokens in enumerate((pair.chosen.tokens_TK, pair.rejected.tokens_TK)):
            alone = stock.text_logprob(torch.from_numpy(np.concatenate([pair.context_PK, tokens]).astype(np.int64)))
            wanted = alone[len(pair.context_PK) :]
            torch.testing.assert_close(got[row, side, : len(tokens)], wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_plain_autograd(folder: Path, checkpointing: bool) -> None:
    policy = lively(Policy(load(folder), rank=4, checkpointing=checkpointing))
    pair = random_pair(5, same=2)
    weight = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    logp = policy(batch_of(policy, pair))[0]
    torch.autograd.backward((logp * weight).sum())
    for name, wanted in plain_gradients(folder, policy, pair, weight).items():
        torch.testing.assert_close(policy.learned()[name].grad, wanted, atol=2e-4, rtol=1e-3, msg=name)


def plain_gradients(folder: Path, policy: Policy, pair: Pair, weight_2N: Tensor) -> dict[str, Tensor]:
    """Upstream's model, upstream's adapters, whole sequences and full logits."""
    lm = load(folder).lm.requires_grad_(False)
    replace_all_linear_with_lora(lm.transformer, policy.rank, policy.scaling)
    lm.load_state_dict({name: part.detach() for name, part in policy.learned().items()}, strict=False)
    parts = {name: part.requires_grad_() for name, part in lm.named_parameters() if "lora" in name}
    for side, tokens in enumerate((pair.chosen.tokens_TK, pair.rejected.tokens_TK)):
        codes = torch.from_numpy(np.concatenate([pair.context_PK, tokens]).astype(np.int64)).T[None]
        with no_compile():
            logits = lm.train()(codes).text_logits[0, 0]
        logp = torch.log_softmax(logits, -1).gather(1, codes[0, :1].T)[len(pair.context_PK) :, 0]
        torch.autograd.backward((logp * weight_2N[side, : len(tokens)]).sum())
    return {name: part.grad for name, part in parts.items() if part.grad is not None}


def test_pairs_of_a_batch_do_not_know_each_other(folder: Path) -> None:
    policy = lively(Policy(load(folder), rank=4))
    pairs = [random_pair(6), random_pair(7, past=30, chosen=15), random_pair(8, past=2, rejected=1)]
    together = policy(batch_of(policy, *pairs)).detach()
    for row, pair in enumerate(pairs):
        alone = policy(batch_of(policy, pair)).detach()[0]
        torch.testing.assert_close(together[row, :, : alone.shape[1]], alone, atol=1e-5, rtol=1e-5)


def test_without_the_adapter_it_is_the_base(folder: Path) -> None:
    policy = Policy(load(folder), rank=4)
    batch = batch_of(policy, random_pair(9))
    fresh = policy(batch).detach()
    assert policy.divergence(batch, policy.without_adapter) == pytest.approx(0.0, abs=1e-6)
    lively(policy)
    with policy.without_adapter():
        torch.testing.assert_close(policy(batch).detach(), fresh, atol=1e-6, rtol=0)
    assert (policy(batch).detach() - fresh).abs().max() > 1e-2
    assert policy.divergence(batch, policy.without_adapter) > 1e-3


def test_a_past_that_was_cut_is_read_without_start_tokens(folder: Path) -> None:
    """Cut at what one layer of attention reaches, the newest frames keep their number; the start of a call differs."""
    policy = Policy(load(folder), rank=4)
    whole = random_pair(10, past=60)
    cut = batch_of(policy, whole, context=40)
    began = msgspec.structs.replace(whole, context_PK=whole.context_PK[20:], at_tick=40)
    positions = batch_of(policy, began).position_BS.shape[1] - cut.position_BS.shape[1]
    assert positions == 1 + max(policy.grid.delays)
    again = batch_of(policy, msgspec.structs.replace(whole, context_PK=whole.context_PK[20:]))
    assert torch.equal(again.tokens_BSK, cut.tokens_BSK)
    with torch.no_grad():
        near, far = policy(cut), policy(batch_of(policy, whole))
    assert (near - far).abs().mean() < 0.05


def test_timing_counts_in_a_window_and_the_rest_is_not_read(folder: Path) -> None:
    policy = Policy(load(folder), rank=4)
    pair = random_pair(11, chosen=80, rejected=60, kind=PairKind.CUT_OFF, event=20)
    row = pack(pair, policy.grid, whole=(False, False))
    for side in range(2):
        assert row.credit[side].nonzero()[0].tolist() == list(range(8, 46))
        assert len(row.columns[side]) == 46
    assert pack(pair, policy.grid).positions - row.positions == (80 - 46) + (60 - 46)


def test_batches_hold_every_pair_once_and_few_positions() -> None:
    policy_grid = Policy(load_checkpoint("mini", device=CPU, dtype=torch.float32), rank=1).grid
    pairs = [make_pair(f"{n}", *(columns(size, n, codebooks=13) for size in (20 + 7 * n, 5 + n, 9))) for n in range(12)]
    made = list(batches([pack(pair, policy_grid) for pair in pairs], policy_grid, CPU, positions=150))
    assert sorted(pair.id for batch in made for pair in batch.pairs) == sorted(pair.id for pair in pairs)
    assert all(batch.position_BS.numel() <= 150 for batch in made)
    assert len(made) < len(pairs)


def test_sound_counts_only_when_asked_and_is_upstreams(folder: Path) -> None:
    """Per codebook, with its delay: upstream's training pass gives the same numbers."""
    policy, lm = Policy(load(folder), rank=4, audio_weight=0.5), load(folder).lm
    pair = random_pair(12, same=3)
    batch = batch_of(policy, pair)
    with torch.no_grad(), no_compile():
        hidden = policy.hidden(batch)
        audio, text, mixed = policy.audio_logp(hidden, batch), policy.text_logp(hidden, batch), policy(batch)
        for side, tokens in enumerate((pair.chosen.tokens_TK, pair.rejected.tokens_TK)):
            codes = torch.from_numpy(np.concatenate([pair.context_PK, tokens]).astype(np.int64)).T[None]
            logits, past = lm.train()(codes).logits[0], len(pair.context_PK)
            for codebook, delay in enumerate(policy.grid.delays[1:5]):
                logp = torch.log_softmax(logits[codebook], -1).gather(1, codes[0, 1 + codebook, :, None])[:, 0]
                wanted = logp[past - delay : past + len(tokens) - delay]
                torch.testing.assert_close(audio[0, side, : len(tokens), codebook], wanted, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(mixed, text + 0.5 * audio.mean(-1))
    learned = set(policy.learned())
    assert any(name.startswith("depformer.") for name in learned)
    assert any(name.startswith("linears.") for name in learned)
    torch.autograd.backward(policy(batch).sum())
    assert all(part.grad is not None for name, part in policy.learned().items() if "lora_B" in name)


def test_pairs_that_cannot_be_trained_on(folder: Path) -> None:
    grid = Policy(load(folder), rank=1).grid
    silent = columns(5, 1)
    silent[2, 0] = -1
    for pair, message in (
        (random_pair(1, rejected=0), "at least one frame"),
        (make_pair("x", columns(5, 1, codebooks=7), columns(5, 2), columns(5, 3)), r"expected \[frames, 9\]"),
        (make_pair("x", columns(5, 1), silent, columns(5, 3)), "no text token"),
        (random_pair(1, kind=PairKind.CUT_OFF, event=400), "far from both sides"),
    ):
        with pytest.raises(PairError, match=message):
            pack(pair, grid)


def test_models_and_adapters_that_do_not_fit(folder: Path) -> None:
    checkpoint = load(folder)
    policy = Policy(checkpoint, rank=4)
    with pytest.raises(PolicyError, match="already has adapters"):
        Policy(checkpoint)
    parts = {name: part.detach().clone() for name, part in lively(Policy(load(folder), rank=4)).learned().items()}
    policy.learn_from(parts)
    assert all(torch.equal(policy.learned()[name], part) for name, part in parts.items())
    with pytest.raises(PolicyError, match=r"expected \[6, .*rank 6"):
        Policy(load(folder), rank=6).learn_from(parts)
