"""A recorded call replayed: the same to the last token, and different when anything is."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile

from online_align.__main__ import main
from online_align.replay import ReplayError, load, replay
from server.engine import SamplingParams
from server.journal import Journal, open_journal
from tests.align.kept_calls import record_call
from tests.engine.stock import sound
from tests.signals.sounds import clip


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal with one call of the embedded model, sampled, as the server writes it."""
    folder = tmp_path_factory.mktemp("data")
    record_call(folder, "call", [1.0, clip("demo_2.opus"), 4.0])
    return folder


@pytest.fixture
def journal(kept: Path) -> Journal:
    return open_journal(kept)


@pytest.mark.mini
def test_nothing_changed_and_so_nothing_differs(journal: Journal) -> None:
    about, columns = journal.reader.session("call"), journal.reader.columns("call")
    again = replay(load("mini"), about, columns)
    assert len(again.tokens_TK) >= len(columns.ticks_T) - 2
    assert (again.first_difference, again.differing) == (None, 0)
    user = slice(1 + about.model_codebooks, None)
    assert np.array_equal(again.tokens_TK[:, user], columns.tokens_TK[: len(again.tokens_TK), user])


@pytest.mark.mini
def test_a_call_with_short_keys_and_values_is_replayed_with_such(tmp_path: Path) -> None:
    """Noise makes the model unsure, so that here or there a token is another for who does not know."""
    checkpoint, drawn = load("mini"), SamplingParams(text_temperature=1.2, audio_temperature=1.2)
    differing = 0
    for seed in (2, 3, 4):
        noise, name = sound(180, 1280, seed=seed).numpy().reshape(-1), f"short{seed}"
        record_call(tmp_path, name, [noise], sampling=drawn, cache_dtype="bf16")
        journal = open_journal(tmp_path)
        about, columns = journal.reader.session(name), journal.reader.columns(name)
        journal.engine.dispose()
        assert about.cache_dtype == "bf16"
        assert replay(checkpoint, about, columns).differing == 0
        differing += replay(checkpoint, msgspec.structs.replace(about, cache_dtype=""), columns).differing
    assert differing > 0


@pytest.mark.mini
def test_other_seeds_differ_and_what_the_caller_said_stays(journal: Journal) -> None:
    """Not every seed: the model is so sure of some answers that it says them alike with one or another."""
    about, columns = journal.reader.session("call"), journal.reader.columns("call")
    checkpoint, user = load("mini"), slice(1 + about.model_codebooks, None)
    others = [replay(checkpoint, msgspec.structs.replace(about, seed=seed), columns) for seed in range(78, 90)]
    assert max(again.differing for again in others) > 5
    for again in others:
        assert (again.first_difference is None) == (again.differing == 0)
        assert np.array_equal(again.tokens_TK[:, user], columns.tokens_TK[: len(again.tokens_TK), user])


@pytest.mark.mini
def test_gaps_are_refused(journal: Journal) -> None:
    about, columns = journal.reader.session("call"), journal.reader.columns("call")
    with pytest.raises(ReplayError, match="has gaps"):
        replay(load("mini"), about, msgspec.structs.replace(columns, ticks_T=columns.ticks_T + 1))


@pytest.mark.mini
def test_the_command_renders_both_sides(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wav, picture = tmp_path / "call.wav", tmp_path / "call.png"
    where = ["journal", "--data-dir", str(kept)]
    assert main([*where, "replay", "--session", "call", "--wav", str(wav), "--timeline", str(picture)]) == 0
    assert "the same to the last token" in capsys.readouterr().out
    pcm, rate = soundfile.read(wav)
    assert (rate, pcm.shape[1]) == (16_000, 2)
    assert np.abs(pcm).max(axis=0).min() > 0.05, "both sides sound"
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert main([*where, "stats"]) == 0
    assert main([*where, "verify"]) == 0
    assert main([*where, "export", "--session", "call", "--out", str(tmp_path / "call.json")]) == 0
    assert main([*where, "replay", "--session", "nobody"]) == 1
    assert "expected one that is in the journal" in capsys.readouterr().err
