"""Training budgets are counted in processor time."""

import time

from recipes.mini.pace import Pace


def _work(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_sleeping_costs_nothing() -> None:
    pace = Pace(1.0, 10.0)
    time.sleep(0.3)
    pace.tick()
    assert pace.spent_s < 0.2


def test_work_is_counted_and_saving_comes_due() -> None:
    """Due after `save_s` of work, and again after as much."""
    pace = Pace(0.01, 0.1, spent_s=0.2)
    assert 0.3 < pace.done < 0.4
    due = []
    for _ in range(6):
        _work(0.06)
        due.append(pace.tick())
    assert due == [False, True, False, True, False, True]
    assert pace.done >= 0.9
