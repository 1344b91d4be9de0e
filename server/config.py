"""How a server is set up: one frozen struct, filled from defaults, a TOML file, the environment and flags.

Later sources win, field by field. This file knows nothing of what the fields do.
"""

import argparse
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from server.errors import ConfigError

__all__ = ["ENVIRONMENT_PREFIX", "EXPECTED", "ServerConfig", "build_parser", "load_config"]

ENVIRONMENT_PREFIX: Final = "DUOLOGUE_"


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything an operator can set. Units are in the names."""

    checkpoint: str = "mini"
    """`mini`, a folder, or `hf:owner/name`."""
    slots: Annotated[int, Meta(ge=1)] | Literal["auto"] = "auto"
    """Callers served at once. `auto`: as many as the machine holds on time, as measured at the start; at most 64 on a
    CPU and 32 on a GPU."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    cache_dtype: Literal["auto", "bf16", "fp16", "fp32", "int8"] = "auto"
    """What the language model's keys and values are kept in. `auto` is the model's own type, the only one on a CPU;
    `int8` lets a GPU's memory hold nearly twice as many callers, at the cost of a little accuracy."""
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8998
    """0 lets the system choose; the log then says which."""
    data_dir: Path = Path("data")
    """Where durable files go. Nothing is written before a caller permits keeping a call."""
    journal_url: str | None = None
    """A PostgreSQL database for the journal, as an SQLAlchemy URL; its keys stay in `data_dir`. None: a file there."""
    retention_days: Annotated[float, Meta(ge=0)] = 30.0
    """Calls are deleted when they are so old; 0 keeps them until somebody deletes them."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    canary_share: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Of users, who hear an adapter while it is a canary."""
    max_adapters: Annotated[int, Meta(ge=1, le=64)] = 4
    """Adapters kept ready at once: the live one, a canary, the one before, and those that older calls still have."""
    swap_live: bool = False
    """Let calls that are under way change to a new adapter when nobody speaks; else they keep theirs to the end."""
    learn: bool = False
    """Run the learner beside the server, as a process of its own at low priority. The next nine are passed to it."""
    judge: str = "none"
    """Who says what would have been a better answer: `rules`, or the base URL of an OpenAI-compatible endpoint. Without
    one it learns from timing alone."""
    judge_model: str = ""
    """The model's name at that endpoint. Its key is in `DUOLOGUE_JUDGE_KEY`."""
    answers: tuple[str, ...] = ()
    """For `rules`: tables of right answers, TOML or JSON."""
    recogniser: str = "none"
    """What hears callers' words: a faster-whisper model, or `auto` for the development extra's."""
    evidence: Literal["users", "turns", "gate"] = "users"
    """What has to be known before everybody hears an adapter: a test over people, a number of turns where people cannot
    be told apart, or nothing beyond the gate."""

    loss: Literal["dpo", "dpo-ln", "simpo", "apo-zero", "ipo", "cdpo", "kto"] = "dpo-ln"
    """What it learns by. A round that was begun keeps the loss and the beta it was begun with."""
    beta: Annotated[float, Meta(gt=0)] = 0.3
    """Strength of the preference; each loss has its own best."""
    pairs_per_round: Annotated[int, Meta(ge=1)] = 32
    """New pairs that start a round,"""
    round_every_s: Annotated[float, Meta(ge=0)] = 3600.0
    """or so much time with any at all; 0 leaves it to their number."""

    token_file: Path | None = None
    """Lines `NAME:TOKEN`, as `server.tokens` reads them. With this or with `tokens`, calls need one of the tokens."""
    tokens: str = ""
    """The same lines without a file, parted by commas or line breaks: for the environment, not for a command line."""
    admin_token_file: Path | None = None
    """A file with one token, which may do everything. Without an admin's token nothing can be changed by HTTP."""
    admin_token: str = ""
    """The same without a file: for the environment."""
    allow_anonymous: bool = False
    """Let callers without a token in, also where others than this machine reach the server."""
    login_s: Annotated[float, Meta(gt=0)] = 604_800.0
    """How long a browser stays signed in."""
    allow_origin: tuple[str, ...] = ()
    """Origins of web pages that may call, beside those of this server's own host and port; `*` for all."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed."""
    max_calls_per_address: Annotated[int, Meta(ge=1)] = 16
    """Calls at once, waiting ones included. This machine itself is not limited."""
    max_calls_per_user: Annotated[int, Meta(ge=1)] = 4
    """Calls at once of one person, who is a name in the token file. Admins and the anonymous are not limited by it."""
    max_bytes_per_s_per_address: Annotated[float, Meta(ge=16_384)] = 512_000.0
    """What all calls from one address may send for long. A call needs about 8,000."""
    tls_cert: Path | None = None
    """A certificate and what it rests on, PEM. With `tls_key` the server speaks TLS."""
    tls_key: Path | None = None
    """Its private key, PEM."""
    tls_self_signed: bool = False
    """Speak TLS with a certificate made here and kept in `data_dir`, for a network of one's own."""

    max_waiting: Annotated[int, Meta(ge=0)] = 16
    """Callers that may wait for a slot; the next one is refused."""
    keepalive_s: Annotated[float, Meta(gt=0, le=8)] = 4.0
    """Longest silence towards a client. The stock page hangs up after 10 s."""
    heartbeat_s: Annotated[float, Meta(gt=0, le=12)] = 10.0
    """A peer that sends nothing for so long is pinged, and given half as long again to answer."""
    max_message_bytes: Annotated[int, Meta(ge=4096)] = 1_048_576
    """A longer WebSocket message closes the connection with 1009."""
    send_buffer_bytes: Annotated[int, Meta(ge=4096)] = 16_384
    """Bytes that may wait in the process, and again in the kernel, for a slow reader; sound beyond is dropped."""

    inbox_ms: Annotated[int, Meta(ge=160)] = 2000
    """A caller's sound that may wait for the model. When it is full, all but the newest quarter is skipped."""
    outbox_ms: Annotated[int, Meta(ge=160)] = 2000
    """Reply sound that may wait for a slow socket. When it is full, the oldest frame is dropped."""
    max_speed: Annotated[float, Meta(ge=1)] = 2.0
    """How many times real time one caller may be served: bounds catching up, and `duologue say --speed`."""
    stats_interval_s: Annotated[float, Meta(gt=0)] = 1.0
    """Shortest time between two `stats` messages to one caller."""
    resume_grace_s: Annotated[float, Meta(ge=0, le=600)] = 30.0
    """A lost connection's slot is kept for so long, unless somebody waits for it. 0 keeps none."""
    idle_s: Annotated[float, Meta(gt=0)] = 60.0
    """A caller who sends no sound message for so long is sent away. A silent microphone sends; it is not idle."""
    max_session_s: Annotated[float, Meta(gt=0)] = 3600.0
    """Longest call."""
    drain_s: Annotated[float, Meta(ge=0)] = 30.0
    """After SIGTERM, running calls go on for so long."""


