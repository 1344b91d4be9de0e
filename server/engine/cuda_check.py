"""Whether the kernels compute what upstream computes, on the GPU and the model at hand, before anybody depends on it.

A few frames are spoken by the step as it will serve: the forms of the kernels that this model needs, the recorded
graph, all rows' memory. Beside it upstream's modules read the same columns, in the same types, and are told the tokens
that the kernels chose. Rounding differs, so tokens are not compared one by one: a token that the kernels took to be
the likeliest must be nearly that for upstream, and its log-probability must be nearly upstream's. A kernel that is
wrong misses by several standard deviations of the logits; what is allowed is far below, and above what rounding does.

Legend: B rows, K all codebooks, V vocabulary, C latent width, T latent positions of a frame.
"""

from typing import Any, Final

import torch
from moshi.utils.compile import no_compile, no_cuda_graph
from torch import Tensor

from server.engine.checkpoint import Checkpoint
from server.engine.cuda import KernelStep
from server.engine.cuda_codec import CodecTransformer, Half, KernelCodec
from server.engine.cuda_graph import on_device
from server.engine.params import SamplingParams
from server.engine.upstream import DepthStep

__all__ = ["ALLOWED", "disagreement"]

ALLOWED: Final = {torch.float32: 0.02, torch.bfloat16: 0.3, torch.float16: 0.3, torch.int8: 0.6}
"""In standard deviations of the logits, by the coarsest type that is in play. Rounding to bfloat16 through 32 layers
is a few hundredths in each logit, so twice a few of them between two of tens of thousands."""
_CODEC_ALLOWED: Final = 0.01
"""Root of the mean squared difference against that of the output; both are float32."""
_FRAMES: Final = 4
_SEED: Final = 0


def disagreement(step: KernelStep, checkpoint: Checkpoint) -> str:
    """Where `step`, in which nobody talks yet, disagrees with upstream's modules of the same model; empty if nowhere.

    Afterwards `step` is as it was, but for what lies in slots that nobody reads.
    """
    device = checkpoint.lm.text_linear.weight.device
    with torch.inference_mode(), no_compile(), no_cuda_graph(), on_device(device):
        return _of_language(step, checkpoint.lm) or _of_codec(step, checkpoint.mimi)


def _of_language(step: KernelStep, lm: Any) -> str:
    language, sampling = step.language, step.sampling
    rows = len(language.moving_B)
    speaking = sorted({0, rows - 1})
    allowed = max(ALLOWED[lm.text_linear.weight.dtype], ALLOWED[language.kept])
    for row in speaking:
        step.open(row, SamplingParams(use_sampling=False), 0, _SEED)
    language.moving_B.zero_()[speaking] = True
    said_before = sampling.token_BK.clone()
    problem = ""
    with lm.streaming(1):
        for frame in range(_FRAMES):
            column_K = _column(lm, frame)
            language.column_BK.copy_(column_K)
            step.think()
            said_K = sampling.token_BK[0]
            missed = _missed(lm, column_K, said_K, sampling.logprob_B[0])
            if not missed <= allowed:  # NaN is not, either
                problem = f"frame {frame}: a token is {missed:.2g} deviations off, {allowed} allowed"
            elif not torch.equal(sampling.token_BK[speaking[-1]], said_K):
                problem = f"frame {frame}: two rows with the same past say different tokens"
            if problem:
                break
    still = [row for row in range(rows) if row not in speaking]
    if not torch.equal(sampling.token_BK[still], said_before[still]) or language.offset_B[still].any():
        problem = problem or "a row that stands still was written"
    language.moving_B.zero_()
    language.offset_B.zero_()
    return problem and f"the language model's kernels disagree with upstream ({problem})"


def _column(lm: Any, frame: int) -> Tensor:
    """What a frame reads, int64 `[K]`: start tokens first, then any."""
    if frame == 0:
        return torch.tensor([lm.text_initial_token_id] + [lm.initial_token_id] * lm.n_q)
    generator = torch.Generator().manual_seed(frame)
    text = torch.randint(0, lm.text_linear.out_features, (1,), generator=generator)
    return torch.cat([text, torch.randint(0, lm.card, (lm.n_q,), generator=generator)])


def _missed(lm: Any, column_K: Tensor, said_K: Tensor, logprob: Tensor) -> float:
    """How far the chosen tokens are from upstream's likeliest, the worst of all, in deviations of the logits."""
    device = said_K.device
    hidden, logits = lm.forward_text(column_K.to(device)[None, :, None])
    text = logits[0, 0, 0].float()
    ours = torch.log_softmax(text, dim=-1)[said_K[0]]
    gaps = [_gap(text, said_K[0]), (ours - logprob).abs() / text.std()]

    def pick(codebook: int, logits_BV: Tensor) -> Tensor:
        gaps.append(_gap(logits_BV[0], said_K[1 + codebook]))
        return said_K[1 + codebook, None]

    DepthStep(lm)(said_K[:1], hidden, pick)
    return float(torch.stack(gaps).max())


def _gap(logits_V: Tensor, token: Tensor) -> Tensor:
    return (logits_V.max() - logits_V[token]) / logits_V.std()


def _of_codec(step: KernelStep, mimi: Any) -> str:
    for name, half in step.codec.halves.items():
        missed = _transformer_missed(half.transformer, half.module, int(mimi.dimension))
        if not missed <= _CODEC_ALLOWED:
            return f"the codec's kernels disagree with upstream ({name}: off by {missed:.2g}, {_CODEC_ALLOWED} allowed)"
        missed = _recording_missed(step.codec, half)
        if not missed <= _CODEC_ALLOWED:
            return f"the codec's recording is not what was recorded ({name}: off by {missed:.2g})"
    return ""


def _recording_missed(codec: KernelCodec, half: Half) -> float:
    """The difference of a few frames' output, replayed against done, as a share of it."""
    moving_B = half.transformer.moving_B
    everyone = torch.ones_like(moving_B)
    x = 0.1 * torch.randn(_FRAMES, *half.given.shape[1:], generator=torch.Generator().manual_seed(_SEED))
    made: list[list[Tensor]] = [[], []]
    for work, into in zip((half.replay, half.once), made, strict=True):
        codec.reset(everyone)
        moving_B.fill_(True)
        for each in x.to(half.given.device):
            half.given.copy_(each.expand_as(half.given))
            half.made.fill_(torch.nan)
            work()
            into.append(half.made.clone())
    codec.reset(everyone)
    moving_B.zero_()
    return _share(torch.stack(made[0]), torch.stack(made[1]))


def _transformer_missed(ours: CodecTransformer, module: Any, width: int) -> float:
    """The difference of a few frames' output against upstream's, as a share of it."""
    moving_B = ours.moving_B
    x = torch.randn(_FRAMES, width, ours.times, generator=torch.Generator().manual_seed(_SEED)).to(moving_B.device)
    moving_B.fill_(True)
    got, want = [], []
    with module.streaming(1):
        for x_CT in x:
            got.append(ours.step(x_CT.expand(len(moving_B), -1, -1)))
            want.extend(module(x_CT[None]))
    ours.reset(moving_B)
    moving_B.zero_()
    return _share(torch.stack(got), torch.stack(want))


def _share(got: Tensor, want: Tensor) -> float:
    return float(((got - want).square().mean() / want.square().mean()).sqrt())
