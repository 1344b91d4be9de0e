"""KTO through a pass and a round: what counts as praise, the baseline, and that a death changes nothing."""

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch

from online_align.figures import Figures
from online_align.good_spans import is_good_span, open_spans
from online_align.learner import Pass, reference_of, scored_of
from online_align.losses import kto
from online_align.pair_store import PairStore
from online_align.policy import Policy
from online_align.records import Evidence, Pair
from online_align.round_plan import Stage
from online_align.rounds import Rounds
from online_align.settings import LearnerSettings
from online_align.unpaired import balance, loss_of, mismatched
from server.engine import model_name
from server.engine.checkpoint import load_checkpoint
from server.journal import Journal, open_journal
from server.journal.registry import AdapterRegistry
from tests.align.preferences import random_pair
from tests.align.test_good_spans import ANSWERED, call
from tests.align.test_losses import EXAMPLE
from tests.align.test_rounds import CALLS, some
from tests.journal.calls import record
from tests.tiny_checkpoint import write_tiny_checkpoint

FAST = LearnerSettings(loss="kto", batch=4, rank=4, learning_rate=3e-3, positions=128, anchor=0.0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = open_journal(tmp_path)
    record(opened, CALLS, 3)
    yield opened
    opened.engine.dispose()


def fresh(tiny: Path) -> Policy:
    return Policy(load_checkpoint(tiny, device=torch.device("cpu"), dtype=torch.float32), rank=4)


def referenced(tiny: Path, pairs: list[Pair]) -> list[Pair]:
    return reference_of(fresh(tiny), FAST, pairs, name="", base_sha256="x")


@pytest.fixture(scope="module")
def pairs(tiny: Path) -> list[Pair]:
    return referenced(tiny, [random_pair(n, past=8 + n % 5) for n in range(8)])


def learned(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: part.detach().clone() for name, part in policy.learned().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(part, other[name], atol=1e-6) for name, part in one.items())


def test_the_loss_of_a_pair_is_that_of_its_sides() -> None:
    """Ratios 2 and -1, a divergence of 0.5, praise at half the weight."""
    far = torch.tensor(0.5, dtype=torch.float64)
    got = loss_of("kto", EXAMPLE, 0.3, divergence=far, praise_weight=0.5)
    sides = kto(torch.tensor([2.0, -1.0], dtype=torch.float64), torch.tensor([True, False]), far, 0.3)
    assert got.item() == pytest.approx(0.5 * sides[0].item() + sides[1].item(), abs=1e-9)
    assert balance(6, 8) * 8 == pytest.approx(6), "all praise weighs as much as all complaints"


def test_replies_that_do_not_belong(pairs: list[Pair]) -> None:
    found = mismatched(pairs)
    assert len(found) == len(pairs)
    for pair, other in zip(found, sorted(pairs, key=lambda each: each.id), strict=True):
        assert pair.context_PK is other.context_PK
        assert pair.chosen.tokens_TK is not other.chosen.tokens_TK
        assert pair.reference is None
    of_one = [msgspec.structs.replace(pair, session="one") for pair in pairs]
    assert mismatched(of_one) == mismatched(pairs[:1]) == []


def test_the_baseline_is_the_mean_ratio_of_replies_that_do_not_belong(tiny: Path, pairs: list[Pair]) -> None:
    policy = fresh(tiny)
    unrelated = referenced(tiny, mismatched(pairs))
    training = Pass(policy, FAST, pairs, unrelated=unrelated)
    assert training._divergence(0).item() == pytest.approx(0.0, abs=1e-5), "nothing has moved yet"
    with torch.no_grad():
        for part in policy.learned().values():
            part.add_(0.2 * torch.randn(part.shape, generator=torch.Generator().manual_seed(1)))
    ratios = []
    for batch, _ in training._batches(training._rows(training._unrelated[0], preference=True)):
        ratios += scored_of(policy(batch), batch).chosen_ratio.tolist()
    wanted = max(0.0, sum(ratios) / len(ratios))
    assert training._divergence(0).item() == pytest.approx(wanted, abs=1e-4)


def test_good_spans_are_praise_and_others_that_are_replayed_are_not(tiny: Path, pairs: list[Pair]) -> None:
    """Without the anchor, only what counts as praise can move anything."""
    again = referenced(tiny, [random_pair(n) for n in range(20, 24)])
    praised = [
        msgspec.structs.replace(pair, evidence=Evidence(rule="good-spans-2", signals=(), confidence=1.0))
        for pair in again
    ]

    def after(replayed: list[Pair]) -> dict[str, torch.Tensor]:
        policy = fresh(tiny)
        # As many pairs as there is praise would change the weights: they are the same in all three.
        Pass(policy, FAST, pairs[:4], replayed=replayed).run()
        return learned(policy)

    assert all(is_good_span(pair) for pair in praised)
    assert same(after(again), after([]))
    assert not same(after(praised), after([]))


def test_killed_in_the_middle_it_ends_with_the_same_numbers(tiny: Path, pairs: list[Pair], tmp_path: Path) -> None:
    unrelated = referenced(tiny, mismatched(pairs))
    whole, policy = fresh(tiny), fresh(tiny)
    Pass(whole, FAST, pairs, unrelated=unrelated).run()

    def die(_step: int, _figures: Figures) -> None:
        raise KeyboardInterrupt

    state = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        Pass(fresh(tiny), FAST, pairs, unrelated=unrelated, plan="p", state=state).run(die)
    Pass(policy, FAST, pairs, unrelated=unrelated, plan="p", state=state).run()
    assert all(torch.equal(part, learned(whole)[name]) for name, part in learned(policy).items())


def test_a_round_of_complaints_and_praise(journal: Journal, tmp_path: Path, tiny: Path) -> None:
    call(journal, "good", ANSWERED, checkpoint=model_name(str(tiny)))
    PairStore(journal).add(some(range(6)))
    settings = msgspec.structs.replace(FAST, anchor=1.0, replay=0.5)
    made = Rounds(tmp_path, journal, settings, checkpoint=str(tiny)).once()
    assert made is not None
    assert (made.stage, len(made.good)) == (Stage.DONE, 1)
    manifest = json.loads(AdapterRegistry(journal.engine).get(made.adapter).manifest)
    assert manifest["settings"]["loss"] == "kto"
    assert manifest["trained"]["margin"] != 0
    assert open_spans(journal, made.good), "what was praised is still there"
