"""Find, check and load a checkpoint folder in the `moshi` package's layout.

This file owns everything that can be wrong with files; what it returns is a model that the engine can step.
Weights are read from safetensors only: the package's other path unpickles, and a pickle runs code.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import torch
from moshi.models import loaders

from server.engine.params import SamplingParams
from server.errors import CheckpointError, SamplingError

__all__ = ["MINI", "Checkpoint", "load_checkpoint", "model_name"]

MINI = Path(__file__).parent.parent / "checkpoints" / "mini"
"""The embedded model's folder."""

_HUB_PREFIX = "hf:"
_SAFE_SUFFIXES = (".safetensors", ".sft", ".sfts")
_WEIGHT_KEYS = ("moshi_name", "mimi_name")
_DEFAULT_NAMES = {
    "moshi_name": loaders.MOSHI_NAME,
    "mimi_name": loaders.MIMI_NAME,
    "tokenizer_name": loaders.TEXT_TOKENIZER_NAME,
}
_SAMPLING_NAMES = {
    "use_sampling": "use_sampling",
    "temp_text": "text_temperature",
    "top_k_text": "text_topk",
    "temp": "audio_temperature",
    "top_k": "audio_topk",
}
_UPSTREAM_FAILURES = (
    AssertionError,
    AttributeError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    safetensors.SafetensorError,
)
"""What upstream's constructors raise on a bad config or bad weights: it has no errors of its own."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A loaded model: upstream's `LMModel`, `MimiModel` and sentencepiece tokenizer, and where they came from.

    `sampling` is what the checkpoint's `lm_gen_config` recommends.
    """

    name: str
    """As it was asked for: `model_name` makes of it what is written down."""
    lm_path: Path
    """The language model's weights."""
    lm: Any
    mimi: Any
    text_tokenizer: Any
    sampling: SamplingParams


def model_name(checkpoint: str) -> str:
    """What is written down, and what anybody may know, of a checkpoint that an operator named: not where it is kept."""
    return checkpoint if checkpoint.startswith(_HUB_PREFIX) else Path(checkpoint).absolute().name


def load_checkpoint(source: str | Path, *, device: torch.device, dtype: torch.dtype) -> Checkpoint:
    """Load "mini", "hf:owner/name" or a folder onto `device`; the language model in `dtype`, the codec in float32.

    Raises `CheckpointError` when a file is missing, unsafe or does not fit the configuration, and when the
    model is not a two-sided dialogue model.
    """
    info = _hub_info(str(source)) if str(source).startswith(_HUB_PREFIX) else _folder_info(_folder(source))
    _check_weights(info.moshi_weights)
    _check_weights(info.mimi_weights)
    _check_plain(info)
    checkpoint = Checkpoint(
        name=str(source),
        lm_path=Path(info.moshi_weights),
        lm=_build(info.moshi_weights, "language model", lambda: info.get_moshi(device=device, dtype=dtype)),
        mimi=_build(info.mimi_weights, "codec", lambda: info.get_mimi(device=device)),
        text_tokenizer=_build(info.tokenizer, "tokenizer", info.get_text_tokenizer),
        sampling=_recommended(source, info.lm_gen_config),
    )
    _check_fit(checkpoint)
    return checkpoint


def _folder(source: str | Path) -> Path:
    folder = MINI if str(source) == "mini" else Path(source)
    if not folder.is_dir():
        raise CheckpointError(
            folder,
            got="no folder",
            expected="a folder with config.json, two weight files and a tokenizer",
            remedy='name such a folder, "mini" for the embedded model, or "hf:owner/name" for the Hugging Face hub',
        )
    return folder


def _folder_info(folder: Path) -> Any:
    """Upstream's `CheckpointInfo` with every path local, so that nothing is looked up on the network."""
    config = _read_config(_existing(folder, "config.json"))
    names = _DEFAULT_NAMES | {key: config[key] for key in (*_DEFAULT_NAMES, "mimi_config_name") if config.get(key)}
    paths = {key: _existing(folder, name) for key, name in names.items()}
    return loaders.CheckpointInfo.from_hf_repo(
        str(folder),
        moshi_weights=paths["moshi_name"],
        mimi_weights=paths["mimi_name"],
        tokenizer=paths["tokenizer_name"],
        config_path=folder / "config.json",
        mimi_config_path=paths.get("mimi_config_name"),
    )


