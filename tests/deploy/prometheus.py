"""A real Prometheus for a test, with the rules that are shipped, and what it says."""

import json
import math
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from client.local_server import free_port, stop

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules"
READY_S = 60.0


def program(name: str) -> Path:
    """`prometheus` or `promtool`, from the PATH or from where get.sh puts it; else skip, saying so."""
    own = ROOT / "build" / "prometheus" / "usr" / "bin" / name
    found = shutil.which(name) or (str(own) if own.exists() else None)
    if found is None:
        pytest.skip(f"no {name} here, so this is NOT checked: run deploy/prometheus/get.sh, or install Prometheus")
    return Path(found)


def configured(folder: Path, *, token: str) -> Path:
    """Lay out rules, configuration and a token as they are in a deployment. Returns the configuration."""
    shutil.copytree(RULES, folder / "rules")
    (folder / "secrets").mkdir()
    (folder / "secrets" / "metrics_token").write_text(token)
    return Path(shutil.copy(DEPLOY / "prometheus" / "prometheus.yml", folder))


class Prometheus:
    """One that runs, asked over HTTP."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        """Ask the API. Raises `AssertionError` with Prometheus' own words for a query that is wrong."""
        question = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(question, timeout=20) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as problem:
            answer = json.load(problem)
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def values(self, expr: str, *, since: float, step_s: float = 1.0) -> dict[str, list[float]]:
        """All finite values of each series from `since` (time of day) to now, by the series' labels."""
        window = {"start": f"{since}", "end": f"{time.time()}", "step": f"{step_s}"}
        result = self.get("query_range", query=expr, **window)["result"]
        read = {str(series["metric"]): [float(value) for _, value in series["values"]] for series in result}
        return {name: finite for name, values in read.items() if (finite := [v for v in values if math.isfinite(v)])}


@contextmanager
def watching(folder: Path, *, server_at: str, learner_at: str, token: str, interval_s: int = 1) -> Iterator[Prometheus]:
    """Run Prometheus as it is shipped, but on these addresses and at a quicker pace, until the block ends."""
    binary = program("prometheus")
    shipped = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    quick = shipped.replace("_interval: 5s", f"_interval: {interval_s}s")
    quick = quick.replace("server:8998", server_at).replace("learner:9108", learner_at)
    assert quick.count(f"_interval: {interval_s}s") == 2
    assert server_at in quick
    assert learner_at in quick
    port = free_port()
    configured(folder, token=token)
    (folder / "prometheus.yml").write_text(quick.replace("localhost:9090", f"127.0.0.1:{port}"))
    command = [
        str(binary),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'series'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    log = folder / "prometheus.log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            running = Prometheus(f"http://127.0.0.1:{port}")
            _until_ready(running, process, log)
            yield running
        finally:
            stop(process)


def _until_ready(running: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with direct.open(running.url + "/-/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"Prometheus was not ready after {READY_S} s: {log.read_text()}")
