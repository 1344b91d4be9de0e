"""The shipped rules: right by promtool, each alert tested, explained and made of metrics that exist."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from online_align.progress import LearnerMetrics
from server.metrics import Metrics
from tests.deploy.prometheus import DEPLOY, ROOT, RULES, configured, program

PROMETHEUS = DEPLOY / "prometheus"
UNIT_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))


def promtool(*arguments: str) -> str:
    command = [str(program("promtool")), *arguments]
    done = subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules(kind: str) -> list[dict[str, Any]]:
    """All rules with the key `record` or `alert`."""
    groups = [group for path in RULES.glob("*.yml") for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def named_in(expr: str) -> set[str]:
    """Metrics of ours that an expression names, and rules that it builds on."""
    return set(re.findall(r"\b(?:job:|role:)?duologue_[a-z0-9_]+(?::[a-z0-9_]+)?", expr))


def known_names() -> set[str]:
    """What a server and a learner show, as Prometheus stores it, and what is recorded."""
    metrics = Metrics()
    metrics.set_version("1")
    metrics.show_adapters({}, base="mini")
    registries = (metrics.registry, LearnerMetrics().registry)
    samples = {sample.name for each in registries for family in each.collect() for sample in family.samples}
    return samples | {"duologue_adapter_info"} | {rule["record"] for rule in rules("record")}


def test_promtool_finds_the_configuration_right(tmp_path: Path) -> None:
    file = configured(tmp_path, token="watch me")
    assert "SUCCESS" in promtool("check", "config", "--lint=all", "--lint-fatal", str(file))
    promtool("check", "rules", "--lint=all", "--lint-fatal", *(str(path) for path in sorted(RULES.glob("*.yml"))))


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_rules_do_what_their_tests_say(path: Path) -> None:
    promtool("test", "rules", str(path))


def test_every_alert_is_seen_to_fire_and_to_be_quiet() -> None:
    """Quiet at another time, or beside a series of the same test that is well."""
    tests = [test for path in UNIT_TESTS for test in yaml.safe_load(path.read_text())["tests"]]
    for alert in (rule["alert"] for rule in rules("alert")):
        asked = [(test, each) for test in tests for each in test["alert_rule_test"] if each["alertname"] == alert]
        assert any(each["exp_alerts"] for _, each in asked), f"{alert} is never seen to fire"
        quiet = [each for _, each in asked if not each["exp_alerts"]]
        beside = [each for test, each in asked if len(each["exp_alerts"]) < len(_instances(test))]
        assert quiet or beside, f"{alert} is never seen to be quiet"


def _instances(test: dict[str, Any]) -> set[str]:
    return {name for each in test["input_series"] for name in re.findall(r'instance="([^"]+)"', each["series"])}


def test_every_alert_has_a_severity_and_an_entry_in_the_runbook() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    headings = {line.removeprefix("## ").strip() for line in runbook.splitlines() if line.startswith("## ")}
    names = {rule["alert"] for rule in rules("alert")}
    assert names == {heading for heading in headings if heading.startswith("Duologue")}
    for rule in rules("alert"):
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["annotations"]["summary"].endswith(".")


def test_rules_name_only_metrics_that_exist() -> None:
    known = known_names()
    for rule in rules("alert") + rules("record"):
        names = named_in(rule["expr"])
        assert names or "up{" in rule["expr"], rule
        assert names <= known, (rule, names - known)


def test_burn_rates_are_those_of_the_objectives() -> None:
    burn = {rule["alert"]: rule["expr"] for rule in rules("alert")}
    windows = {
        "DuologueFramesLateFast": ("14.4 * 0.001", "1h", "5m"),
        "DuologueFramesLateSteady": ("6 * 0.001", "6h", "30m"),
        "DuologueFramesLateSlow": ("> 0.001", "3d", "6h"),
    }
    for alert, (limit, long, short) in windows.items():
        assert burn[alert].count(limit) == 2
        assert [re.findall(r"rate(\w+)", line)[0] for line in burn[alert].splitlines()] == [long, short]
