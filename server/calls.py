"""A call from its upgrade to its end: refused, waiting, talking, over.

This file joins the parts that know one thing each: the socket, the queue for slots, the session and the
scheduler. It also owns what happens to all calls at once, when the model fails or the server drains.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from server import protocol
from server.config import ServerConfig
from server.errors import (
    DrainingError,
    GoingAwayError,
    LoadingError,
    RefusalError,
    ServerFailedError,
)
from server.metrics import EndReason, Metrics, Rejection
from server.parameters import read_parameters
from server.protocol import QueuePosition
from server.scheduler import Health, Scheduler
from server.session import ModelInfo, Session, SessionView
from server.slots import SlotQueue, Ticket
from server.wire import ChatSocket

__all__ = ["CallDesk"]

log = logging.getLogger(__name__)

_LAST_CALLS_S: Final = 5.0


class CallDesk:
    """Everybody who calls. Lives on the event loop."""

    def __init__(self, *, config: ServerConfig, metrics: Metrics, scheduler: Scheduler) -> None:
        self._config = config
        self._metrics = metrics
        self._scheduler = scheduler
        self._queue: SlotQueue | None = None
        self._calls: dict[Session, Ticket] = {}
        self._present = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._hurried = asyncio.Event()
        self._codec_pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="duologue-opus")
        self.draining = False

    @property
    def busy(self) -> int:
        """Slots in use."""
        return self._queue.busy if self._queue else 0

    @property
    def waiting(self) -> int:
        """Callers in the queue."""
        return self._queue.waiting if self._queue else 0

    def views(self) -> list[SessionView]:
        """Describe the calls that have a slot."""
        talking = (session.view() for session in self._calls if session.slot is not None)
        return sorted(talking, key=lambda view: view.slot)

    async def serve(self, socket: ChatSocket, query: Mapping[str, str]) -> None:
        """Lead one upgraded socket through its call, to the end. Never raises for what a caller does."""
        self._present += 1
        self._idle.clear()
        try:
            await self._serve(socket, query)
        finally:
            self._present -= 1
            if not self._present:
                self._idle.set()

    def fail(self) -> None:
        """End every call: the model is gone."""
        self._end_all(ServerFailedError())

    def open(self, model: ModelInfo) -> None:
        """Let callers in: the model is there."""
        self._queue = SlotQueue(slots=model.slots, max_waiting=self._config.max_waiting)
        self._metrics.slots.set(model.slots)

    async def drain(self) -> None:
        """Take no more calls, wait `drain_s` or until `hurry` for those there are, then end them."""
        self.draining = True
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

    def shut(self) -> None:
        """Free the Opus thread."""
        self._codec_pool.shutdown(wait=False, cancel_futures=True)

    def _end_all(self, refusal: RefusalError) -> None:
        if self._queue is not None:
            self._queue.refuse_waiting(refusal)
        for ticket in self._calls.values():
            ticket.refuse(refusal)

    async def _serve(self, socket: ChatSocket, query: Mapping[str, str]) -> None:
        try:
            session, ticket = self._let_in(query)
        except RefusalError as refusal:
            self._metrics.count_rejection(Rejection(refusal.reason))
            await socket.refuse(refusal)
            return
        try:
            ending = await self._converse(socket, session, ticket)
        finally:
            self._let_go(session, ticket)
        self._count(session, ending.reason if ending else socket.parting)
        if ending is None:
            await socket.hang_up()
        else:
            await socket.refuse(ending)

    def _let_in(self, query: Mapping[str, str]) -> tuple[Session, Ticket]:
        """Give a place, if only in the queue. Raises `RefusalError`."""
        if self.draining:
            raise DrainingError
        if self._scheduler.health is Health.FAILED:
            raise ServerFailedError
        if self._queue is None or self._scheduler.model is None:
            raise LoadingError
        session = Session(
            model=self._scheduler.model,
            parameters=read_parameters(query, self._scheduler.model.recommended_sampling),
            config=self._config,
            metrics=self._metrics,
            codec_pool=self._codec_pool,
            on_frame=self._scheduler.wake,
        )
        ticket = self._queue.join()
        self._calls[session] = ticket
        self._show_load()
        return session, ticket

    def _let_go(self, session: Session, ticket: Ticket) -> None:
        assert self._queue is not None, "nobody was let in without a queue"
        del self._calls[session]
        if ticket.slot is not None:
            self._scheduler.close(session, ticket.slot)
        self._queue.leave(ticket)
        self._show_load()

    def _show_load(self) -> None:
        self._metrics.active.set(self.busy)
        self._metrics.waiting.set(self.waiting)

    def _count(self, session: Session, reason: str) -> None:
        if session.slot is not None:
            self._metrics.count_end(EndReason(reason))
        else:
            self._metrics.count_rejection(Rejection(reason) if reason in set(Rejection) else Rejection.LEFT)
        log.info("call %s ended: %s", session.id, reason)

    async def _converse(self, socket: ChatSocket, session: Session, ticket: Ticket) -> RefusalError | None:
        """Listen and talk until either ends or the call is refused. Returns what the caller must be told, if anything.

        A refusal cancels a message under way: a caller who does not read would hold it up for as long as it likes.
        """
        listening = asyncio.create_task(session.listen(socket), name=f"listen-{session.id}")
        talking = asyncio.create_task(self._talk(socket, session, ticket), name=f"talk-{session.id}")
        refused = asyncio.create_task(ticket.until_refused(), name=f"refused-{session.id}")
        tasks = (listening, talking, refused)
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

    async def _talk(self, socket: ChatSocket, session: Session, ticket: Ticket) -> None:
        slot = await self._wait_for_slot(socket, ticket)
        await self._scheduler.open(session, slot)
        session.start(slot)
        log.info("call %s has slot %d", session.id, slot)
        await session.speak(socket)

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
