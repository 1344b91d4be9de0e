"""Calls of the embedded model for the tests of pairs, made by the engine as the server makes them, without a server."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from server.engine import Engine, SamplingParams, model_name
from server.journal import Journal, JournalWriter, SessionRecord, TickRecord
from server.signals import Board, RowFrame, Signal
from tests.signals.sounds import clip

GREEDY = SamplingParams(use_sampling=False)
RATE, FRAME, FRAME_S = 16_000, 1280, 0.08
SILENT = (0, 3)


def sound(*pieces: tuple[float, np.ndarray], seconds: float) -> np.ndarray:
    """Lay pieces at their seconds into silence, float32 at 16 kHz."""
    laid = np.zeros(int(seconds * RATE), np.float32)
    for at_s, piece in pieces:
        at = round(at_s * RATE)
        laid[at : at + len(piece)] += piece[: max(0, len(laid) - at)]
    return laid


def with_pause(name: str, at_s: float, pause_s: float) -> np.ndarray:
    """A recording with a pause cut into it."""
    whole = clip(name)
    cut = round(at_s * RATE)
    return np.concatenate([whole[:cut], np.zeros(round(pause_s * RATE), np.float32), whole[cut:]])


class Told(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What a call came to. `heard` and `said` are the sounds, frame by frame, float32 `[steps, FRAME]`."""

    tokens_TK: np.ndarray
    logprob_T: np.ndarray
    heard: np.ndarray
    said: np.ndarray
    signals: list[Signal]
    seed: int


def call(engine: Engine, heard: np.ndarray, *, sampling: SamplingParams = GREEDY, seed: int = 7) -> Told:
    """Call the model and say `heard` to it."""
    pcm, active = np.zeros((engine.slots, FRAME), np.float32), np.arange(engine.slots) == 0
    seed = engine.open(0, sampling, seed=seed)
    columns, logprobs, said = [], [], []
    frames = heard[: len(heard) // FRAME * FRAME].reshape(-1, FRAME)
    for frame in frames:
        pcm[0] = frame
        out = engine.step(pcm, active)
        said.append(np.asarray(out.pcm)[0].copy())
        if int(out.text[0]) >= 0:
            columns.append(out.tokens.numpy()[0].copy())
            logprobs.append(float(out.logprob[0]))
    engine.close(0)
    tokens = np.array(columns, np.int16)
    return Told(
        tokens_TK=tokens,
        logprob_T=np.array(logprobs, np.float32),
        heard=frames,
        said=np.array(said),
        signals=detect(engine, frames, np.array(said), tokens),
        seed=seed,
    )


def detect(engine: Engine, heard: np.ndarray, said: np.ndarray, tokens_TK: np.ndarray) -> list[Signal]:
    """What the server's detector finds in both sides."""
    board, signals = Board(1, sample_rate=engine.sample_rate, frame_s=FRAME_S), {}
    board.open(0)
    pieces = [str(engine.text_tokenizer.id_to_piece(int(text))) if text > 0 else "" for text in tokens_TK[:, 0]]
    for step, (mine, its) in enumerate(zip(heard, said, strict=True)):
        word = 0 < step <= len(pieces) and pieces[step - 1].startswith("▁")
        for signal in board.hear({0: RowFrame(heard=mine, said=its, word=word)})[0]:
            signals[signal.id] = signal
    for signal in board.close(0, hung_up=True):
        signals[signal.id] = signal
    return [signal for signal in signals.values() if signal.state != "withdrawn"]


def dubbed(engine: Engine, caller: Told, model: Told) -> Told:
    """One call's caller with another call's model, of the same length: a model that did not listen."""
    first_user = 1 + engine.model_codebooks
    tokens = np.concatenate([model.tokens_TK[:, :first_user], caller.tokens_TK[:, first_user:]], axis=1)
    return msgspec.structs.replace(
        caller, tokens_TK=tokens, said=model.said, signals=detect(engine, caller.heard, model.said, tokens)
    )


def keep(
    journal: Journal,
    name: str,
    told: Told,
    *,
    user_hash: str = "",
    train: bool = True,
    sampling: SamplingParams = GREEDY,
    signals: Sequence[Signal] | None = None,
    checkpoint: str | Path = "mini",
    base_sha256: str = "",
    model_codebooks: int = 6,
) -> None:
    """Write a call into a journal as the server does."""
    writer = JournalWriter(journal.engine, journal.keys, commit_s=0.02, most_waiting=20_000)
    writer.start()
    writer.begin(
        SessionRecord(
            id=name, user_hash=user_hash, train=train, checkpoint=model_name(str(checkpoint)), base_sha256=base_sha256,
            version="test", detector="test",
            seed=told.seed, sampling=msgspec.json.encode(sampling).decode(), codebooks=told.tokens_TK.shape[1],
            model_codebooks=model_codebooks, frame_rate=12.5,
        )
    )  # fmt: skip
    for tick, column in enumerate(told.tokens_TK):
        writer.frames(
            TickRecord(
                sessions=(name,),
                ticks=(tick,),
                tokens_NK=column[None].astype(np.int64),
                logprob_N=told.logprob_T[tick : tick + 1],
            )
        )
    for signal in told.signals if signals is None else signals:
        writer.signal(name, signal)
    writer.end(name, "closed")
    writer.stop()


def spoken(text_T: np.ndarray) -> np.ndarray:
    """Frames whose text token says something."""
    return np.flatnonzero(~np.isin(text_T, SILENT))


def words(tokenizer: Any, text_T: np.ndarray) -> str:
    """What a text stream says."""
    return str(tokenizer.decode([int(t) for t in text_T if t not in SILENT])).strip()
