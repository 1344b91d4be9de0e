"""Can it be heard when the model is made to say given words? Chosen sides of content pairs are made so.

Recorded people ask; the model answers once by itself and once in words that belong to another question of the same
category, as `regenerate` dictates them. A recogniser hears both. It owns these two rows and knows no journal.

Legend: T frames, K tokens of a column, U user codebooks.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch

from benchmarks.report import Row
from online_align.answers import plain_words
from online_align.evaluate.intervals import share
from online_align.evaluate.people import FRAME_S, RATE_HZ, Pcm, Utterance, lay
from online_align.regenerate import Branch, Regenerator, Tokens, silence, word_pieces
from online_align.transcribe import Recogniser
from server.engine.checkpoint import Checkpoint

__all__ = ["dictated_rows", "others_answers"]

_ASK_AT_S: Final = 0.56
_LISTENS: Final = 70
"""Frames for an answer."""
_BEGINS: Final = 4
"""Frames after the caller's end by which a dictated answer begins."""
_ROUND: Final = RATE_HZ // 2
"""Samples of silence on either side of what a recogniser hears."""


def dictated_rows(
    checkpoint: Checkpoint, questions: Sequence[Utterance], count: int, recogniser: Recogniser
) -> list[Row]:
    """Shares of `count` answers that are heard word for word: by themselves, and dictated."""
    speaker = Regenerator(checkpoint, branches=2)
    own: list[bool] = []
    given: list[bool] = []
    for seed, (asked, words) in enumerate(others_answers(questions, count)):
        for heard, branch in ((own, Branch(seed=seed)), (given, _branch(checkpoint, words, seed))):
            side_TK = _said(speaker, asked, branch, seed)
            wanted = words if branch.words else _words(checkpoint, side_TK)
            heard.append(_hears(recogniser, _sound(checkpoint.mimi, speaker, side_TK), wanted))
    return [share("own_words_heard", own), share("dictated_words_heard", given)]


def others_answers(questions: Sequence[Utterance], count: int) -> list[tuple[Utterance, str]]:
    """Give `count` questions outside the faults with a short answer, and the answer to another of the category."""
    by_category: dict[str, list[Utterance]] = defaultdict(list)
    for each in questions:
        if each.fault is None and each.group == "trained" and each.category not in ("tellings", "unknown", "declines"):
            by_category[each.category].append(each)
    found = [
        (asked, next((o.expected for o in group[i + 1 :] if o.expected != asked.expected), ""))
        for group in by_category.values()
        for i, asked in enumerate(group)
    ]
    usable = [pair for pair in found if pair[1]]
    return usable[:: max(1, len(usable) // max(1, count))][:count]


def _branch(checkpoint: Checkpoint, words: str, seed: int) -> Branch:
    return Branch(seed=seed, words=word_pieces(checkpoint.text_tokenizer, words), start_by=_BEGINS)


def _said(speaker: Regenerator, asked: Utterance, branch: Branch, seed: int) -> Tokens:
    """The model's columns, int16 `[T, K]`, from the caller's end on."""
    mimi, lm = speaker.checkpoint.mimi, speaker.checkpoint.lm
    room = lay([(_ASK_AT_S, asked.sound())], _ASK_AT_S + asked.seconds + 10 * FRAME_S, np.random.default_rng(seed))
    with torch.inference_mode():
        heard_TU = mimi.encode(torch.from_numpy(room.reshape(1, 1, -1)))[0].numpy().T.astype(np.int16)
    nothing, first_user = silence(mimi), 1 + speaker.model_codebooks
    past_TK = np.zeros((len(heard_TU), 1 + lm.n_q), np.int16)
    past_TK[:, 0] = lm.text_padding_token_id
    past_TK[:, 1:first_user] = nothing[: first_user - 1]
    past_TK[:, first_user:] = heard_TU[:, : lm.n_q + 1 - first_user]
    speaker.tell(past_TK, sampling=speaker.checkpoint.sampling, seed=seed)
    at = round((_ASK_AT_S + asked.end_s) / FRAME_S) + 1
    quiet_TU = np.tile(nothing[: lm.n_q + 1 - first_user], (_LISTENS, 1))
    return speaker.branch(at, quiet_TU, [branch])[0]


def _words(checkpoint: Checkpoint, side_TK: Tokens) -> str:
    silent = (checkpoint.lm.text_padding_token_id, checkpoint.lm.end_of_text_padding_id)
    return str(checkpoint.text_tokenizer.decode([int(token) for token in side_TK[:, 0] if token not in silent]))


def _sound(mimi: Any, speaker: Regenerator, side_TK: Tokens) -> Pcm:
    codes_TC = side_TK[:, 1 : 1 + speaker.model_codebooks].astype(np.int64)
    with torch.inference_mode():
        sound: Pcm = mimi.decode(torch.from_numpy(codes_TC.T.copy())[None])[0, 0].numpy()
    return np.pad(sound, _ROUND)


def _hears(recogniser: Recogniser, sound: Pcm, wanted: str) -> bool:
    heard = " ".join(word.text for word in recogniser.hear(sound))
    return bool(wanted) and plain_words(heard) == plain_words(wanted)
