"""Whatever callers do beside it, a conversation says what it says alone: a state machine over all slots."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from server.engine import Engine, SamplingParams
from server.engine.engine import Work
from server.engine.native import NativeStep
from server.engine.upstream import UpstreamStep
from tests.engine.calls import batch, converse, mask
from tests.engine.stock import sound

SLOTS = 3
PARAMS = (
    SamplingParams(use_sampling=False),
    SamplingParams(text_temperature=1.3, audio_temperature=1.3),
    SamplingParams(text_topk=3, audio_topk=2, repetition_penalty=1.7, repetition_penalty_context=4),
    SamplingParams(audio_temperature=0, audio_topk=0, text_topk=0, pad_mult=-3.0),
)


class Conversation:
    def __init__(self, slot: int, params: SamplingParams, seed: int) -> None:
        self.slot, self.params, self.seed = slot, params, seed
        self.heard: list[torch.Tensor] = []
        self.tokens: list[list[int]] = []
        self.pcm: list[torch.Tensor] = []
        self.logprob: list[torch.Tensor] = []


class Callers(RuleBasedStateMachine):
    engine: Engine

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, Conversation] = {}
        self.ended: list[Conversation] = []

    @rule(slot=st.integers(0, SLOTS - 1), params=st.sampled_from(PARAMS), seed=st.integers(0, 2**63 - 1))
    def open_or_close(self, slot: int, params: SamplingParams, seed: int) -> None:
        if slot in self.live:
            self.engine.close(slot)
            self.ended.append(self.live.pop(slot))
        else:
            self.engine.open(slot, params, seed=seed)
            self.live[slot] = Conversation(slot, params, seed)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), sound_seed=st.integers(0, 50), times=st.integers(1, 4))
    def talk(self, data: st.DataObject, sound_seed: int, times: int) -> None:
        talking = data.draw(st.sets(st.sampled_from(sorted(self.live)), min_size=1))
        pcm = sound(SLOTS * times, self.engine.frame_size, sound_seed).reshape(times, SLOTS, -1)
        for frames in pcm:
            out = self.engine.step(frames, mask(self.engine, *talking))
            for slot in talking:
                conversation = self.live[slot]
                conversation.heard.append(frames[slot])
                conversation.tokens.append(out.tokens[slot].tolist())
                conversation.pcm.append(out.pcm[slot])
                conversation.logprob.append(out.logprob[slot])

    def teardown(self) -> None:
        for slot in self.live:
            self.engine.close(slot)
        for conversation in (*self.ended, *self.live.values()):
            if conversation.heard:
                self.check_alone(conversation)

    def check_alone(self, conversation: Conversation) -> None:
        alone = converse(
            self.engine,
            conversation.slot,
            torch.stack(conversation.heard),
            conversation.params,
            seed=conversation.seed,
        )
        assert conversation.tokens == alone.tokens.tolist()
        torch.testing.assert_close(torch.stack(conversation.pcm), alone.pcm, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(torch.stack(conversation.logprob), alone.logprob, equal_nan=True)


@pytest.mark.parametrize("work", ["native", "upstream"])
def test_conversations_do_not_notice_one_another(tiny: Path, work: Work) -> None:
    class OnTiny(Callers):
        engine = Engine.load(tiny, slots=SLOTS, device="cpu", work=work)

    limits = settings(
        max_examples=25,
        stateful_step_count=12,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # shrinking a failure of a real model takes minutes
    )
    run_state_machine_as_test(OnTiny, settings=limits)


@pytest.mark.parametrize("work", ["native", "upstream"])
def test_the_check_sees_a_leak(tiny: Path, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine fails on an engine whose rows share their memory, so that its silence above means something."""
    leaky = Engine.load(tiny, slots=SLOTS, device="cpu", work=work)
    if isinstance(leaky._work, UpstreamStep):
        monkeypatch.setattr(leaky._work._temporal._rows, "select", lambda moving_B: None)
    elif isinstance(leaky._work, NativeStep):
        leaky._work.machine._model["row_floats"] = 0
    machine = Callers()
    machine.engine = leaky
    machine.open_or_close(slot=0, params=PARAMS[0], seed=1)
    machine.open_or_close(slot=1, params=PARAMS[0], seed=1)
    for frame in range(8):
        active = mask(leaky, 0, 1) if frame % 2 else mask(leaky, 1)
        chunk = sound(1, leaky.frame_size, seed=frame)[0]
        out = leaky.step(batch(leaky, {0: chunk, 1: chunk}), active)
        if frame % 2:
            machine.live[0].heard.append(chunk)
            machine.live[0].tokens.append(out.tokens[0].tolist())
            machine.live[0].pcm.append(out.pcm[0])
            machine.live[0].logprob.append(out.logprob[0])
    with pytest.raises(AssertionError):
        machine.teardown()
