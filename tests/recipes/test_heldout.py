"""What the embedded model is tested on, it was never trained on."""

import json
from pathlib import Path

from recipes.mini import wordings

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


def test_training_wordings_do_not_contain_a_heldout_template() -> None:
    """The two lists of templates are disjoint, item by item."""
    trained = {q.text.lower() for q in wordings.questions()}
    unheard = {q.text.lower() for q in wordings.questions(heldout_wordings=True)}
    assert not trained & unheard


def test_heldout_wordings_expect_answers_that_training_has() -> None:
    """A new wording asks for a known answer: otherwise it would test nothing but guessing."""
    assert {q.reply for q in wordings.questions(heldout_wordings=True)} <= set(wordings.replies())


def test_shipped_questions_tell_the_truth_about_being_held_out() -> None:
    """Each shipped recording marked held out is by a held-out voice, and the others are by trained ones."""
    heldout = set(wordings.heldout()["voices"]["heldout"])
    rows = json.loads((SPEECH / "index.json").read_text())
    assert sum(row["demo"] for row in rows) == 5
    for row in rows:
        assert (SPEECH / row["file"]).exists()
        assert (row["voice"] in heldout) == row["heldout"], row["file"]
