"""Every error Duologue raises on purpose, in one tree.

An error says what was got, what was expected and what to do, and carries the same as fields, so that a
handler never has to read the sentence. This module imports nothing of ours.
"""

from pathlib import Path

__all__ = [
    "AdapterError",
    "AdapterRoomError",
    "AudioFormatError",
    "BaseSwapError",
    "CheckpointError",
    "ConfigError",
    "DoorError",
    "DrainingError",
    "DuologueError",
    "EngineError",
    "FaultError",
    "ForbiddenError",
    "FrameError",
    "FullError",
    "GoingAwayError",
    "IdleError",
    "LoadingError",
    "ParameterError",
    "RefusalError",
    "ResumeError",
    "SamplingError",
    "ServerFailedError",
    "SlotError",
    "SlotRoomError",
    "TakenAwayError",
    "TakenOverError",
    "TokenError",
    "TooFastError",
    "TooLongError",
    "TooManyCallsError",
    "TooManyOfOneError",
    "TooManyRequestsError",
    "UnauthorisedError",
]


class DuologueError(Exception):
    """Root of the tree.

    `got`, `expected` and `remedy` are plain sentences' parts without a full stop; the message joins them.
    """

    def __init__(self, *, got: str, expected: str, remedy: str) -> None:
        super().__init__(f"got {got}; expected {expected}; {remedy}")
        self.got = got
        self.expected = expected
        self.remedy = remedy


class EngineError(DuologueError):
    """Anything the engine refuses. The engine has not moved when it raises one."""


class CheckpointError(EngineError):
    """A checkpoint that is missing, incomplete, unsafe to read or not a dialogue model. `path` says which."""

    def __init__(self, path: Path | str, *, got: str, expected: str, remedy: str) -> None:
        super().__init__(got=f"{got} in {path}", expected=expected, remedy=remedy)
        self.path = str(path)


class SlotError(EngineError):
    """A slot that does not exist, is open when it must be closed, or closed when it must be open."""

    def __init__(self, slot: int, *, got: str, expected: str, remedy: str) -> None:
        super().__init__(got=got, expected=expected, remedy=remedy)
        self.slot = slot


class SlotRoomError(EngineError):
    """More slots than the device's memory holds. `fits` says how many it does, 0 for none."""

    def __init__(self, *, got: str, expected: str, remedy: str, fits: int) -> None:
        super().__init__(got=got, expected=expected, remedy=remedy)
        self.fits = fits


class FrameError(EngineError):
    """A batch of sound or an activity mask of the wrong shape or type. `argument` names it."""

    def __init__(self, argument: str, *, got: str, expected: str, remedy: str) -> None:
        super().__init__(got=f"{argument} = {got}", expected=expected, remedy=remedy)
        self.argument = argument


class SamplingError(EngineError, ValueError):
    """A sampling parameter outside its range. `field` and `value` say which.

    It is a `ValueError` too, so that `msgspec` reports it as a validation error of the message it decodes.
    """

    def __init__(self, field: str, value: object, *, expected: str) -> None:
        super().__init__(got=f"{field} = {value!r}", expected=expected, remedy=f"leave {field} out for its default")
        self.field = field
        self.value = value


class AdapterError(EngineError):
    """An adapter that the engine does not hold."""

    def __init__(self, adapter: object, *, expected: str, remedy: str) -> None:
        super().__init__(got=f"adapter = {adapter!r}", expected=expected, remedy=remedy)
        self.adapter = adapter


class AdapterRoomError(AdapterError):
    """An adapter for which there is no room now: as many are kept already as fit."""


class BaseSwapError(DuologueError):
    """A base model that cannot be put in now, or never beside the one that serves."""

    def __init__(self, checkpoint: str, *, got: str, expected: str) -> None:
        super().__init__(
            got=f"{checkpoint} as the next base model and {got}",
            expected=expected,
            remedy="nothing has changed; `GET /api/base` says what serves",
        )
        self.checkpoint = checkpoint


class ConfigError(DuologueError):
    """A setting that is unknown or out of range. `name` says which, `got` also where it came from."""

    def __init__(self, name: str, *, got: str, expected: str) -> None:
        super().__init__(got=f"{name} = {got}", expected=expected, remedy=f"correct {name} or leave it out")
        self.name = name


class TokenError(DuologueError):
    """A token, or a line of a token file, that cannot be used. `source` says where. Never shows a token."""

    def __init__(self, source: str, *, got: str, expected: str) -> None:
        super().__init__(got=f"{got} in {source}", expected=expected, remedy="correct it or leave it out")
        self.source = source


class DoorError(DuologueError):
    """A request that is turned away before anything is done about it. The sentence is the body, `status` HTTP's."""

    status = 400


class UnauthorisedError(DoorError):
    """No credentials where some are needed, or credentials that are nobody's."""

    status = 401

    def __init__(self, *, got: str, expected: str = "a token that this server knows") -> None:
        super().__init__(
            got=got,
            expected=expected,
            remedy="send it as `Authorization: Bearer`, or sign in on the page; the operator gives tokens out",
        )


class ForbiddenError(DoorError):
    """Credentials, or an origin, that are not enough for what was asked."""

    status = 403


class TooManyRequestsError(DoorError):
    """More requests from one address than it may make."""

    status = 429

    def __init__(self, rate_hz: float) -> None:
        super().__init__(
            got="more requests from one address than it may make",
            expected=f"at most {rate_hz:.3g} a second for long, fewer with wrong tokens",
            remedy="ask again in a few seconds",
        )


