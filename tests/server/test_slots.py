"""The queue for slots as a state machine: whatever people do, nobody shares a slot and nobody is passed over."""

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.errors import DrainingError, FullError, ServerFailedError
from server.slots import SlotQueue, Ticket

SLOTS, WAITING = 3, 4


class Office(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.queue = SlotQueue(slots=SLOTS, max_waiting=WAITING, clock=lambda: self.now)
        self.seated: list[Ticket] = []
        self.held = False
        self.waiting: list[Ticket] = []

    @rule()
    def join(self) -> None:
        if len(self.waiting) == WAITING and (self.held or len(self.seated) == SLOTS):
            with pytest.raises(FullError):
                self.queue.join()
            return
        ticket = self.queue.join()
        (self.seated if len(self.seated) < SLOTS and not self.held else self.waiting).append(ticket)

    def fill(self) -> None:
        while len(self.seated) < SLOTS and self.waiting and not self.held:
            self.seated.append(self.waiting.pop(0))

    @rule(held=st.booleans())
    def hold(self, held: bool) -> None:
        self.held = held
        self.queue.hold(held)
        self.fill()

    @precondition(lambda self: self.seated)
    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.seated))
        self.seated.remove(ticket)
        self.queue.leave(ticket)
        self.fill()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def lose_patience(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(ticket)
        self.queue.leave(ticket)
        self.queue.leave(ticket)

    @rule(seconds=st.floats(0, 500))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def slots_are_not_shared(self) -> None:
        slots = [ticket.slot for ticket in self.seated]
        assert len(set(slots)) == len(slots) == self.queue.busy <= SLOTS
        assert all(slot in range(SLOTS) for slot in slots)

    @invariant()
    def the_queue_is_in_order_of_arrival(self) -> None:
        assert self.queue.waiting == len(self.waiting)
        assert [self.queue.position(ticket) for ticket in self.waiting] == list(range(1, len(self.waiting) + 1))
        assert all(ticket.slot is None for ticket in self.waiting)

    @invariant()
    def no_slot_is_idle_while_somebody_waits(self) -> None:
        assert self.held or not self.waiting or len(self.seated) == SLOTS
        assert self.queue.short_of_slots == (len(self.seated) == SLOTS and not self.held)

    @invariant()
    def later_places_wait_longer(self) -> None:
        estimates = [self.queue.eta_s(place + 1) for place in range(len(self.waiting))]
        known = [estimate for estimate in estimates if estimate is not None]
        assert len(known) in (0, len(estimates))
        assert known == sorted(known)
        assert all(estimate >= 0 for estimate in known)


Office.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestOffice = Office.TestCase


async def test_a_waiting_caller_is_woken_by_every_move() -> None:
    queue = SlotQueue(slots=1, max_waiting=3)
    first, second, third = queue.join(), queue.join(), queue.join()
    for ticket in (first, second, third):
        ticket.changed.clear()
    queue.leave(first)
    await asyncio.wait_for(asyncio.gather(second.changed.wait(), third.changed.wait()), 1)
    assert (second.slot, third.slot) == (0, None)
    refusal = DrainingError()
    queue.refuse_waiting(refusal)
    third.refuse(ServerFailedError())
    with pytest.raises(DrainingError) as caught:
        await asyncio.wait_for(third.until_refused(), 1)
    assert third.refusal is caught.value is refusal
    assert second.refusal is None
    assert queue.waiting == 0


def test_the_estimate_learns_how_long_calls_are() -> None:
    now = 0.0
    queue = SlotQueue(slots=1, max_waiting=9, clock=lambda: now)
    for ended in range(40):
        ticket = queue.join()
        assert (queue.eta_s(1) is None) == (ended < 3), "nobody knows before some calls have ended"
        now += 10.0
        queue.leave(ticket)
    queue.join()
    assert queue.eta_s(1) == pytest.approx(10, abs=0.5)
    assert queue.eta_s(3) == pytest.approx(30, abs=0.5)
    now += 4.0
    assert queue.eta_s(1) == pytest.approx(6, abs=0.5)
    now += 1000.0
    assert queue.eta_s(1) == pytest.approx(2.5, abs=0.5), "a call that outlasts the others is not about to end for it"
    queue.hold(True)
    assert queue.eta_s(1) is None, "and nobody knows while nobody is admitted"
