"""The embedded model keeps to the design's budgets, counted on the modules themselves."""

import torch

from recipes.mini import codec, lm


def test_codec_is_small_and_cheap() -> None:
    """At most 4 M parameters and 100 M multiply-adds per second of sound, both ways."""
    mimi = codec.build()
    assert sum(p.numel() for p in mimi.parameters()) <= 4_000_000
    counted = codec.count_macs(mimi)
    seconds = 8
    with torch.no_grad():
        mimi.decode(mimi.encode(torch.randn(1, 1, seconds * codec.SAMPLE_RATE)))
    assert 10_000_000 < sum(macs for _, macs in counted) / seconds <= 100_000_000


def test_language_model_is_small_and_cheap() -> None:
    """At most 10 M parameters, 10 M multiply-adds a frame (with a full cache), a context of a minute or more."""
    model = lm.build()
    assert sum(p.numel() for p in model.parameters()) <= 10_000_000
    assert lm.CONFIG["context"] >= 60 * 12.5
    # Every matrix that is not a table of embeddings is multiplied with once a frame: depth weights differ by step.
    matrices = {n: p for n, p in model.named_parameters() if p.dim() == 2 and "emb" not in n}
    assert any(name.startswith("depformer.") for name in matrices)
    attention = 2 * lm.CONFIG["context"] * lm.CONFIG["dim"] * lm.CONFIG["num_layers"]
    assert sum(p.numel() for p in matrices.values()) + attention <= 10_000_000


def test_training_forward_is_upstreams() -> None:
    """`teacher` on uncorrupted codes gives the logits of `LMModel.forward`, wherever those are valid."""
    torch.manual_seed(0)
    model = lm.build().eval()
    codes = torch.randint(0, 500, (2, 1 + lm.CONFIG["n_q"], 12))
    frames = torch.arange(24)
    with torch.no_grad():
        ours = lm.teacher(model, codes, codes, frames)
        theirs = model(codes)
    torch.testing.assert_close(ours.text_BTV[:, :], theirs.text_logits[:, 0], atol=1e-4, rtol=1e-4)
    semantic = ours.audio_NKV[:, 0].view(2, 12, -1)
    torch.testing.assert_close(semantic, theirs.logits[:, 0], atol=1e-4, rtol=1e-4)
    acoustic = ours.audio_NKV[:, 1].view(2, 12, -1)  # one frame late, as trained
    torch.testing.assert_close(acoustic[:, 1:], theirs.logits[:, 1, :-1], atol=1e-4, rtol=1e-4)
    assert torch.equal(ours.audio_target_NK[:, 0].view(2, 12), codes[:, 1])
    assert torch.equal(ours.audio_target_NK[:, 1].view(2, 12)[:, 1:], codes[:, 2, :-1])
