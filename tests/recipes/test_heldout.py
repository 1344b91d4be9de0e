"""What the embedded model is tested on, it was never trained on."""

import json
from pathlib import Path

from recipes.mini import script, voices, wordings

RECIPE = Path(wordings.__file__).parent
SPEECH = Path(__file__).parents[1] / "assets" / "speech"


def _manifest() -> dict[str, list[str]]:
    manifest: dict[str, list[str]] = json.loads((RECIPE / "manifest.json").read_text())
    return manifest


def test_no_heldout_or_reserved_voice_is_in_the_training_manifest() -> None:
    """Voices that evaluation uses, and those nobody may use, are absent."""
    voices = wordings.heldout()["voices"]
    barred = set(voices["heldout"]) | set(voices["reserved"])
    trained = set(_manifest())
    assert len(trained) >= 5
    assert not trained & barred
    assert set(wordings.domain()["voices"]["heldout"]) <= barred
    assert set(wordings.domain()["voices"]["reserved"]) <= barred


def test_no_heldout_wording_is_in_the_training_manifest() -> None:
    """No training voice ever spoke a held-out wording."""
    unheard = {q.text.lower() for q in wordings.questions(heldout_wordings=True)}
    assert len(unheard) > 100
    for voice, texts in _manifest().items():
        assert not unheard & {t.lower() for t in texts}, voice


def test_no_heldout_item_is_in_the_training_manifest() -> None:
    """No training voice, the model's own included, ever said one of these sums."""
    unheard = wordings.questions(heldout_items=True)
    said = {text.lower() for texts in _manifest().values() for text in texts}
    assert len({q.reply for q in unheard}) == len(wordings.heldout()["items"]["sums"])
    assert not said & {text.lower() for q in unheard for text in (q.text, q.reply)}


def test_what_the_bank_is_filled_with_holds_nothing_back() -> None:
    """The scripts of training voices, from which a bank is spoken, have none of it either."""
    barred = {q.text for q in wordings.questions(heldout_wordings=True)}
    barred |= {t for q in wordings.questions(heldout_items=True) for t in (q.text, q.reply)}
    listed = wordings.heldout()["voices"]
    assert not set(voices.USERS) & {*listed["heldout"], *listed["reserved"], *listed["same_speakers"]}
    assert tuple(listed["heldout"]) == voices.HELDOUT
    for voice in (voices.MODEL_VOICE, *voices.USERS):
        assert not barred & set(script.allowed(voice)), voice
        assert not barred & {line["text"] for line in script.lines(voice)}, voice


def test_training_wordings_do_not_contain_a_heldout_template() -> None:
    """The two lists of templates are disjoint, item by item."""
    trained = {q.text.lower() for q in wordings.questions()}
    unheard = {q.text.lower() for q in wordings.questions(heldout_wordings=True)}
    assert not trained & unheard


def test_heldout_wordings_expect_answers_that_training_has() -> None:
    """A new wording asks for a known answer: otherwise it would test nothing but guessing."""
    assert {q.reply for q in wordings.questions(heldout_wordings=True)} <= set(wordings.replies())


def test_enough_voices_of_several_families_are_trained() -> None:
    """At least a dozen callers from several kinds of synthesis."""
    assert len(voices.USERS) >= 12
    assert len({voice.split()[0] for voice in voices.USERS}) >= 5


def test_shipped_questions_tell_the_truth_about_being_held_out() -> None:
    """Each shipped recording marked held out is by a held-out voice, and the others are by trained ones."""
    heldout = set(wordings.heldout()["voices"]["heldout"])
    rows = json.loads((SPEECH / "index.json").read_text())
    assert sum(row["demo"] for row in rows) == 5
    for row in rows:
        assert (SPEECH / row["file"]).exists()
        assert (row["voice"] in heldout) == row["heldout"], row["file"]
