"""One frame by upstream's own modules: any device, any model, and every row whether it moves or not.

This is the reference for the faster step and what runs where there is none. The codec and the temporal transformer
stream over frames and are masked per row; the depth transformer streams over the codebooks of one frame and starts
afresh in each.

Upstream's `MimiModel` has one mask for both directions, but a row's encoder runs before its decoder has anything to
say. The two halves share no state, so the mask is set before each half.

Legend: B rows, S samples of a frame, K all codebooks, U user codebooks, Q model audio codebooks (`dep_q`), D width, V
vocabulary.
"""

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any, Final

import torch
from moshi.utils.compile import no_compile
from torch import Tensor

from server.engine.checkpoint import Checkpoint
from server.engine.columns import TokenColumns
from server.engine.frames import LOUDEST, StageSeconds, Stepped
from server.engine.params import SamplingParams
from server.engine.rows import StreamingRows
from server.engine.sampling import RowSampling

__all__ = ["DepthStep", "StreamingCodec", "TemporalStep", "UpstreamStep"]


_for_good: Final = contextlib.ExitStack()


class UpstreamStep:
    """All rows' state in upstream's modules, which it puts in streaming mode: a model belongs to one of these."""

    adapters = None
    """Upstream's own adapters are for all rows at once."""

    def __init__(self, checkpoint: Checkpoint, rows: int, device: torch.device) -> None:
        _never_compile()
        self._device = device
        self._rows = rows
        with torch.inference_mode():
            self._build(checkpoint)

    def _build(self, checkpoint: Checkpoint) -> None:
        lm, mimi, rows, device = checkpoint.lm, checkpoint.mimi, self._rows, self._device
        self._user_codebooks: int = lm.n_q - lm.dep_q
        self._model_codebooks: int = lm.dep_q
        self._codec = StreamingCodec(mimi, rows)
        self._temporal = TemporalStep(lm, rows)
        self._depth = DepthStep(lm)
        self._columns = TokenColumns(
            rows=rows,
            delays=lm.delays,
            dep_q=lm.dep_q,
            text_start=lm.text_initial_token_id,
            audio_start=lm.initial_token_id,
            device=device,
        )
        self._sampling = RowSampling(
            rows=rows,
            text_card=lm.text_linear.out_features,
            dep_q=lm.dep_q,
            card=lm.card,
            padding_ids=(lm.text_padding_token_id, lm.end_of_text_padding_id),
            device=device,
        )

    def open(self, row: int, params: SamplingParams, adapter: int, seed: int) -> None:
        """Start a row from nothing."""
        assert adapter == 0, "the engine has refused others"
        row_B = torch.arange(self._rows) == row
        with torch.inference_mode():
            self._codec.reset(row_B)
            self._temporal.reset(row_B)
            self._columns.reset(row_B)
            self._sampling.set(row, params, seed)

    def use_adapter(self, row: int, adapter: int) -> None:
        """Nothing to do: there is but one."""
        assert adapter == 0, f"row {row}: the engine has refused others"

    def close(self, row: int) -> None:
        """Ask nothing more for a row."""
        with torch.inference_mode():
            self._sampling.clear(row)

    def age(self, row: int, frames: int) -> None:
        """Nothing to do: upstream reads its whole ring from the first frame on."""

    def step(self, pcm_BS: Tensor, moving_B: Tensor) -> Stepped:
        """One frame of every row in `moving_B` (bool, CPU)."""
        torch.set_flush_denormal(True)  # per thread, and denormals make convolutions many times slower
        with torch.inference_mode(), no_compile():
            sound_B = pcm_BS.abs().amax(dim=1) <= LOUDEST  # False for NaN
            heard_BS = pcm_BS.masked_fill(~(moving_B & sound_B)[:, None], 0.0)
            tokens, logprob, spoken, stages = self._step(heard_BS.to(self._device), moving_B)
        # Tensors made in inference mode refuse later writes; their copies are ordinary ones.
        return Stepped(
            tokens.cpu().clone(), logprob.cpu().clone(), spoken.cpu().clone(), (moving_B & ~sound_B).clone(), stages
        )

    def _step(self, pcm_BS: Tensor, moving_B: Tensor) -> tuple[Tensor, Tensor, Tensor, StageSeconds]:
        columns, sampling = self._columns, self._sampling
        began = time.perf_counter()
        user = self._codec.encode(pcm_BS, columns.hears(moving_B))[:, : self._user_codebooks]
        columns.hear(user, moving_B)
        encoded = time.perf_counter()
        sampling.begin_frame(columns.step_B)
        hidden, logits = self._temporal(columns.next_input(moving_B), moving_B)
        text, text_logprob = sampling.pick_text(logits)
        thought = time.perf_counter()
        audio = self._depth(text, hidden, sampling.pick_audio)
        sampling.remember(text, moving_B)
        columns.speak(text, audio, text_logprob, moving_B)
        tokens, logprob, out_B = columns.complete(moving_B)
        voiced = time.perf_counter()
        spoken = self._codec.decode(tokens[:, 1 : 1 + self._model_codebooks], out_B)
        stages = StageSeconds(
            encode=encoded - began,
            temporal=thought - encoded,
            depth=voiced - thought,
            decode=time.perf_counter() - voiced,
        )
        return tokens, logprob, spoken, stages


