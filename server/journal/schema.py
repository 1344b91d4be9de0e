"""The tables of the journal, every column with its meaning. One schema for SQLite and PostgreSQL.

Sessions have random ids; nothing here says who somebody is beyond a keyed hash. What was said is only in sealed
columns, which the session's key opens (`keys`). Times of day are seconds since 1970 (UTC) and never used for order:
within a session order is by tick. It knows nothing of who writes or reads.
"""

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)

__all__ = [
    "METADATA",
    "adapter_changes",
    "adapter_sessions",
    "adapters",
    "consents",
    "frames",
    "pairs",
    "sessions",
    "signals",
    "tombstones",
    "verdicts",
]

METADATA: Final = MetaData()


def _column(name: str, kind: Any, comment: str, **more: Any) -> Column[Any]:
    return Column(name, kind, comment=comment, nullable=more.pop("nullable", False), **more)


sessions = Table(
    "sessions",
    METADATA,
    _column("id", String(64), "Random id of the call.", primary_key=True),
    _column("user_hash", String(64), "Keyed hash of the caller; empty for an anonymous one."),
    _column("started_at", Float, "Time of day of the first recorded frame."),
    _column("ended_at", Float, "Time of day of the end; null while the call goes on.", nullable=True),
    _column("end_reason", String(32), "Why it ended; `crashed` when the server did; empty while it goes on."),
    _column("keep", Boolean, "The caller permits keeping the call. True for every row: others are never written."),
    _column("train", Boolean, "The caller permits training on the call."),
    _column("checkpoint", String(256), "Name of the base model."),
    _column(
        "base_sha256",
        String(64),
        "SHA-256 of its language model's weights; empty for calls kept before this was noted.",
        server_default="",
    ),
    _column(
        "cache_dtype",
        String(8),
        "What keys and values were kept in, `fp32` or shorter; empty for calls kept before this was noted.",
        server_default="",
    ),
    _column("adapter", String(64), "Id of the adapter at the first recorded frame; empty for the base model."),
    _column("version", String(32), "Version of the server."),
    _column("detector", String(64), "Version of the rules that found the signals."),
    _column("seed", BigInteger, "Seed of the row's randomness."),
    _column("sampling", Text, "Sampling parameters, JSON."),
    _column("codebooks", SmallInteger, "Tokens in a column: text, model audio, user audio."),
    _column("model_codebooks", SmallInteger, "Model audio codebooks among them."),
    _column("frame_rate", Float, "Frames per second."),
    _column("first_tick", Integer, "Tick of the first recorded frame: 0 when the call can be replayed."),
    comment="One row per call that may be kept.",
)
Index("sessions_by_user", sessions.c.user_hash)
Index("sessions_by_start", sessions.c.started_at)

adapter_changes = Table(
    "adapter_changes",
    METADATA,
    _column("session_id", String(64), "The call.", primary_key=True),
    _column("step", Integer, "Step of the call, counted from 0, that was the first by this adapter.", primary_key=True),
    _column("adapter_id", String(64), "Id of the adapter; empty for the base model."),
    comment="Adapters that took over in the middle of a call.",
)

consents = Table(
    "consents",
    METADATA,
    _column("session_id", String(64), "The call.", primary_key=True),
    _column("number", Integer, "Counts from 0 in each call.", primary_key=True),
    _column("at", Float, "Time of day."),
    _column("keep", Boolean, "Permission to keep, from then on."),
    _column("train", Boolean, "Permission to train, from then on."),
    comment="What the caller permitted, and when.",
)

frames = Table(
    "frames",
    METADATA,
    _column("session_id", String(64), "The call.", primary_key=True),
    _column(
        "first_tick",
        Integer,
        "Tick of the first frame in the row; a gap to the row before was dropped.",
        primary_key=True,
    ),
    _column("count", SmallInteger, "Frames in the row."),
    _column(
        "sealed",
        LargeBinary,
        "Sealed with the session's key: tokens int16 [count, codebooks], then log-probs of the text tokens float32 "
        "[count], little-endian.",
    ),
    comment="The tokens of both sides: voice data.",
)