class RefusalError(DuologueError):
    """A caller who cannot be served, or no longer. The sentence goes out as `05`, then the socket closes.

    `reason` is the label under which it is counted.
    """

    close_code = 1011
    reason = "failed"


class ParameterError(RefusalError):
    """A query parameter with a bad value. `name` says which."""

    close_code = 4400
    reason = "bad_parameter"

    def __init__(self, name: str, value: str, *, expected: str) -> None:
        super().__init__(got=f"{name} = {value[:80]!r}", expected=expected, remedy=f"leave {name} out for its default")
        self.name = name


class AudioFormatError(RefusalError):
    """Bytes in an `01` that are not an Ogg/Opus stream."""

    close_code = 4400
    reason = "bad_audio"

    def __init__(self, problem: str) -> None:
        super().__init__(
            got=f"audio that cannot be decoded ({problem})",
            expected="one Ogg/Opus stream, mono, whose bytes follow each other in 01 messages",
            remedy="start a new call with a new stream",
        )


class FullError(RefusalError):
    """All slots are taken and so many callers wait that no more may."""

    close_code = 4429
    reason = "full"

    def __init__(self, slots: int, waiting: int) -> None:
        super().__init__(
            got=f"a call while {slots} are served and {waiting} wait",
            expected="a free place in the queue",
            remedy="call again in a minute",
        )


class DrainingError(RefusalError):
    """The server is about to stop and takes no more calls."""

    close_code = 4429
    reason = "draining"

    def __init__(self) -> None:
        super().__init__(
            got="a call while the server stops", expected="a server that stays", remedy="call again in a minute"
        )


class ServerFailedError(RefusalError):
    """The engine has failed or never came up; nobody can be served until a restart."""

    close_code = 1011
    reason = "failed"

    def __init__(self) -> None:
        super().__init__(
            got="a call after the model had failed",
            expected="a running model",
            remedy="tell the operator to read the server's log and restart it",
        )


class LoadingError(RefusalError):
    """The model is not there yet."""

    close_code = 4429
    reason = "loading"

    def __init__(self) -> None:
        super().__init__(
            got="a call while the model loads", expected="a server that is ready", remedy="call again in ten seconds"
        )


class GoingAwayError(RefusalError):
    """A call that outlived the drain time of a stopping server."""

    close_code = 1001
    reason = "drained"

    def __init__(self) -> None:
        super().__init__(
            got="a call that went on while the server stopped",
            expected="its end within the drain time",
            remedy="call again in a minute",
        )


class FaultError(RefusalError):
    """The model raised for this call alone; the others go on."""

    close_code = 1011
    reason = "fault"

    def __init__(self) -> None:
        super().__init__(
            got="an internal error of the model in this call",
            expected="an answer",
            remedy="call again, and tell the operator if it happens twice",
        )


class IdleError(RefusalError):
    """A caller who sends no sound, not even a silent microphone's."""

    close_code = 4408
    reason = "idle"

    def __init__(self, idle_s: float) -> None:
        super().__init__(
            got=f"no sound message for {idle_s:g} s",
            expected="a microphone's sound all the time, silence included",
            remedy="call again when there is something to send",
        )


class TooLongError(RefusalError):
    """A call that has used up its time."""

    close_code = 4408
    reason = "too_long"

    def __init__(self, max_session_s: float) -> None:
        super().__init__(
            got=f"a call of {max_session_s:g} s",
            expected="a shorter one: no call may last longer here",
            remedy="call again",
        )


class TooManyCallsError(RefusalError):
    """An address that has as many calls as it may."""

    close_code = 4429
    reason = "too_many"

    def __init__(self, max_calls: int) -> None:
        super().__init__(
            got="one call more from this address",
            expected=f"at most {max_calls} at once",
            remedy="end another, or ask the operator; behind a proxy, its address must be in trusted_proxies",
        )


class TooManyOfOneError(RefusalError):
    """A person who has as many calls as one may."""

    close_code = 4429
    reason = "too_many_of_one"

    def __init__(self, max_calls: int) -> None:
        super().__init__(
            got="one call more with a token of the same person",
            expected=f"at most {max_calls} at once, on whatever devices",
            remedy="end another, or ask the operator, who sets max_calls_per_user",
        )


class TakenAwayError(RefusalError):
    """A caller whose token is no longer known, or no longer one for calls."""

    close_code = 4401
    reason = "unauthorised"

    def __init__(self) -> None:
        super().__init__(
            got="a call whose token was taken away",
            expected="a token that this server knows",
            remedy="call again with another, or ask the operator",
        )


class TooFastError(RefusalError):
    """An address that sends more than it may."""

    close_code = 4429
    reason = "too_fast"

    def __init__(self, bytes_per_s: float) -> None:
        super().__init__(
            got="more bytes and messages from one address than it may send",
            expected=f"at most {bytes_per_s:.0f} bytes a second for long",
            remedy="send at the pace of speech",
        )


class TakenOverError(RefusalError):
    """The peer whose call another connection has resumed."""

    close_code = 4409
    reason = "taken_over"

    def __init__(self) -> None:
        super().__init__(
            got="the call's resume token from another connection",
            expected="one connection to a call",
            remedy="go on there; if that was not you, call again without a token",
        )


class ResumeError(RefusalError):
    """A resume token of no call that can be resumed. Says the same whether the token ever was one."""

    close_code = 4410
    reason = "not_resumable"

    def __init__(self, grace_s: float) -> None:
        super().__init__(
            got="a resume_token of no call that can be resumed",
            expected=f"that of the last session message, within {grace_s:g} s of losing the connection",
            remedy="call again without resume_token to begin a new conversation",
        )