_NO_FIELDS: Final = tuple(ENVIRONMENT_PREFIX + name for name in ("CONFIG", "URL", "TOKEN", "JUDGE_KEY"))
"""Names in the environment that are right but no settings: the file's, what `duologue` calls and shows, the key of
the judge."""

_FLAGS: Final = (
    *("checkpoint", "slots", "host", "port", "data_dir", "device", "cache_dtype", "max_speed"),
    *("canary_share", "token_file", "admin_token_file", "tls_cert", "tls_key"),
    *("judge", "judge_model", "recogniser", "evidence", "loss", "beta"),
)
_SWITCHES: Final = ("learn", "swap_live", "allow_anonymous", "tls_self_signed")
_LISTS: Final = ("allow_origin", "trusted_proxies", "answers")
"""In the environment their parts are parted by commas."""
_REPEATED_FLAGS: Final = ("allow_origin", "answers")
_SECRETS: Final = ("tokens", "admin_token", "journal_url")
"""Fields whose values no error shows."""

EXPECTED: Final = {
    "checkpoint": "mini, a folder, or hf:owner/name",
    "slots": "a number of callers served at once, or auto",
    "device": "auto, cpu or cuda",
    "cache_dtype": "what keys and values are kept in: auto, bf16 or fp32, on a GPU fp16 or int8, too",
    "host": "an address to listen on",
    "port": "a port from 0 to 65535, where 0 lets the system choose",
    "data_dir": "a folder for durable files",
    "journal_url": "the SQLAlchemy URL of a PostgreSQL database",
    "retention_days": "0 days or more, where 0 keeps for ever",
    "log_level": "debug, info, warning or error",
    "canary_share": "a share of users from 0 to 1 who hear an adapter while it is a canary",
    "max_adapters": "1 to 64 adapters kept ready at once",
    "swap_live": "true or false: whether calls under way change to a new adapter when nobody speaks",
    "learn": "true or false: whether the learner runs beside the server",
    "judge": "with --learn: rules, none, or the base URL of an OpenAI-compatible endpoint, with /v1",
    "judge_model": "with --learn: the name of the judge's model at its endpoint",
    "answers": "with --judge rules: a table of right answers, TOML or JSON; may be given again",
    "recogniser": "with --learn: a faster-whisper model, none, or auto for the dev extra's if installed",
    "evidence": "with --learn: users, turns or gate: what lets an adapter go live",
    "loss": "with --learn: dpo, dpo-ln, simpo, apo-zero, ipo, cdpo or kto: what is learned by",
    "beta": "with --learn: a number above 0: strength of the preference, of which each loss has its own best",
    "pairs_per_round": "a whole number of new pairs from 1 that start a round of learning",
    "round_every_s": "0 seconds or more until a round with any new pairs, where 0 leaves it to their number",
    "token_file": "a file with lines NAME:TOKEN; calls then need one of the tokens",
    "tokens": "NAME:TOKEN, several parted by commas",
    "admin_token_file": "a file with the one token that may change things",
    "admin_token": "a token that may change things",
    "allow_anonymous": "true or false: whether callers without a token are let in wherever the server listens",
    "login_s": "more than 0 seconds",
    "allow_origin": "the origin of a web page that may call, such as https://talk.example.org; may be given again",
    "trusted_proxies": "addresses or networks of proxies",
    "max_calls_per_address": "a whole number of calls from 1",
    "max_calls_per_user": "a whole number of calls from 1",
    "max_bytes_per_s_per_address": "16384 bytes a second or more",
    "tls_cert": "a file with a certificate, PEM",
    "tls_key": "a file with the certificate's private key, PEM",
    "tls_self_signed": "true or false: whether to speak TLS with a certificate made here",
    "max_waiting": "a whole number of callers from 0",
    "keepalive_s": "more than 0 and at most 8 seconds",
    "heartbeat_s": "more than 0 and at most 12 seconds",
    "max_message_bytes": "a whole number of bytes from 4096",
    "send_buffer_bytes": "a whole number of bytes from 4096",
    "inbox_ms": "a whole number of milliseconds from 160",
    "outbox_ms": "a whole number of milliseconds from 160",
    "max_speed": "a multiple of real time from 1",
    "stats_interval_s": "more than 0 seconds",
    "resume_grace_s": "0 to 600 seconds, where 0 keeps no lost calls",
    "idle_s": "more than 0 seconds",
    "max_session_s": "more than 0 seconds",
    "drain_s": "0 seconds or more",
}
"""What each field takes, in words: for refusals and for `--help`."""


