"""What the engine's package shows to the rest of the server."""

import inspect

import msgspec

import server.engine
from server.engine import Engine, FrameOutput


def test_exports() -> None:
    assert server.engine.__all__ == ["Engine", "FrameOutput", "SamplingParams", "StageSeconds", "model_name"]


def test_members() -> None:
    public = {name for name, _ in inspect.getmembers(Engine) if not name.startswith("_")}
    assert public == {
        "load",
        "open",
        "close",
        "step",
        "warm_up",
        "measure_step",
        "load_adapter",
        "adapter_layers",
        "adapter_places",
        "drop_adapter",
        "use_adapter",
        "adapters",
        "base_sha256",
        "work",
        "fallback",
        "cache_dtype",
        "checkpoint",
        "device",
        "recommended_sampling",
        "slots",
        "open_slots",
        "sample_rate",
        "frame_size",
        "frame_rate",
        "delay_frames",
        "context_frames",
        "model_codebooks",
        "user_codebooks",
        "text_padding_id",
        "end_of_text_padding_id",
        "text_tokenizer",
    }
    assert [field.name for field in msgspec.structs.fields(FrameOutput)] == [
        "pcm",
        "text",
        "tokens",
        "logprob",
        "damaged",
        "stages",
    ]
