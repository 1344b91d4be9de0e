"""Write a complete checkpoint folder with random weights, in the `moshi` package's own layout.

Tests need every part of a real checkpoint (configs, two weight files, a tokenizer) and none of its quality.
The widths are a few dozen, so that a frame takes milliseconds; the layout (delays, per-step depth weights,
16-bit storage, 80 ms frames) is that of the embedded model. Every call with the same arguments writes the
same weights.
"""

import io
import json
from math import prod
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from moshi.models import LMModel, MimiModel, loaders
from moshi.utils.compile import no_compile
from safetensors.torch import save_file

FRAME_RATE_HZ = 12.5
CODEBOOKS = 4
CARD = 32
SEANET_RATIOS = {8000: [8, 5, 4, 2], 16000: [10, 8, 4, 2], 24000: [8, 6, 5, 4]}

SENTENCES = (
    "hello there, what is two plus three?",
    "the capital of france is paris",
    "the moon goes round the earth and the earth goes round the sun",
    "good morning, how can i help you today",
    "i do not know that",
)

__all__ = ["write_tiny_checkpoint"]


def write_tiny_checkpoint(
    folder: Path, *, seed: int = 0, sample_rate: int = 16000, lm_overrides: dict[str, Any] | None = None
) -> Path:
    """Write `config.json`, `mimi_config.json`, both weight files and `tokenizer.model` into `folder`.

    `sample_rate` (Hz) is one of `SEANET_RATIOS`; a frame is 80 ms of it. `lm_overrides` replaces keys of
    `config.json`, for example `{"context": 8}`. The language model is stored as bf16, the codec as fp16.
    Returns `folder`, which is created when it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text_card = _write_tokenizer(folder / "tokenizer.model")
    mimi_config = _mimi_config(sample_rate)
    lm_config = _lm_config(text_card) | (lm_overrides or {})
    with torch.random.fork_rng(devices=[]), torch.no_grad(), no_compile():
        torch.manual_seed(seed)
        mimi = loaders.get_mimi(None, mimi_config, num_codebooks=CODEBOOKS)
        _drop_biases(mimi)
        _fit_codebooks(mimi)
        _level_output(mimi)
        save_file(_contiguous(mimi.state_dict(), torch.float16), folder / "mimi.safetensors")
        lm = loaders.get_moshi_lm(None, lm_config, dtype=torch.float32)
        _make_lively(lm)
        save_file(_contiguous(lm.state_dict(), torch.bfloat16), folder / "model.safetensors")
    names = {
        "model_type": "moshi",
        "moshi_name": "model.safetensors",
        "mimi_name": "mimi.safetensors",
        "mimi_config_name": "mimi_config.json",
        "tokenizer_name": "tokenizer.model",
        "lm_gen_config": {"temp": 0.8, "temp_text": 0.7, "top_k": 250, "top_k_text": 25},
    }
    (folder / "config.json").write_text(json.dumps(lm_config | names, indent=1))
    (folder / "mimi_config.json").write_text(json.dumps(mimi_config, indent=1))
    return folder


def _lm_config(text_card: int) -> dict[str, Any]:
    one_side = [0] + [1] * (CODEBOOKS - 1)
    return {
        "dim": 48,
        "text_card": text_card,
        "existing_text_padding_id": 3,
        "existing_text_end_padding_id": 0,
        "n_q": 2 * CODEBOOKS,
        "dep_q": CODEBOOKS,
        "card": CARD,
        "num_heads": 4,
        "num_layers": 2,
        "hidden_scale": 4.125,
        "causal": True,
        "layer_scale": None,
        "context": 24,
        "max_period": 10000,
        "gating": "silu",
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "depformer_dim": 32,
        "depformer_dim_feedforward": 96,
        "depformer_num_heads": 2,
        "depformer_num_layers": 1,
        "depformer_layer_scale": None,
        "depformer_multi_linear": True,
        "depformer_context": CODEBOOKS,
        "depformer_max_period": 10000,
        "depformer_gating": "silu",
        "depformer_pos_emb": "none",
        "depformer_weights_per_step": True,
        "delays": [0, *one_side, *one_side],
    }


def _mimi_config(sample_rate: int) -> dict[str, Any]:
    ratios = SEANET_RATIOS[sample_rate]
    assert sample_rate == prod(ratios) * 2 * FRAME_RATE_HZ, "the codec halves SEANet's frame rate"
    width = 32
    return {
        "sample_rate": sample_rate,
        "channels": 1,
        "frame_rate": FRAME_RATE_HZ,
        "seanet": {
            "channels": 1,
            "dimension": width,
            "causal": True,
            "n_filters": 2,
            "n_residual_layers": 1,
            "activation": "ELU",
            "compress": 2,
            "dilation_base": 2,
            "disable_norm_outer_blocks": 0,
            "kernel_size": 7,
            "residual_kernel_size": 3,
            "last_kernel_size": 3,
            "norm": "none",
            "pad_mode": "constant",
            "ratios": ratios,
            "true_skip": True,
        },
        "quantizer": {
            "dimension": 16,
            "n_q": CODEBOOKS,
            "bins": CARD,
            "input_dimension": width,
            "output_dimension": width,
        },
        "transformer": {
            "d_model": width,
            "num_heads": 2,
            "num_layers": 1,
            "causal": True,
            "layer_scale": 0.1,
            "context": 16,
            "conv_layout": True,
            "max_period": 10000,
            "gating": "none",
            "norm": "layer_norm",
            "positional_embedding": "rope",
            "dim_feedforward": 64,
            "input_dimension": width,
            "output_dimensions": [width],
        },
    }


def _write_tokenizer(path: Path) -> int:
    """Train a small sentencepiece model in memory, write it, and return the size of its vocabulary."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        vocab_size=44,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return int(sentencepiece.SentencePieceProcessor(str(path)).get_piece_size())