def _hub_info(source: str) -> Any:
    repository = source.removeprefix(_HUB_PREFIX)
    return _build(repository, "repository", lambda: loaders.CheckpointInfo.from_hf_repo(repository))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise _unreadable(path, f"text that is not JSON ({error})", "a JSON object") from error
    if not isinstance(config, dict):
        raise _unreadable(path, f"a JSON {type(config).__name__}", "a JSON object")
    return config


def _existing(folder: Path, name: object) -> Path:
    if not isinstance(name, str) or Path(name).name != name:
        raise _unreadable(folder / "config.json", f"the file name {name!r}", "a plain file name without folders")
    path = folder / name
    if not path.is_file():
        raise CheckpointError(
            folder, got=f"no file {name}", expected="every file that config.json names", remedy="copy it there"
        )
    return path


def _check_weights(path: Path) -> None:
    if path.suffix not in _SAFE_SUFFIXES:
        raise CheckpointError(
            path,
            got=f"weights of type {path.suffix or 'unknown'}",
            expected="safetensors, because unpickling weights runs code from the file",
            remedy="convert them with safetensors.torch.save_file on a machine that trusts them",
        )


def _check_plain(info: Any) -> None:
    """Refuse what the engine cannot step: conditioned, quantised or adapter-only checkpoints."""
    config = info.lm_config or {}
    for key in ("fuser", "conditioners", "quantize", "lora"):
        if config.get(key):
            raise CheckpointError(
                info.moshi_weights,
                got=f"a model with {key!r} in its configuration",
                expected="a plain dialogue model in bf16, fp16 or fp32",
                remedy="use the model's plain variant",
            )


def _recommended(source: str | Path, lm_gen_config: dict[str, Any]) -> SamplingParams:
    """The checkpoint's own sampling, in upstream's names for `LMGen`; what it does not name keeps our default."""
    known = {ours: lm_gen_config[theirs] for theirs, ours in _SAMPLING_NAMES.items() if theirs in lm_gen_config}
    try:
        return SamplingParams(**known)
    except SamplingError as error:
        raise CheckpointError(
            source, got=f"lm_gen_config with {error.got}", expected=error.expected, remedy="correct config.json"
        ) from error


def _build(path: Path | str, part: str, make: Any) -> Any:
    try:
        return make()
    except _UPSTREAM_FAILURES as error:
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(
            path,
            got=f"a {part} that does not load ({type(error).__name__}: {reason})",
            expected="files that match config.json",
            remedy="compare the file with its configuration, or fetch the checkpoint again",
        ) from error


def _check_fit(checkpoint: Checkpoint) -> None:
    """The three parts must speak of the same tokens, and both sides of a dialogue must be there."""
    lm, mimi = checkpoint.lm, checkpoint.mimi
    user_codebooks = lm.n_q - lm.dep_q
    pieces = checkpoint.text_tokenizer.get_piece_size()
    rules = (
        (lm.dep_q > 0 and user_codebooks > 0, f"{lm.dep_q} model and {user_codebooks} user codebooks", "both above 0"),
        (max(lm.delays) > 0, f"delays {lm.delays}", "at least one codebook delayed by a frame"),
        (lm.context is not None, "no context", "a context in frames"),
        (mimi.cardinality == lm.card, f"codebooks of {mimi.cardinality} and a model of {lm.card}", "the same number"),
        (pieces <= lm.text_card, f"{pieces} text pieces for {lm.text_card} text tokens", "no more pieces than tokens"),
        (mimi.channels == 1, f"{mimi.channels} channels", "one"),
        (
            mimi.frame_size * mimi.frame_rate == mimi.sample_rate,
            f"{mimi.frame_rate} frames of {mimi.sample_rate} samples",
            "frames of whole samples",
        ),
    )
    for holds, got, expected in rules:
        if not holds:
            raise CheckpointError(
                checkpoint.name, got=got, expected=expected, remedy="use parts that were made for each other"
            )


def _unreadable(path: Path, got: str, expected: str) -> CheckpointError:
    return CheckpointError(path, got=got, expected=expected, remedy="correct the file or fetch the checkpoint again")
