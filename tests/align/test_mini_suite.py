"""The recorded people and the suite that lets them talk to the embedded model."""

import argparse
import importlib
import json

import numpy as np
import pytest
import torch

from online_align.evaluate import command, intervals, mini
from online_align.evaluate.converse import Said, converse
from online_align.evaluate.dictated import dictated_rows, others_answers
from online_align.evaluate.people import FRAME, RATE_HZ, lay, people
from online_align.evaluate.situations import ASK_AT_S, hesitations, interruptions, nobody
from online_align.transcribe import Whisper
from server.engine import Engine
from server.engine.checkpoint import load_checkpoint


def test_there_are_people_of_both_groups_and_every_fault() -> None:
    assert {u.group for u in people()} == {"trained", "heldout"}
    assert {u.fault for u in people()} == {None, "stays_silent", "says_wrong", "talks_on"}
    assert all(u.wrong for u in people() if u.fault == "says_wrong")
    assert not {u.voice for u in people() if u.group == "heldout"} & {u.voice for u in people() if u.group == "trained"}
    assert all(u.group == "heldout" for u in people() if u.wording != "trained")


def test_words_stand_where_the_index_says() -> None:
    """Loud where a word is, quiet between the end of the last one and the next recording."""
    loud, quiet = [], []
    for u in people()[::17]:
        sound = u.sound()
        assert len(sound) == round(u.seconds * RATE_HZ)
        for _, t0, t1 in u.words:
            loud.append(float(np.square(sound[round(t0 * RATE_HZ) : round(t1 * RATE_HZ)]).mean()))
        quiet.append(float(np.square(sound[-160:]).mean()))
    assert np.median(loud) > 100 * np.median(quiet)


def test_a_pause_is_a_pause_and_a_fault_is_after_its_words() -> None:
    for found in hesitations("trained", 6, pause_s=1.0, faulty=True):
        first = round((found.moment_s + 0.1) * RATE_HZ)
        assert found.sound.reshape(-1)[first : first + RATE_HZ // 2].std() < 0.01
        assert found.faulty
        assert found.moment_s < found.end_s
    assert all(i.moment_s < i.end_s for i in interruptions("heldout", 4, faulty=False))
    assert len(nobody(2)) == 2


def test_wilson_is_what_the_book_says() -> None:
    """Brown, Cai and DasGupta 2001: 0 of 10 gives 0 to 0.278; 5 of 10 gives 0.237 to 0.763."""
    assert intervals.wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
    assert intervals.wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    assert intervals.wilson(0, 0) == (0.0, 1.0)


def test_counts_know_right_wrong_and_silent() -> None:
    silent = Said(tokens_T=np.zeros(1, int), pcm=np.zeros(FRAME, np.float32), spoken_T=np.zeros(0, int), words="")
    asked = next(u for u in people() if u.fault == "stays_silent")
    wrong = next(u for u in people() if u.fault == "says_wrong")
    assert mini.Answer(asked=asked, said=silent).misbehaved
    assert not mini.Answer(asked=wrong, said=silent).misbehaved
    assert not mini.Answer(asked=asked, said=silent).right


@pytest.mark.mini
def test_some_questions_are_answered_in_words_and_in_time() -> None:
    """With nobody's voice in the room the same calls bring no answer, so the answers are to the questions."""
    engine = Engine.load("mini", slots=6, device="cpu")
    asked = [u for u in people() if u.category == "capitals" and u.group == "trained" and u.fault is None][:6]
    answers = mini.ask(engine, asked)
    assert sum(a.right for a in answers) >= 3
    assert all(-0.5 < a.gap_s < 2.0 for a in answers if a.right and a.gap_s is not None)
    quiet = [lay([], ASK_AT_S + u.seconds + 4.0, np.random.default_rng(2)) for u in asked]
    assert not any(said.words for said in converse(engine, quiet))


@pytest.mark.mini
@pytest.mark.slow
@pytest.mark.timeout(590)
def test_the_command_prints_one_object_with_every_group(capsys: pytest.CaptureFixture[str]) -> None:
    code = command.run(["--suite", "mini", "--json", "--situations", "2", "--recognise", "0", "--every", "12"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = {row["name"] for row in report["rows"]}
    assert report["benchmark"] == "evaluate mini"
    assert {
        "right_trained_voices",
        "right_heldout_voices_and_wordings",
        "misbehaves_takes_pause_trained_voices",
    } <= names
    assert "95 % interval" in next(row["remark"] for row in report["rows"] if row["name"] == "right_trained_voices")
    assert code == int(any(row["met"] is False for row in report["rows"]))


def test_dictated_answers_are_another_questions() -> None:
    pairs = others_answers(people(), 20)
    assert len(pairs) == 20
    assert len({asked.category for asked, _ in pairs}) > 3
    for asked, words in pairs:
        assert words != asked.expected
        assert words in {u.expected for u in people() if u.category == asked.category}


@pytest.mark.mini
@pytest.mark.slow
def test_what_the_model_says_by_itself_is_heard() -> None:
    """Given words are heard less often: no share is asked of them, but that both were tried."""
    checkpoint = load_checkpoint("mini", device=torch.device("cpu"), dtype=torch.float32)
    own, given = dictated_rows(checkpoint, people(), 6, Whisper())
    assert (own.name, given.name) == ("own_words_heard", "dictated_words_heard")
    assert own.value is not None
    assert own.value >= 0.5
    assert own.remark.startswith(f"{round(6 * own.value)} of 6")
    assert " of 6," in given.remark


def test_help_needs_no_suite_and_names_that_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    for asked, told in (["--help"], "{mini,outside,rollbacks,signals}"), (["--suite", "signals", "--help"], "--rounds"):
        with pytest.raises(SystemExit, match=r"^0$"):
            command.run(asked)
        assert told in capsys.readouterr().out
    for wrong in ([], ["--suite"], ["--suite", "none"]):
        with pytest.raises(SystemExit, match=r"^2$"):
            command.run(wrong)
        assert "--suite" in capsys.readouterr().err


def test_every_suite_has_its_settings() -> None:
    for name in command.SUITES.values():
        parser = argparse.ArgumentParser()
        importlib.import_module(name).add_arguments(parser)