def load_config(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> ServerConfig:
    """Read flags, then the file that `--config` or `DUOLOGUE_CONFIG` names, then the environment.

    Raises `ConfigError` with the name, the value and its source for anything unknown or out of range;
    wrong flags end the program as `argparse` does.
    """
    flags = {name: value for name, value in vars(build_parser().parse_args(arguments)).items() if value is not None}
    path = flags.pop("config", None) or environment.get(ENVIRONMENT_PREFIX + "CONFIG")
    sources = [
        (f"the file {path}", _read_file(Path(path)) if path else {}),
        ("the environment", _read_environment(environment)),
        ("the flags", flags),
    ]
    values: dict[str, Any] = {}
    for source, fields in sources:
        _check(source, fields)
        values |= fields
    return _convert(values)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of `duologue-server`. Every flag is optional and has the name of its field."""
    parser = argparse.ArgumentParser(
        prog="duologue-server",
        description="Serve a full-duplex speech dialogue model to many callers.",
        epilog="Every field of the configuration can be set in a TOML file and as DUOLOGUE_<FIELD>.",
    )
    for name in _FLAGS:
        parser.add_argument("--" + name.replace("_", "-"), help=EXPECTED[name])
    for name in _SWITCHES:
        parser.add_argument("--" + name.replace("_", "-"), action="store_true", default=None, help=EXPECTED[name])
    for name in _REPEATED_FLAGS:
        parser.add_argument("--" + name.replace("_", "-"), action="append", help=EXPECTED[name])
    parser.add_argument("--config", help="TOML file; environment and flags win over it")
    return parser


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise ConfigError(
            "config", got=f"{path}, which cannot be read ({problem.strerror})", expected="a TOML file"
        ) from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigError("config", got=f"{path} with a mistake ({problem})", expected="a TOML file") from problem


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Give what has our prefix by its field's name; `_check` refuses what is no field."""
    ours = {key: value for key, value in environment.items() if key.startswith(ENVIRONMENT_PREFIX)}
    fields = {_field(key): value for key, value in ours.items() if key not in _NO_FIELDS}
    return fields | {name: _parts(fields[name]) for name in _LISTS if name in fields}


def _parts(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _field(key: str) -> str:
    name = key.removeprefix(ENVIRONMENT_PREFIX).lower()
    return name if name in ServerConfig.__struct_fields__ and key.isupper() else key


def _check(source: str, fields: Mapping[str, Any]) -> None:
    """Convert one source alone, so that a mistake is reported with the place it came from."""
    for name, value in fields.items():
        if name not in ServerConfig.__struct_fields__:
            known = ", ".join(ServerConfig.__struct_fields__)
            raise ConfigError(name, got=f"an unknown name in {source}", expected=f"one of {known}")
        try:
            _convert({name: value})
        except msgspec.ValidationError as problem:
            got = "a value that is not shown" if name in _SECRETS else repr(value)
            raise ConfigError(name, got=f"{got} in {source}", expected=EXPECTED[name]) from problem


def _convert(fields: Mapping[str, Any]) -> ServerConfig:
    return msgspec.convert(fields, ServerConfig, strict=False, dec_hook=_to_path)


def _to_path(kind: type, value: Any) -> Any:
    """Make the one kind of field that msgspec does not know."""
    if kind is not Path or not isinstance(value, str):
        raise TypeError(f"no {kind} can be made of {value!r}")
    return Path(value)
