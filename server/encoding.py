"""The thread that makes Opus of what a step gave: one hand-over from the tick, one to the event loop.

Neither the tick nor the event loop waits for it, and while it encodes it holds no lock of the interpreter, so with
two cores it costs neither of them anything (docs/decisions/0005-opus-outside-the-interpreter.md).
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import av
import msgspec

from server.boxes import Reply
from server.session import Session
from server.sound import SoundEncoder
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
        self._deliver(EncodedStep(step=step, replies=[_reply(answer, step) for answer in step.answers]))


def _reply(answer: Answer, step: Step) -> EncodedReply:
    encoder = answer.session.encoder
    began = time.perf_counter()
    sound: tuple[bytes, ...] = ()
    if encoder is not None and answer.pcm is not None:
        try:
            sound = encoder.encode(answer.pcm)
        except (av.FFmpegError, ValueError):
            log.exception("a reply of call %s could not be encoded and goes out without sound", answer.session.id)
    reply = Reply(
        sound=sound,
        token=answer.token,
        heard_at=answer.frame.at,
        due_at=answer.frame.due_at,
        began_at=step.began_at,
        stepped_at=step.stepped_at,
        encode_s=time.perf_counter() - began,
    )
    return EncodedReply(session=answer.session, encoder=encoder, reply=reply)
