"""Complaints about words, all the way: calls over the socket, a judge, a recogniser, pairs, a round, the gate.

Callers press a thumb down when an answer is wrong, as people do. One call more is made to be wrong whatever the model
knows, so that there is something to learn from any model.
"""

import functools
import json
import logging
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soxr

from online_align import learn_command, release
from online_align.__main__ import main
from online_align.evaluate.people import Utterance, lay, people
from online_align.gate import GateSettings
from online_align.pair_store import PairStore
from online_align.probes import Sizes
from online_align.records import PairKind
from online_align.regenerate import Branch, Regenerator, word_pieces
from online_align.release import GateJudge, verdict_of
from online_align.replay import load
from online_align.round_plan import Round, Stage
from server.engine import Engine
from server.engine.checkpoint import MINI
from server.journal import Journal, open_journal
from server.journal.registry import AdapterRegistry, AdapterState
from server.signals import Signal, SignalKind
from tests.align.told import GREEDY, call, keep, sound, spoken
from tests.server.caller import FRAME, calling
from tests.server.live import serving
from tests.signals.sounds import clip

pytestmark = [pytest.mark.mini, pytest.mark.slow, pytest.mark.timeout(590)]

DOMAIN = Path(__file__).parents[2] / "recipes" / "mini" / "domain.toml"
QUICK = GateSettings(
    sizes=Sizes(question=4, pause=0, interruption=0, hum=0, nobody=1), slots=5, drift_calls=2, step_ratio=math.inf
)
LEARN = ["--judge", "rules", "--answers", str(DOMAIN), "--recogniser", "auto"]
FAST = ["--batch", "1", "--rank", "4", "--learning-rate", "1e-4", "--good", "0", "--positions", "256", "--threads", "1"]


def asked() -> list[Utterance]:
    """Questions that have one right answer, by different people."""
    fitting = [each for each in people() if each.category in ("capitals", "sums") and each.wording == "trained"]
    return [each for number, each in enumerate(fitting) if number % (len(fitting) // 4) == 0][:4]


def frames(question: Utterance) -> list[np.ndarray]:
    heard = lay([(0.8, question.sound())], 0.8 + question.seconds + 4.0, np.random.default_rng(0)).reshape(-1)
    wire = soxr.resample(heard, 16_000, 24_000).astype(np.float32)
    return list(wire[: len(wire) // FRAME * FRAME].reshape(-1, FRAME))


async def callers(data: Path) -> int:
    """Let people call a real server and vote. Returns how many were told something wrong."""
    wrong = 0
    async with serving(MINI, data_dir=data, slots=1) as live:
        for question in asked():
            async with calling(live.url, "?consent=keep,train") as caller:
                await caller.greeted()
                await caller.talk(frames(question))
                if caller.words.strip() and not caller.words.strip().endswith(question.expected):
                    wrong += 1
                    await caller.send(4, json.dumps({"type": "feedback", "value": "down"}).encode())
                    await caller.talk([np.zeros(FRAME, np.float32)] * 5)
            await live.empty()
    return wrong


def wrong_for_sure(journal: Journal) -> None:
    """Asked for the capital of France, it says Rome, and gets a thumb down."""
    checkpoint, engine = load("mini"), Engine.load("mini", slots=1, device="cpu")
    fine = call(engine, sound((0.8, clip("demo_2.opus")), seconds=7))
    at = int(spoken(fine.tokens_TK[:, 0])[0]) - 1
    speaker = Regenerator(checkpoint, branches=1)
    speaker.tell(fine.tokens_TK, sampling=GREEDY, seed=fine.seed)
    said = word_pieces(checkpoint.text_tokenizer, "The capital of France is Rome.")
    branch = Branch(seed=1, words=said, start_by=0)
    (wrong,) = speaker.branch(at, fine.tokens_TK[at:, 7:], [branch], until_over=False)
    thumb = Signal(id=9, kind=SignalKind.FEEDBACK, t0=5.5, t1=5.5, confidence=1.0, value="down")
    told = msgspec.structs.replace(
        fine, tokens_TK=np.concatenate([fine.tokens_TK[:at], wrong]), signals=[*fine.signals, thumb]
    )
    keep(journal, "wrong", told, checkpoint=checkpoint.name)


async def test_wrong_answers_become_pairs_a_round_and_an_adapter_that_is_judged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(learn_command, "step_back", lambda *_: None)  # this process must not become the last
    monkeypatch.setattr(release, "GateJudge", functools.partial(GateJudge, settings=QUICK))
    caplog.set_level(logging.INFO)
    data = tmp_path / "data"
    wrong = await callers(data)
    journal = open_journal(data)
    try:
        votes = [
            signal
            for about in journal.reader.sessions()
            for signal in journal.reader.signals(about.id)
            if signal.kind is SignalKind.FEEDBACK
        ]
        assert len(votes) == wrong, "every vote is in the journal"
        wrong_for_sure(journal)
        assert main(["once", "--data-dir", str(data), *LEARN, *FAST, "--json"]) == 0
        made = msgspec.json.decode(capsys.readouterr().out.splitlines()[-1], type=Round)
        assert (made.stage, made.adapter) == (Stage.DONE, "round-0001")
        pairs = PairStore(journal).read(kinds=[PairKind.CONTENT])
        about_france = next(pair for pair in pairs if pair.session == "wrong")
        assert about_france.rejected.words == "The capital of France is Rome."
        assert "Paris" in about_france.chosen.words
        for pair in pairs:
            assert pair.evidence.judge == "rules-1"
            assert pair.evidence.scores["chosen"] >= pair.evidence.scores["rejected"] + 0.5
            assert pair.evidence.rule.endswith(("/down", "/repeat"))
        assert made.trained is not None
        assert made.trained.pairs == len(made.pairs)
        assert len(pairs) == sum(pair.id in made.pairs for pair in pairs) + sum(pair.heldout for pair in pairs)
        registry = AdapterRegistry(journal.engine)
        adapter = registry.get("round-0001")
        assert json.loads(adapter.manifest)["pairs"]["A"] >= 1
        assert adapter.state in (AdapterState.CANARY, AdapterState.REJECTED), "the gate has judged it"
        (said,) = registry.verdicts("round-0001")
        assert {"files", "kl", "answered", "recorded_faults"} <= {check.name for check in verdict_of(said).checks}
        assert made.outcome == said.reason
        lines = [record.getMessage() for record in caplog.records]
        assert any("new pairs: " in line and "A (" in line for line in lines)
    finally:
        journal.engine.dispose()
