"""One pass: it learns, counts what it should, goes on where it was killed to the same last bit, and repeats nothing."""

import random
from functools import partial
from pathlib import Path

import msgspec
import pytest
import torch

from online_align.figures import Figures
from online_align.learner import Pass, evaluate, optimiser_groups, reference_of
from online_align.policy import Policy
from online_align.records import Pair, PairKind
from online_align.settings import LearnerSettings
from server.engine.checkpoint import load_checkpoint
from tests.align.preferences import random_pair
from tests.tiny_checkpoint import write_tiny_checkpoint

FAST = LearnerSettings(batch=4, rank=4, learning_rate=3e-3, positions=128)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def fresh(tiny: Path, **more: object) -> Policy:
    return Policy(load_checkpoint(tiny, device=torch.device("cpu"), dtype=torch.float32), rank=4, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pairs(tiny: Path) -> list[Pair]:
    kinds = [PairKind.CONTENT, PairKind.CUT_OFF]
    made = [random_pair(n, past=8 + n % 5, same=n % 3, kind=kinds[n % 2], event=1) for n in range(14)]
    return reference_of(fresh(tiny), FAST, made, name="", base_sha256="x")


def noted(steps: list[int], step: int, _figures: Figures) -> None:
    steps.append(step)


def learned(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: part.detach().clone() for name, part in policy.learned().items()}


@pytest.mark.parametrize("loss", ["dpo", "dpo-ln", "simpo", "apo-zero", "ipo", "cdpo", "kto"])
def test_every_loss_learns_to_tell_sides_apart(tiny: Path, pairs: list[Pair], loss: str) -> None:
    policy = fresh(tiny)
    settings = msgspec.structs.replace(FAST, loss=loss, learning_rate=1e-2, anchor=0.0, beta=1.0)
    before = evaluate(policy, settings, pairs)
    Pass(policy, settings, pairs[:12]).run()
    after = evaluate(policy, settings, pairs[:12])
    assert before.margin == pytest.approx(0, abs=1e-6), "the reference is the policy before the pass"
    assert after.margin > 0.05
    assert after.accuracy > 0.8
    assert after.pairs == 12


def test_killed_after_any_step_it_ends_with_the_same_numbers(tiny: Path, pairs: list[Pair], tmp_path: Path) -> None:
    whole = fresh(tiny)
    wanted = Pass(whole, FAST, pairs, replayed=pairs[:3]).run()
    for survived in (1, 3):
        state = tmp_path / f"{survived}.safetensors"

        def die(step: int, _figures: Figures, last: int = survived) -> None:
            if step == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Pass(fresh(tiny), FAST, pairs, replayed=pairs[:3], plan="p", state=state).run(die)
        steps: list[int] = []
        policy = fresh(tiny)
        again = Pass(policy, FAST, pairs, replayed=pairs[:3], plan="p", state=state)
        got = again.run(partial(noted, steps))
        assert steps == list(range(survived, again.steps))
        assert all(torch.equal(part, learned(whole)[name]) for name, part in learned(policy).items())
        assert got.loss == pytest.approx(wanted.loss)
        assert got.pairs == len(pairs)


def test_a_state_of_another_plan_or_none_at_all_is_not_gone_on_from(
    tiny: Path, pairs: list[Pair], tmp_path: Path
) -> None:
    state = tmp_path / "pass.safetensors"
    Pass(fresh(tiny), FAST, pairs, plan="one", state=state).run()
    for spoil in (lambda: None, lambda: state.write_bytes(state.read_bytes()[:-7]), lambda: state.write_bytes(b"")):
        spoil()
        steps: list[int] = []
        Pass(fresh(tiny), FAST, pairs, plan="two", state=state).run(partial(noted, steps))
        assert steps == [0, 1, 2, 3]


def test_each_pair_is_in_one_step_and_the_order_is_their_own(tiny: Path, pairs: list[Pair]) -> None:
    shuffled = list(pairs)
    random.Random(3).shuffle(shuffled)
    policies = [fresh(tiny), fresh(tiny)]
    counts: list[int] = []
    Pass(policies[0], FAST, pairs).run(lambda _step, figures: counts.append(figures.pairs))
    Pass(policies[1], FAST, shuffled).run()
    assert counts == [4, 4, 4, 2]
    assert all(torch.equal(part, learned(policies[1])[name]) for name, part in learned(policies[0]).items())


def test_how_much_is_read_at_once_changes_nothing(tiny: Path, pairs: list[Pair]) -> None:
    policies = [fresh(tiny), fresh(tiny), fresh(tiny, checkpointing=True)]
    for policy, positions in zip(policies, (1, 4096, 128), strict=True):
        Pass(policy, msgspec.structs.replace(FAST, positions=positions), pairs).run()
    for name, part in learned(policies[0]).items():
        torch.testing.assert_close(learned(policies[1])[name], part, atol=2e-5, rtol=1e-3)
        torch.testing.assert_close(learned(policies[2])[name], part, atol=2e-5, rtol=1e-3)


def test_replay_is_supervised_only_and_follows_the_anchor(tiny: Path, pairs: list[Pair]) -> None:
    """Without the anchor a replayed pair has no say; with it only the chosen side of one does."""
    flipped = [msgspec.structs.replace(pair, rejected=pairs[-1].rejected) for pair in pairs[8:]]

    def after(replayed: list[Pair], anchor: float) -> dict[str, torch.Tensor]:
        policy = fresh(tiny)
        Pass(policy, msgspec.structs.replace(FAST, anchor=anchor), pairs[:8], replayed=replayed).run()
        return learned(policy)

    def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
        return all(torch.allclose(part, other[name], atol=1e-5) for name, part in one.items())

    assert same(after(pairs[8:], 0.0), after([], 0.0))
    assert not same(after(pairs[8:], 1.0), after([], 1.0))
    assert same(after(pairs[8:], 1.0), after(flipped, 1.0))


def test_the_anchor_keeps_the_chosen_side_likely(tiny: Path, pairs: list[Pair]) -> None:
    strong = msgspec.structs.replace(FAST, learning_rate=1e-2)
    said = []
    for anchor in (0.0, 3.0):
        policy = fresh(tiny)
        settings = msgspec.structs.replace(strong, anchor=anchor)
        Pass(policy, settings, pairs).run()
        said.append(evaluate(policy, settings, pairs).chosen_logp)
    assert said[1] > said[0] + 0.05


def test_learning_rates_are_of_their_own(tiny: Path) -> None:
    groups = optimiser_groups(fresh(tiny), msgspec.structs.replace(FAST, learning_rate=0.5))
    assert [group["lr"] for group in groups] == [0.5], "only the temporal transformer learns from text"
    assert len(groups[0]["params"]) == 2 * 4 * 2, "A and B of four linear layers in two layers"