signals = Table(
    "signals",
    METADATA,
    _column("session_id", String(64), "The call.", primary_key=True),
    _column("number", Integer, "Id of the signal in its call, from 1.", primary_key=True),
    _column("revision", Integer, "0, then one more each time it is revised; the highest one holds.", primary_key=True),
    _column("kind", String(32), "`server.signals.SignalKind`."),
    _column("t0", Float, "Seconds of the call."),
    _column("t1", Float, "Seconds of the call."),
    _column("confidence", Float, "0 to 1."),
    _column("state", String(16), "`provisional`, `final` or `withdrawn`."),
    _column("latency_s", Float, "Seconds, signed; null where the kind has none.", nullable=True),
    _column("of", Integer, "The signal that this one follows; null for none.", nullable=True),
    _column("value", String(16), "`up` or `down`; empty but for feedback."),
    _column("detector", String(64), "Version of the rules and thresholds."),
    comment="What happened in a call.",
)

pairs = Table(
    "pairs",
    METADATA,
    _column("id", String(64), "Id of the pair.", primary_key=True),
    _column("session_id", String(64), "The call it was made from."),
    _column("user_hash", String(64), "Keyed hash of the caller, for caps and held-out splits; empty for anonymous."),
    _column("kind", String(8), "A content, B cut-off or pause taken, C no response, D no yield."),
    _column("made_at", Float, "Time of day."),
    _column("at_tick", Integer, "Tick at which the two sides part."),
    _column("heldout", Boolean, "Kept for validation."),
    _column("policy", String(64), "Adapter that spoke; empty for the base model."),
    _column("evidence", Text, "Numbers of the signals it rests on and the rule's version, JSON."),
    _column("chosen_logp", Float, "Reference log-prob of the chosen side, summed.", nullable=True),
    _column("rejected_logp", Float, "Reference log-prob of the rejected side, summed.", nullable=True),
    _column("sealed", LargeBinary, "Context and both sides, sealed with the session's key."),
    comment="Preference pairs, each from one call.",
)
Index("pairs_by_session", pairs.c.session_id)

adapters = Table(
    "adapters",
    METADATA,
    _column("id", String(64), "Id of the adapter.", primary_key=True),
    _column("state", String(16), "`staged`, `canary`, `live`, `retired`, `rejected` or `rolled_back`."),
    _column("made_at", Float, "Time of day."),
    _column("changed_at", Float, "Time of day of the last change of state."),
    _column("parent", String(64), "Adapter it was trained from; empty for the base model."),
    _column("checkpoint", String(256), "Name of the base model."),
    _column("path", Text, "Folder with its files, relative to the data folder."),
    _column("sha256", String(64), "Of `lora.safetensors`."),
    _column("manifest", Text, "How it was trained, JSON."),
    _column("withdrawn", Boolean, "A call that it learned from was deleted: the next round must leave it behind."),
    comment="Adapters and their states: the truth about what is live.",
)

adapter_sessions = Table(
    "adapter_sessions",
    METADATA,
    _column("adapter_id", String(64), "The adapter.", primary_key=True),
    _column("session_id", String(64), "A call that it learned from.", primary_key=True),
    comment="Lineage, from a call to what learned from it.",
)
Index("adapter_sessions_by_session", adapter_sessions.c.session_id)

verdicts = Table(
    "verdicts",
    METADATA,
    _column("id", String(64), "Id of the verdict.", primary_key=True),
    _column("adapter_id", String(64), "The adapter that was judged."),
    _column("stage", String(16), "`gate` or `canary`."),
    _column("at", Float, "Time of day."),
    _column("passed", Boolean, "Whether it may go on."),
    _column("reason", Text, "One sentence."),
    _column("figures", Text, "What was measured, JSON."),
    comment="Why an adapter went on or did not.",
)
Index("verdicts_by_adapter", verdicts.c.adapter_id)

tombstones = Table(
    "tombstones",
    METADATA,
    _column("session_id", String(64), "The call that was deleted.", primary_key=True),
    _column("at", Float, "Time of day."),
    _column("reason", String(32), "`asked`, `withdrawn` or `retention`."),
    _column("adapters", Integer, "Adapters that had learned from it."),
    comment="What was deleted: whoever holds copies must follow.",
)
