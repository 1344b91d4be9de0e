"""The thread that makes Opus of what a step gave: one hand-over from the tick, one to the event loop.

Neither the tick nor the event loop waits for it. All of a step's packets are one call that holds no lock of the
interpreter, and has to take it back once, not several times for every packet
(docs/decisions/0087-opus-in-one-call.md).
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from server.boxes import Reply
from server.session import Session
from server.sound import SoundEncoder, encode_all
from server.tick import Answer, Step

__all__ = ["EncodedReply", "EncodedStep", "EncodingThread"]

log = logging.getLogger(__name__)


class EncodedReply(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A reply, whose it is, and the encoder that made it: a caller who has come back has another by now."""

    session: Session
    encoder: SoundEncoder | None
    reply: Reply


class EncodedStep(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A step on its way to the event loop, where its answers' sound is no longer needed."""

    step: Step
    replies: list[EncodedReply]


class EncodingThread:
    """Encodes steps in the order they are given. `deliver` runs in the thread."""

    def __init__(self, deliver: Callable[[EncodedStep], None]) -> None:
        self._deliver = deliver
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="duologue-opus")

    def put(self, step: Step) -> None:
        """Hand over a step. Never blocks."""
        self._pool.submit(self._encode, step)

    def stop(self) -> None:
        """End the thread after its present step."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _encode(self, step: Step) -> None:
        encoders = [answer.session.encoder for answer in step.answers]  # once: the event loop changes them
        work = {
            at: (encoder, answer.pcm)
            for at, (encoder, answer) in enumerate(zip(encoders, step.answers, strict=True))
            if encoder is not None and answer.pcm is not None
        }
        began = time.perf_counter()
        made = dict(zip(work, encode_all(list(work.values())), strict=True))
        each_s = (time.perf_counter() - began) / max(1, len(made))
        self._deliver(
            EncodedStep(
                step=step,
                replies=[
                    _reply(answer, step, encoder, made.get(at, ()), each_s)
                    for at, (encoder, answer) in enumerate(zip(encoders, step.answers, strict=True))
                ],
            )
        )


def _reply(
    answer: Answer, step: Step, encoder: SoundEncoder | None, sound: tuple[bytes, ...] | Exception, encode_s: float
) -> EncodedReply:
    if isinstance(sound, Exception):
        log.error(
            "a reply of call %s could not be encoded and goes out without sound", answer.session.id, exc_info=sound
        )
        sound = ()
    reply = Reply(
        sound=sound,
        token=answer.token,
        heard_at=answer.frame.at,
        due_at=answer.frame.due_at,
        began_at=step.began_at,
        stepped_at=step.stepped_at,
        encode_s=encode_s,
    )
    return EncodedReply(session=answer.session, encoder=encoder, reply=reply)
