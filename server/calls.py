"""A call from its upgrade to its end: refused, waiting, talking, parked, talking again, over.

This file joins the parts that know one thing each: the socket, the queue for slots, the session, the parking and
the scheduler. It also owns what happens to all calls at once, when the model fails or the server drains.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Final

from server import protocol
from server.auth import NOBODY, Identity
from server.config import ServerConfig
from server.errors import (
    DrainingError,
    GoingAwayError,
    LoadingError,
    RefusalError,
    ResumeError,
    ServerFailedError,
    TakenAwayError,
    TakenOverError,
)
from server.metrics import EndReason, Metrics, Rejection
from server.parameters import CallParameters, read_parameters
from server.parking import Call, Parking
from server.people import People
from server.protocol import QueuePosition
from server.scheduler import Health, Scheduler
from server.session import ModelInfo, Session, SessionView
from server.slots import SlotQueue, Ticket
from server.wire import ChatSocket

__all__ = ["CallDesk"]

log = logging.getLogger(__name__)

_LAST_CALLS_S: Final = 5.0


class CallDesk:
    """Everybody who calls. Lives on the event loop. `may_call` is whether somebody who was let in still would be."""

    def __init__(
        self, *, config: ServerConfig, metrics: Metrics, scheduler: Scheduler, may_call: Callable[[Identity], bool]
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._scheduler = scheduler
        self._queue: SlotQueue | None = None
        self._calls: set[Call] = set()
        self._parking = Parking(grace_s=config.resume_grace_s, on_expired=self._expire)
        self._people = People(max_calls=config.max_calls_per_user, may_call=may_call)
        self._present = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._hurried = asyncio.Event()
        self.draining = False

    @property
    def busy(self) -> int:
        """Callers who have a slot and are there."""
        return self._queue.busy - self.parked if self._queue else 0

    @property
    def parked(self) -> int:
        """Slots kept for callers who lost their connection."""
        return len(self._parking)

    @property
    def waiting(self) -> int:
        """Callers in the queue."""
        return self._queue.waiting if self._queue else 0

    def context_fill(self) -> float:
        """How full the model's context is: the mean of the calls that have a slot, 0 to 1; 0 without any."""
        model, views = self._scheduler.model, self.views()
        if model is None or not model.context_frames or not views:
            return 0.0
        return sum(min(1.0, view.heard_frames / model.context_frames) for view in views) / len(views)

    def views(self) -> list[SessionView]:
        """Describe the calls that have a slot."""
        talking = (call.session.view() for call in self._calls if call.session.slot is not None)
        return sorted(talking, key=lambda view: view.slot)

    async def serve(self, socket: ChatSocket, query: Mapping[str, str], *, who: Identity = NOBODY) -> None:
        """Lead one upgraded socket through its call, to the end. Never raises for what a caller does."""
        self._present += 1
        self._idle.clear()
        try:
            await self._serve(socket, query, who)
        finally:
            self._present -= 1
            if not self._present:
                self._idle.set()

    def fail(self) -> None:
        """End every call: the model is gone."""
        self._end_all(ServerFailedError())

    def open(self, model: ModelInfo, callers: int) -> None:
        """Let callers in, at most so many at once: the model is there."""
        self._queue = SlotQueue(slots=min(callers, model.slots), max_waiting=self._config.max_waiting)
        self._metrics.slots.set(self._queue.slots)

    def admit(self, admitting: bool) -> None:
        """Give out slots, or none for the time being: who calls then waits."""
        if self._queue is not None:
            self._queue.hold(not admitting)
            self._make_room()
            self._show_load()

    def look_again(self) -> None:
        """End the calls of those who may not call any more."""
        for call in self._people.gone(self._calls):
            call.ticket.refuse(TakenAwayError())
            if call in self._parking.parked:
                self._let_go(call, EndReason.UNAUTHORISED)

    async def drain(self) -> None:
        """Take no more calls, wait `drain_s` or until `hurry` for those there are, then end them."""
        self.draining = True
        self._end_parked(EndReason.DRAINED)
        if self._queue is not None:
            self._queue.refuse_waiting(DrainingError())
        await _first(self._idle, self._hurried, within_s=self._config.drain_s)
        if not self._idle.is_set():
            log.info("ending %d calls that go on", len(self._calls))
            self._end_all(GoingAwayError())
            await _first(self._idle, within_s=_LAST_CALLS_S)

    def hurry(self) -> None:
        """Let `drain` wait for calls no longer."""
        self._hurried.set()

    def _end_all(self, refusal: RefusalError) -> None:
        self._end_parked(EndReason(refusal.reason))
        if self._queue is not None:
            self._queue.refuse_waiting(refusal)
        for call in self._calls:
            call.ticket.refuse(refusal)

    def _end_parked(self, reason: EndReason) -> None:
        while (call := self._parking.oldest) is not None:
            self._let_go(call, reason)

    def _expire(self, call: Call) -> None:
        self._let_go(call, EndReason.LOST)

    async def _serve(self, socket: ChatSocket, query: Mapping[str, str], who: Identity) -> None:
        try:
            call = await self._let_in(query, who)
        except RefusalError as refusal:
            self._metrics.count_rejection(Rejection(refusal.reason))
            await socket.refuse(refusal)
            return
        ending: RefusalError | None = ServerFailedError()
        try:
            ending = await self._converse(socket, call)
        finally:
            self._part(call, ending, socket.parting)
        if ending is None:
            await socket.hang_up()
        else:
            await socket.refuse(ending)

    async def _let_in(self, query: Mapping[str, str], who: Identity) -> Call:
        """Give a place, if only in the queue, or the one that the caller had. Raises `RefusalError`."""
        if self.draining:
            raise DrainingError
        if self._scheduler.health is Health.FAILED:
            raise ServerFailedError
        if self._queue is None or self._scheduler.model is None:
            raise LoadingError
        self._people.check(who)
        parameters = read_parameters(query, self._scheduler.model.recommended_sampling)
        if parameters.resume_token is not None:
            return await self._resume(parameters.resume_token, who)
        return self._begin(self._queue, self._scheduler.model, parameters, who)

    def _begin(self, queue: SlotQueue, model: ModelInfo, parameters: CallParameters, who: Identity) -> Call:
        for call in self._people.make_room(who, self._calls, self._parking.parked):
            self._let_go(call, EndReason.LOST)
        session = Session(
            model=model,
            parameters=parameters,
            config=self._config,
            metrics=self._metrics,
            on_frame=self._scheduler.wake,
            on_report=self._scheduler.report,
            user_hash=who.user_hash,
        )
        self._make_room(wanted=1)
        call = Call(session, queue.join(), who)
        self._calls.add(call)
        self._show_load()
        return call

    async def _resume(self, token: str, who: Identity) -> Call:
        """Go on with a call as it was: what else the query says is checked and has no effect."""
        call = self._parking.claim(token, who.user_hash)
        call.who = who
        if not await call.take_over():
            raise ResumeError(self._config.resume_grace_s)
        self._parking.forget(call)
        call.session.attach()
        self._metrics.resumed.inc()
        self._show_load()
        log.info("call %s goes on", call.session.id)
        return call

    def _part(self, call: Call, ending: RefusalError | None, parting: EndReason) -> None:
        """Separate a socket from its call, which goes on elsewhere, is parked, or is over."""
        if isinstance(ending, TakenOverError):
            call.session.detach()
            call.release()
        elif ending is None and parting is EndReason.LOST and self._is_worth_keeping(call):
            call.session.detach()
            self._parking.park(call)
            call.release()
            log.info("call %s lost its connection", call.session.id)
        else:
            self._let_go(call, ending.reason if ending else parting)
        self._show_load()

    def _is_worth_keeping(self, call: Call) -> bool:
        alone = self._queue is not None and not (self._queue.waiting and self._queue.short_of_slots)
        return self._parking.expects(call) and alone and not self.draining

    def _let_go(self, call: Call, reason: str) -> None:
        """End a call for good."""
        assert self._queue is not None, "nobody was let in without a queue"
        call.over = True
        self._parking.forget(call)
        self._calls.discard(call)
        if call.ticket.slot is not None:
            self._scheduler.close(call.session, call.ticket.slot, reason)
        self._queue.leave(call.ticket)
        call.release()
        self._count(call.session, reason)
        self._show_load()

    def _make_room(self, wanted: int = 0) -> None:
        """Give up the calls that have been parked longest, as long as somebody waits for a slot."""
        assert self._queue is not None, "nobody waits without a queue"
        while self._queue.short_of_slots and self._queue.waiting + wanted > 0:
            if (call := self._parking.oldest) is None:
                return
            self._let_go(call, EndReason.LOST)

    def _show_load(self) -> None:
        self._metrics.active.set(self.busy)
        self._metrics.waiting.set(self.waiting)
        self._metrics.parked.set(self.parked)

    def _count(self, session: Session, reason: str) -> None:
        if session.slot is not None:
            self._metrics.count_end(EndReason(reason), session.endings.age_s)
        else:
            self._metrics.count_rejection(Rejection(reason) if reason in set(Rejection) else Rejection.LEFT)
        log.info("call %s ended: %s", session.id, reason)

    async def _converse(self, socket: ChatSocket, call: Call) -> RefusalError | None:
        """Listen and talk until either ends or the call is refused. Returns what the caller must be told, if anything.

        A refusal cancels a message under way: a caller who does not read would hold it up for as long as it likes.
        """
        work = {
            "listen": call.session.listen(socket),
            "talk": self._talk(socket, call),
            "refused": call.ticket.until_refused(),
            "taken": call.until_taken_over(),
            "watch": call.session.endings.watch(),
        }
        tasks = [asyncio.create_task(each, name=f"{name}-{call.session.id}") for name, each in work.items()]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, RefusalError):
                return outcome
            if isinstance(outcome, Exception) and not isinstance(outcome, ConnectionError):
                raise outcome
        return None

    async def _talk(self, socket: ChatSocket, call: Call) -> None:
        session = call.session
        if session.slot is None:
            slot = await self._wait_for_slot(socket, call.ticket)
            if (model := self._scheduler.model) is not None and model is not session.model:
                session.adopt(model)  # another base model has come while the caller waited
            await self._scheduler.open(session, slot)
            session.start(slot)
            log.info("call %s has slot %d", session.id, slot)
        await session.speak(socket, resume_token=self._parking.issue(call))

    async def _wait_for_slot(self, socket: ChatSocket, ticket: Ticket) -> int:
        """Keep a waiting caller informed and alive. Raises the ticket's refusal."""
        assert self._queue is not None, "a ticket comes from the queue"
        while ticket.slot is None:
            if ticket.refusal is not None:
                raise ticket.refusal
            ticket.changed.clear()
            position = self._queue.position(ticket)
            place = QueuePosition(position=position, eta_s=self._queue.eta_s(position))
            await socket.send(protocol.metadata(place))
            await socket.send(protocol.PING)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.keepalive_s):
                    await ticket.changed.wait()
        return ticket.slot


async def _first(*events: asyncio.Event, within_s: float) -> None:
    """Wait until one of the events is set, or for so long."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
