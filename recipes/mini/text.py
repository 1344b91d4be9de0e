"""The text stream: a small sentencepiece vocabulary, and words laid out on the frame grid as Moshi does.

Ids are Moshi's: 0 ends a run of padding (one frame before a word), 3 is padding.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import sentencepiece

from recipes.mini import faults, wordings

__all__ = ["END_OF_PADDING", "PADDING", "VOCABULARY", "lay_out", "train_tokenizer"]

END_OF_PADDING = 0
PADDING = 3
VOCABULARY = 640
FRAME_S = 0.08


def train_tokenizer(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Fit the vocabulary on everything Dua or a caller may say and write `path`."""
    lines = (wordings.replies() + faults.wrong_replies()) * 10 + [q.text for q in wordings.questions()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="bpe",
        character_coverage=1.0,
        unk_id=END_OF_PADDING,
        bos_id=1,
        eos_id=2,
        pad_id=PADDING,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def lay_out(
    text_T: np.ndarray,
    words: list[tuple[str, float, float]],
    sentence: str,
    tokenizer: sentencepiece.SentencePieceProcessor,
    start_frame: int,
    stop_frame: int,
) -> None:
    """Write the pieces of `sentence` into `text_T` (int [T]): the first word from the frame it starts in, the others
    one frame earlier.

    That frame matters. Where text and sound begin in the same frame, the sound before a word already gives it away
    (the tongue moves early, an aligner marks late): teacher-forced, the text stream then follows the sound and never
    learns to listen to the caller. Nothing precedes the first word but silence.

    `words` are the aligned words with times from `start_frame` on; nothing is written from `stop_frame` on. A word
    whose predecessor still has pieces to place starts when those are out.
    """
    free = start_frame
    for place, (spelled, (_, begin_s, _)) in enumerate(zip(sentence.split(), words, strict=True)):
        frame = max(free, start_frame + math.floor(begin_s / FRAME_S) - (place > 0))
        pieces = tokenizer.encode(spelled)
        if frame >= stop_frame:
            return
        if frame > 0 and text_T[frame - 1] == PADDING:
            text_T[frame - 1] = END_OF_PADDING
        for piece in pieces:
            if frame < min(stop_frame, len(text_T)):
                text_T[frame] = piece
            frame += 1
        free = frame
