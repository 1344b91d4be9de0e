"""From a spoken question to a pair, on real parts: socket, Opus, server, signals, journal, builder."""

from pathlib import Path

import numpy as np
import pytest
import soxr

from online_align.evaluate.situations import Situation, hesitations
from online_align.pair_store import PairStore
from online_align.pairs import PairBuilder, PairSettings, longest_stretch
from online_align.records import PairKind
from online_align.replay import load
from server.engine.checkpoint import MINI
from server.journal import JournalWriter, TickRecord, open_journal
from server.signals import SignalKind
from tests.align.told import FRAME_S, spoken
from tests.server.caller import FRAME, calling
from tests.server.live import serving

pytestmark = [pytest.mark.mini, pytest.mark.timeout(300)]

# Of three people whom the model knows and three whom it does not: it takes most such pauses, not every one.
HESITATIONS = [each for group in ("trained", "heldout") for each in hesitations(group, 3, pause_s=0.9, faulty=True)]


def frames(situation: Situation) -> list[np.ndarray]:
    """What the caller says, at the wire's rate, in frames."""
    wire = soxr.resample(situation.sound.reshape(-1), 16_000, 24_000).astype(np.float32)
    return list(wire[: len(wire) // FRAME * FRAME].reshape(-1, FRAME))


@pytest.mark.parametrize("dropped", [range(0), range(4, 10)])
async def test_a_pause_taken_over_the_socket_becomes_a_pair_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropped: range
) -> None:
    """Also where some of the frames were dropped: the past is then what was kept since."""
    record = JournalWriter.frames

    def frames_kept(self: JournalWriter, tick: TickRecord) -> None:
        if tick.ticks[0] not in dropped:
            record(self, tick)

    monkeypatch.setattr(JournalWriter, "frames", frames_kept)
    data = tmp_path / "data"
    async with serving(MINI, data_dir=data, slots=1) as live:
        for hesitation in HESITATIONS:
            async with calling(live.url, "?consent=keep,train") as caller:
                await caller.greeted()
                await caller.talk(frames(hesitation))
            await live.empty()
    journal = open_journal(data)
    try:
        builder = PairBuilder(journal, load("mini"), data_dir=data, settings=PairSettings(branches=2))
        tally = builder.build()
        assert tally.sessions == len(HESITATIONS)
        pairs = [pair for pair in PairStore(journal).read() if pair.kind is PairKind.CUT_OFF]
        assert pairs, f"nobody's pause was taken: {tally}"
        for pair in pairs:
            kept = longest_stretch(journal.reader.columns(pair.session))
            assert kept is not None
            assert kept.ticks_T[0] == dropped.stop
            early = next(each for each in journal.reader.signals(pair.session) if each.id in pair.evidence.signals)
            assert early.kind in (SignalKind.PAUSE_TAKEOVER, SignalKind.CUT_OFF)
            assert np.array_equal(pair.context_PK, kept.tokens_TK[kept.ticks_T < pair.at_tick])
            assert spoken(pair.rejected.tokens_TK[:, 0])[0] <= 1
            begins_s = (pair.at_tick + spoken(pair.chosen.tokens_TK[:, 0])[0] + 1) * FRAME_S
            assert early.t1 <= begins_s <= early.t1 + 0.8, "after the caller's end, and soon"
        assert builder.build().sessions == 0
    finally:
        journal.engine.dispose()
