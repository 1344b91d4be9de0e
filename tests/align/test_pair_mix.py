"""The mix: no kind, no caller too many, the same people always held out."""

import numpy as np
import pytest

from online_align.pair_mix import Mix, Quota, fingerprint, is_heldout
from online_align.records import PairKind

CONTENT, CUT_OFF, SILENT = PairKind.CONTENT, PairKind.CUT_OFF, PairKind.NO_RESPONSE


def fill(quota: Quota, kind: PairKind, tried: int, user_hash: str = "") -> int:
    """Add as many as are taken. Returns how many were."""
    taken = 0
    for _ in range(tried):
        if not quota.refuses(kind, user_hash):
            quota.note(kind, user_hash, "")
            taken += 1
    return taken


def test_timing_pairs_wait_for_content_pairs() -> None:
    quota = Quota(Mix(free=10, per_user=10_000))
    assert fill(quota, SILENT, 500) == 10, "free ones, and no more"
    assert quota.refuses(SILENT, "") == "enough of its kind"
    assert not quota.refuses(CUT_OFF, ""), "another kind has its own"
    assert fill(quota, CONTENT, 730) == 730
    silent = 10 + fill(quota, SILENT, 500)
    cut_off = fill(quota, CUT_OFF, 500)
    late = fill(quota, PairKind.NO_YIELD, 500)
    total = 730 + silent + cut_off + late
    assert silent / (730 + silent) == pytest.approx(0.135, abs=0.002)
    assert (silent + cut_off + late) / total == pytest.approx(0.27, abs=0.002), "as the paper ends with"


def test_a_caller_may_teach_so_much_and_anonymous_ones_are_one() -> None:
    quota = Quota(Mix(free=10_000, per_user=5, user_share=0.1))
    for number in range(200):
        quota.note(CONTENT, f"user {number}", "")
    taken = fill(quota, CUT_OFF, 40, "greedy")
    assert quota.refuses(CUT_OFF, "greedy") == "enough of this caller"
    assert taken == 22
    assert taken / (200 + taken) <= 0.1
    assert not quota.refuses(CUT_OFF, "somebody else")
    assert fill(quota, CUT_OFF, 40) < 40, "all anonymous callers together"


def test_what_is_known_counts() -> None:
    quota = Quota(Mix(per_user=2, user_share=0.0), [(CONTENT, "a", "x"), (CONTENT, "a", "")])
    assert quota.refuses(CUT_OFF, "a") == "enough of this caller"
    assert quota.knows("x")
    assert not quota.knows("")


def test_held_out_are_people_and_of_nobody_the_call() -> None:
    share = 0.049
    people = [is_heldout(f"user {number}", "any", share) for number in range(20_000)]
    assert sum(people) / len(people) == pytest.approx(share, abs=0.006)
    assert people == [is_heldout(f"user {number}", "other", share) for number in range(20_000)]
    calls = [is_heldout("", f"call {number}", share) for number in range(2000)]
    assert 0 < sum(calls) < 200
    assert not any(is_heldout(f"user {number}", "any", 0.0) for number in range(100))


def test_a_fingerprint_is_of_kind_sound_and_words() -> None:
    heard = np.arange(12, dtype=np.int16).reshape(2, 6)
    one = fingerprint(CONTENT, heard, "yes", "no")
    assert one == fingerprint(CONTENT, heard.copy(), "yes", "no")
    others = {
        fingerprint(CUT_OFF, heard, "yes", "no"),
        fingerprint(CONTENT, heard + 1, "yes", "no"),
        fingerprint(CONTENT, heard, "no", "yes"),
    }
    assert len(others | {one}) == 4
