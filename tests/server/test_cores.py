"""The tick leaves a core to the event loop."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import threading
import torch
from server.__main__ import _cores, _leave_a_core

def tick():
    _leave_a_core()
    print(_cores(), torch.get_num_threads())

thread = threading.Thread(target=tick)
thread.start()
thread.join()
"""


def _run(**more: str) -> tuple[int, int]:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | more
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    cores, threads = map(int, done.stdout.split())
    return cores, threads


def test_the_tick_computes_on_all_cores_but_one() -> None:
    cores, threads = _run()
    assert threads == max(1, cores - 1)


@pytest.mark.parametrize("wished", ["1", "2"])
def test_the_operator_decides_with_omp_num_threads(wished: str) -> None:
    assert _run(OMP_NUM_THREADS=wished)[1] == int(wished)