def _make_lively(lm: LMModel) -> None:
    """Scale weights up: at the default scale a random model repeats one token whatever it hears."""
    for name, parameter in lm.named_parameters():
        if name.startswith(("emb.", "text_emb.", "depformer_emb.", "depformer_text_emb.")):
            parameter.mul_(4.0)
        elif name.startswith(("text_linear.", "linears.", "depformer_in.")):
            parameter.mul_(3.0)


def _drop_biases(mimi: MimiModel) -> None:
    """Set convolution biases to zero: at random they drown what the signal says."""
    for name, parameter in mimi.named_parameters():
        if name.endswith(("conv.bias", "convtr.bias")):
            parameter.zero_()


def _level_output(mimi: MimiModel) -> None:
    """Scale the decoder's last layer, so that random codes decode to sound of about 0.1 RMS."""
    last = mimi.decoder.model[-1].conv.conv
    codes = torch.randint(0, CARD, (1, CODEBOOKS, 50))
    last.weight.mul_(0.1 / mimi.decode(codes).square().mean().sqrt())


def _fit_codebooks(mimi: MimiModel) -> None:
    """Use latents of noise as centroids, so that different sounds get different tokens."""
    seconds = 8
    length = mimi.sample_rate * seconds
    loudness = torch.rand(length // mimi.frame_size).repeat_interleave(mimi.frame_size)
    sound = torch.randn(1, 1, length) * loudness * 0.3
    latent = mimi.encode_to_latent(sound, quantize=False)
    for branch in (mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest):
        residual = branch.input_proj(latent)
        for layer in branch.vq.layers:
            vectors = residual[0].T
            codebook = layer._codebook
            codebook.embedding_sum.copy_(vectors[torch.randperm(len(vectors))[: codebook.codebook_size]])
            codebook.cluster_usage.fill_(1.0)
            codebook._initialized.fill_(1.0)
            codebook._embedding = None
            residual = residual - layer.decode(layer.encode(residual))


def _contiguous(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to(dtype).contiguous() for name, tensor in state.items()}