@functools.cache
def _never_compile() -> None:
    """Enter `no_compile` for good: upstream's flag is one for the process, and whoever leaves first takes it from all.

    Two engines that step in two threads, as when one is warmed up beside another, would now and then compile.
    """
    _for_good.enter_context(no_compile())


class StreamingCodec:
    """Every row's encoder and decoder of one `moshi.models.MimiModel`, which it puts in streaming mode."""

    def __init__(self, mimi: Any, rows: int) -> None:
        self._mimi = mimi
        self._rows = StreamingRows(mimi, rows)

    def reset(self, rows_B: Tensor) -> None:
        """Forget what rows with True in `rows_B` (bool, CPU) heard and said."""
        self._rows.reset(rows_B)

    def encode(self, pcm_BS: Tensor, moving_B: Tensor) -> Tensor:
        """Tokens int64 `[B, codebooks]` of one frame, float32 `[B, S]`; only rows in `moving_B` remember it."""
        self._rows.select(moving_B)
        codes: Tensor = self._mimi.encode(pcm_BS[:, None])
        return codes[..., 0]

    def decode(self, audio_BQ: Tensor, moving_B: Tensor) -> Tensor:
        """Sound float32 `[B, S]` of one frame of tokens; rows not in `moving_B` give zeros and stay as they are."""
        self._rows.select(moving_B)
        pcm: Tensor = self._mimi.decode(audio_BQ.clamp(min=0)[..., None])
        return pcm[:, 0].masked_fill(~moving_B.to(pcm.device)[:, None], 0.0)


class TemporalStep:
    """The temporal transformer of one `moshi.models.LMModel`, which it puts in streaming mode."""

    def __init__(self, lm: Any, rows: int) -> None:
        self._lm = lm
        self._rows = StreamingRows(lm, rows)

    def reset(self, rows_B: Tensor) -> None:
        """Forget the past of rows with True in `rows_B` (bool, CPU)."""
        self._rows.reset(rows_B)

    def __call__(self, tokens_BK1: Tensor, moving_B: Tensor) -> tuple[Tensor, Tensor]:
        """Read one column of tokens. Returns the hidden state `[B, 1, D]` and text logits float32 `[B, V]`."""
        self._rows.select(moving_B)
        hidden_B1D, logits_B11V = self._lm.forward_text(tokens_BK1)
        return hidden_B1D, logits_B11V[:, 0, 0].float()


class DepthStep:
    """The depth transformer of one `moshi.models.LMModel`."""

    def __init__(self, lm: Any) -> None:
        self._lm = lm

    def __call__(self, text_B: Tensor, hidden_B1D: Tensor, pick: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Speak one frame, int64 `[B, Q]`, codebook after codebook.

        `pick(codebook, logits)` gets float32 `[B, V]` and returns int64 `[B]`.
        """
        token_B, said = text_B, []
        # Entered anew each frame: upstream's reset of per-step attention breaks at more than one row.
        with self._lm.depformer.streaming(len(text_B)):
            for codebook in range(self._lm.dep_q):
                logits = self._lm.forward_depformer(codebook, token_B[:, None, None], hidden_B1D)
                token_B = pick(codebook, logits[:, 0, 0].float())
                said.append(token_B)
        return torch.stack(said, dim=1)
