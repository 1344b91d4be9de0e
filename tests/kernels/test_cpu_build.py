"""Compiling: what is kept, what is compiled again, and what is said where it cannot be done."""

import ctypes
import os
import platform
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kernels.cpu import BuildError, build, load_library, machine
from server.engine import Engine
from tests.engine.calls import converse
from tests.engine.stock import sound
from tests.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a process that has loaded nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_library.cache_clear()
    yield tmp_path / "duologue"
    load_library.cache_clear()


def test_the_second_start_does_not_compile(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_library()
    (made,) = cache.iterdir()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    load_library.cache_clear()
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled again"))
    load_library()
    assert list(cache.iterdir()) == [made]


def test_other_sources_are_another_library(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_library()
    load_library.cache_clear()
    monkeypatch.setattr(build, "_FLAGS", (*build._FLAGS, "-DANYTHING"))
    load_library()
    assert len(list(cache.iterdir())) == 2


def test_no_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    with pytest.raises(BuildError, match=r"no C compiler: looked for .*no-such-compiler; install gcc"):
        load_library()
    assert not cache.exists() or not list(cache.iterdir())


def test_a_compiler_that_refuses(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "cc"
    script.write_text("#!/bin/sh\necho 'no room on this disk' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    with pytest.raises(BuildError, match="no room on this disk"):
        load_library()
    assert not list(cache.iterdir()), "half a library must not be found by the next start"


def test_a_library_that_does_not_load(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_library()
    (made,) = cache.iterdir()
    broken = tmp_path / "other" / "duologue" / made.name
    broken.parent.mkdir(mode=0o700, parents=True)
    broken.write_bytes(b"not a library")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    load_library.cache_clear()
    with pytest.raises(BuildError, match="remove it"):
        load_library()


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_a_cache_that_others_can_write_is_not_trusted(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    load_library()
    assert not list(cache.iterdir())
    assert "others can write it" in caplog.text


def test_without_a_compiler_the_engine_takes_upstreams_modules(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert not cache.exists()
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    monkeypatch.setenv("CC", "no-such-compiler")
    engine = Engine.load(folder, slots=1, device="cpu")
    assert engine.work == "upstream"
    assert "several times slower" in caplog.text
    assert len(converse(engine, 0, sound(3, engine.frame_size, seed=1)).tokens) == 3


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names of this family's processors")
@pytest.mark.parametrize("processor", ["-march=x86-64", "-march=x86-64-v3"])
def test_any_processor_says_the_same(tmp_path: Path, processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of four, eight and sixteen: other registers and other tiles, the same tokens."""
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    pcm = sound(30, 1280, seed=3)
    here = converse(Engine.load(folder, slots=1, device="cpu", work="native"), 0, pcm)
    path = tmp_path / "frame.so"
    monkeypatch.setattr(build, "_NATIVE", processor)
    build._compile(build._compiler(), path)
    library = ctypes.CDLL(str(path))
    library.frame_step.argtypes = load_library().frame_step.argtypes
    library.frame_step.restype = None
    monkeypatch.setattr(machine, "load_library", lambda: library)
    there = converse(Engine.load(folder, slots=1, device="cpu", work="native"), 0, pcm)
    assert there.tokens.tolist() == here.tokens.tolist()
    torch.testing.assert_close(there.pcm, here.pcm, atol=1e-4, rtol=1e-3)
