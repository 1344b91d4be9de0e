"""`torchrun` with two processes on the CPU: the command itself, FSDP2 over gloo, and the adapter of one process."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from online_align.pair_store import PairStore
from online_align.round_plan import Round, Stage
from server.engine import model_name
from server.journal import open_journal
from server.journal.registry import AdapterRegistry
from tests.align.test_good_spans import ANSWERED, call
from tests.align.test_rounds import CALLS, some
from tests.journal.calls import record
from tests.tiny_checkpoint import write_tiny_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TOLERANCE = 2e-5
"""Of a weight. Adam divides each gradient by its own size, so sums in another order show in small ones."""


def learn(folder: Path, tiny: str, loss: str, *starter: str) -> Round:
    journal = open_journal(folder)
    record(journal, CALLS, 3)
    call(journal, "praised", ANSWERED, checkpoint=model_name(tiny))
    PairStore(journal).add(some(range(7)))
    flags = [
        "--data-dir",
        str(folder),
        "--checkpoint",
        tiny,
        "--no-collect",
        "--no-release",
        "--json",
        "--priority",
        "normal",
    ]
    settings = ["--priority", "normal", "--batch", "3", "--rank", "3", "--positions", "64", "--learning-rate", "0.01"]
    settings += ["--loss", loss]
    done = subprocess.run(
        [sys.executable, *starter, "-m", "online_align", "once", *flags, *settings],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    made = msgspec.json.decode(line, type=Round)
    assert AdapterRegistry(journal.engine).get(made.adapter).sha256 == made.sha256
    journal.engine.dispose()
    return made


@pytest.mark.parametrize("loss", ["dpo-ln", "kto", "simpo"])
def test_two_processes_make_the_adapter_of_one(tmp_path: Path, loss: str) -> None:
    """Seven pairs in steps of three: a step's pairs never share out evenly.

    KTO measures besides how far the policy has gone, on replies put where they do not belong, and weighs praise against
    complaints: both must be those of all processes. SimPO reads no reference.
    """
    tiny = str(write_tiny_checkpoint(tmp_path / "tiny"))
    alone = learn(tmp_path / "one", tiny, loss)
    together = learn(
        tmp_path / "two", tiny, loss, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"
    )
    assert alone.stage is together.stage is Stage.DONE
    assert alone.settings.loss == together.settings.loss == loss
    assert len(alone.good) == len(together.good) == 1
    assert alone.trained is not None
    assert together.trained is not None
    assert alone.trained.pairs == together.trained.pairs == 7
    assert alone.trained.loss == pytest.approx(together.trained.loss, abs=1e-5)
    parts = [load_file(tmp_path / where / "adapters" / "round-0001" / "lora.safetensors") for where in ("one", "two")]
    moved = max(float(part.abs().max()) for name, part in parts[0].items() if name.endswith("lora_B.weight"))
    assert moved > 100 * TOLERANCE
    for name, part in parts[0].items():
        torch.testing.assert_close(parts[1][name], part, atol=TOLERANCE, rtol=1e-3)
