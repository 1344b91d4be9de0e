"""How training goes, for people and for Prometheus: a bar on a terminal, lines in a log, metrics in a file or a page.

Metrics are of this process alone and have closed label sets. It knows no pairs and no model.
"""

import logging
import sys
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server, write_to_textfile
from tqdm import tqdm  # type: ignore[import-untyped] # published without types

from online_align.figures import Figures
from online_align.round_plan import Round
from server.errors import DuologueError

__all__ = ["LearnerMetrics", "MetricsPortError", "Progress"]

log = logging.getLogger(__name__)

_STEP_BUCKETS: Final = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_LOGGED_STEPS: Final = 10
_VERDICTS: Final = ("passed", "failed")


class MetricsPortError(DuologueError):
    """The port for metrics cannot be had."""


class LearnerMetrics:
    """The learner's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.loss = Gauge("duologue_learner_loss", "Mean loss of the last step's pairs.", **own)
        self.margin = Gauge("duologue_learner_margin", "Mean margin of the last step, nats a frame.", **own)
        self.accuracy = Gauge("duologue_learner_pref_accuracy", "Pairs of the last step told apart rightly.", **own)
        self.heldout = Gauge("duologue_learner_heldout_accuracy", "The same on held-out pairs, after a round.", **own)
        self.chosen = Gauge("duologue_learner_chosen_logp", "Mean log-probability of a chosen frame, nats.", **own)
        self.divergence = Gauge("duologue_learner_kl_probe", "KL from the parent on held-out pairs, nats.", **own)
        self.pairs = Counter("duologue_learner_pairs", "Pairs trained.", **own)
        self.rounds = Counter("duologue_learner_rounds", "Rounds that gave an adapter.", **own)
        self.verdicts = Counter(
            "duologue_learner_gate_verdicts", "Adapters that the gate judged, by its verdict.", ["verdict"], **own
        )
        for verdict in _VERDICTS:
            self.verdicts.labels(verdict)
        self.waiting = Gauge("duologue_learner_waiting_pairs", "Pairs that no round has had yet.", **own)
        self.step = Histogram("duologue_learner_step_seconds", "Time of a step.", buckets=_STEP_BUCKETS, **own)

    def serve(self, port: int, *, host: str = "127.0.0.1") -> int:
        """Serve the page; port 0 lets the system choose. Returns the port. Raises `MetricsPortError`."""
        try:
            server, _thread = start_http_server(port, addr=host, registry=self.registry)
        except OSError as problem:
            raise MetricsPortError(
                got=f"port {port} of {host}, which cannot be had ({problem})",
                expected="a free port of an address of this machine",
                remedy="choose another --metrics-port, or 0, and look at --metrics-host",
            ) from problem
        return int(server.server_port)

    def write(self, path: Path) -> None:
        """Write them to a file for a node exporter to pick up: whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to_textfile(str(path), self.registry)


class Progress:
    """Tells how rounds go (`online_align.rounds.Told`)."""

    def __init__(self, metrics: LearnerMetrics, *, textfile: Path | None = None, bar: bool | None = None) -> None:
        self._metrics, self._textfile = metrics, textfile
        self._shows_bar = sys.stderr.isatty() if bar is None else bar
        self._bar: Any = None
        self._steps = 0

    def began(self, steps: int, pairs: int) -> None:
        """A pass begins, or goes on."""
        self._steps = steps
        log.info("training on %d pairs in %d steps", pairs, steps)
        if self._shows_bar:
            self._bar = tqdm(total=steps, unit="step", dynamic_ncols=True)

    def step(self, step: int, figures: Figures) -> None:
        """A step was made."""
        metrics = self._metrics
        metrics.loss.set(figures.loss)
        metrics.margin.set(figures.margin)
        metrics.accuracy.set(figures.accuracy)
        metrics.chosen.set(figures.chosen_logp)
        metrics.pairs.inc(figures.pairs)
        metrics.step.observe(figures.seconds)
        self._write()
        if self._bar is not None:
            self._bar.update(step + 1 - self._bar.n)
            self._bar.set_postfix_str(_said(figures))
        elif self._is_logged(step):
            log.info("step %d of %d: %s", step + 1, self._steps, _said(figures))

    def ended(self, made: Round, heldout: Figures | None, divergence: float | None) -> None:
        """The pass is over."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._metrics.rounds.inc()
        if heldout is not None:
            self._metrics.heldout.set(heldout.accuracy)
        if divergence is not None:
            self._metrics.divergence.set(divergence)
        self._write()
        trained = made.trained
        log.info("%s from %s: %s", made.adapter, made.parent or "the base model", _said(trained) if trained else "")
        if heldout is not None:
            log.info("held out: %s; divergence %s nats a frame", _said(heldout), _rounded(divergence))

    def judged(self, *, passed: bool) -> None:
        """The gate has judged an adapter."""
        self._metrics.verdicts.labels(_VERDICTS[0] if passed else _VERDICTS[1]).inc()
        self._write()

    def waits(self, pairs: int) -> None:
        """So many pairs wait."""
        self._metrics.waiting.set(pairs)
        self._write()

    def _is_logged(self, step: int) -> bool:
        return step + 1 == self._steps or step % max(1, self._steps // _LOGGED_STEPS) == 0

    def _write(self) -> None:
        if self._textfile is not None:
            self._metrics.write(self._textfile)


def _said(figures: Figures) -> str:
    return (
        f"loss {figures.loss:.3f}, margin {figures.margin:+.3f}, right {figures.accuracy:.0%}, "
        f"chosen {figures.chosen_logp:.3f}"
    )


def _rounded(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
