"""Token shards: random conversations, written, encoded and stored for the language model.

`python -m recipes.mini.tokens --bank DIR --codec FILE --out DIR --seed N` keeps writing shards of fresh
conversations until it is stopped or `--hours` of sound are written; nothing is ever repeated. `--clean` leaves the
faults of `faults.toml` out. A shard is an
`.npz` with `codes` int16 [N, 1 + 2 K, T] (text, model, user) and `heard` int16 [N, T], the word of the caller's that
ended in each frame (0: none).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from moshi.models.compression import MimiModel

from recipes.mini import align, bank, codec, faults, voices, wordings
from recipes.mini.codec import FRAME_SAMPLES
from recipes.mini.dialogues import Writer
from recipes.mini.stage import Cast, Conversation, Spoken
from recipes.mini.text import train_tokenizer

__all__ = ["Encoder", "heard_vocabulary", "tokenizer_at"]

GROUP_S = 42  # seconds encoded at once
LEAD_FRAMES, TAIL_FRAMES = 60, 12  # silence round a reply when it is encoded


def heard_vocabulary() -> list[str]:
    """Words callers say in training; the index in this list is the label, 0 is none."""
    spoken = [*(q.text for q in wordings.questions()), *wordings.BACKCHANNELS, *wordings.TELLINGS.values()]
    return ["", *sorted({w for line in spoken for w in align.words_of(line)})]


def tokenizer_at(path: Path) -> sentencepiece.SentencePieceProcessor:
    """The text tokenizer at `path`, fitted first where it does not exist."""
    return sentencepiece.SentencePieceProcessor(str(path)) if path.exists() else train_tokenizer(path)


class Encoder:
    """Conversations to tokens.

    The caller's side is encoded as it sounds. The model's side is put together from replies encoded once each, from
    silence to silence: nothing ever encodes what the model says when it is served, so its tokens may be the
    same every time, which makes them easy to learn and to turn into sound.
    """

    def __init__(self, mimi: MimiModel) -> None:
        self._mimi = mimi
        self._said: dict[tuple[str, int], np.ndarray] = {}
        self.silence = self._encode(np.zeros(LEAD_FRAMES * FRAME_SAMPLES, np.float32))[:, -1:]

    def encode(self, talks: list[Conversation]) -> np.ndarray:
        """int16 [N, 1 + 2 K, T] of conversations of one length."""
        with torch.no_grad():
            users = self._mimi.encode(torch.from_numpy(np.stack([t.user for t in talks])[:, None])).numpy()
        models = np.stack([self._model_side(t) for t in talks])
        texts = np.stack([t.text for t in talks])[:, None]
        return np.concatenate([texts, models, users], 1).astype(np.int16)

    def _model_side(self, talk: Conversation) -> np.ndarray:
        codes = np.repeat(self.silence, len(talk.text), axis=1)
        for spoken in talk.spoken:
            piece = self._reply(spoken)[:, : max(0, len(talk.text) - spoken.start)]
            codes[:, spoken.start : spoken.start + piece.shape[1]] = piece
        return codes

    def _reply(self, spoken: Spoken) -> np.ndarray:
        key = (spoken.sentence, len(spoken.sound))
        if key not in self._said:
            around = (LEAD_FRAMES * FRAME_SAMPLES, TAIL_FRAMES * FRAME_SAMPLES)
            self._said[key] = self._encode(np.pad(spoken.sound, around))[:, LEAD_FRAMES:]
        return self._said[key]

    @torch.no_grad()
    def _encode(self, sound: np.ndarray) -> np.ndarray:
        return self._mimi.encode(torch.from_numpy(sound)[None, None])[0].numpy()


def heard_labels(talk: Conversation, vocabulary: dict[str, int]) -> np.ndarray:
    """int16 [T]: the caller's word that ended in each frame."""
    labels = np.zeros(len(talk.text), np.int16)
    for word, end_s in talk.heard:
        frame = int(end_s / 0.08)
        if frame < len(labels):
            labels[frame] = vocabulary.get(word, 0)
    return labels


def write_shards(arguments: argparse.Namespace) -> None:
    """Write shards until the wanted hours are there."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    encoder = Encoder(codec.load_weights(codec.build(), arguments.codec))
    tokenizer = tokenizer_at(arguments.tokenizer or arguments.out / "tokenizer.model")
    vocabulary = {w: i for i, w in enumerate(heard_vocabulary())}
    state = arguments.out / f"writer_{arguments.seed}.json"
    index = json.loads(state.read_text())["next"] if state.exists() else 0  # a restart must not write the same again
    written_s = 0.0
    writer, loaded = _writer(arguments, tokenizer, index), time.monotonic()
    while written_s < arguments.hours * 3600:
        while len(list(arguments.out.glob("shard_*.npz"))) >= arguments.ahead:
            time.sleep(2)
        if time.monotonic() - loaded > 600:  # the bank may still be growing
            writer, loaded = _writer(arguments, tokenizer, index), time.monotonic()
        frames = int(arguments.frames)
        group = max(1, int(GROUP_S / (frames * 0.08)))
        talks, codes = [], []
        for _ in range(max(1, int(arguments.shard_s / (frames * 0.08)) // group)):
            part = [writer.conversation(frames) for _ in range(group)]
            codes.append(encoder.encode(part))
            talks += part
        heard = np.stack([heard_labels(t, vocabulary) for t in talks])
        target = arguments.out / f"shard_{arguments.seed}_{index:05d}.npz"
        np.savez(target.with_suffix(".tmp.npz"), codes=np.concatenate(codes), heard=heard)
        target.with_suffix(".tmp.npz").rename(target)
        written_s += len(talks) * frames * 0.08
        index += 1
        state.with_suffix(".tmp").write_text(json.dumps({"next": index}))
        state.with_suffix(".tmp").rename(state)


def _writer(arguments: argparse.Namespace, tokenizer: sentencepiece.SentencePieceProcessor, index: int) -> Writer:
    at_least = arguments.at_least
    cast = Cast(
        arguments.bank,
        bank.present(arguments.bank, voices.USERS, at_least=at_least),
        at_least=at_least,
        own=arguments.own,
        seed=arguments.seed * 100_000 + index,
    )
    rate = 0.0 if arguments.clean else faults.faults()["rate"]
    return Writer(cast, tokenizer, seed=arguments.seed * 100_000 + index, fault_rate=rate)


def main() -> None:
    """Write shards of fresh conversations."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--codec", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, help="made where it does not exist; else in the folder of the shards")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--hours", type=float, default=1000.0)
    parser.add_argument("--ahead", type=int, default=8, help="wait while this many shards are unread")
    parser.add_argument("--shard-s", type=float, default=1300.0, help="seconds of sound in a shard")
    parser.add_argument("--at-least", type=int, default=20, help="utterances below which a voice is left out")
    parser.add_argument("--own", default=voices.MODEL_VOICE, help="whose voice the model has")
    parser.add_argument("--clean", action="store_true", help="no faults")
    write_shards(parser.parse_args())


if __name__ == "__main__":
    main()
