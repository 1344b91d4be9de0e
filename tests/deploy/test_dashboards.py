"""The shipped dashboards: what their pages say, made of metrics and units that exist, and nothing overlaps."""

import importlib.util
import json
import re
from types import ModuleType
from typing import Any

import pytest
import yaml

from online_align.progress import LearnerMetrics
from server.metrics import Metrics
from tests.deploy.prometheus import DEPLOY, ROOT
from tests.deploy.test_prometheus import known_names, named_in
from tests.server.test_metrics import PROCESS

GRAFANA = DEPLOY / "grafana"


def maker() -> ModuleType:
    """The program that writes dashboards; it is no module of the project's packages."""
    spec = importlib.util.spec_from_file_location("make_dashboards", GRAFANA / "make_dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = maker()
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
UNITS = {"short", "s", "bytes", "percentunit", "cps", "none"}
"""Those of Grafana's units that are used."""


def read(name: str) -> dict[str, Any]:
    page: dict[str, Any] = json.loads((GRAFANA / "dashboards" / name).read_text())
    return page


def expressions(page: dict[str, Any]) -> list[str]:
    targets = [target["expr"] for panel in page["panels"] for target in panel["targets"]]
    return targets + [mark["expr"] for mark in page["annotations"]["list"]]


def test_the_files_are_what_the_program_makes_of_the_pages() -> None:
    made = {f"{page.name}.json": MAKER.written(page) for page in MAKER.read_pages()}
    assert {path.name for path in FILES} == set(made)
    for name, text in made.items():
        assert (GRAFANA / "dashboards" / name).read_text() == text, f"run make_dashboards.py: {name} is another"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_panel_says_what_it_is_and_asks_for_what_exists(path: Any) -> None:
    page, known = read(path.name), known_names()
    for expr in expressions(page):
        names = named_in(expr)
        assert names or re.search(r"ALERTS\{|up\{", expr), expr
        assert names <= known, f"no such metric: {names - known}"
    for panel in page["panels"]:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_labels_in_queries_are_in_the_closed_sets(path: Any) -> None:
    """A misspelt value matches nothing, for ever, and nobody notices."""
    values: dict[str, set[str]] = {}
    for registry in (Metrics().registry, LearnerMetrics().registry):
        for sample in (sample for family in registry.collect() for sample in family.samples):
            for label, value in sample.labels.items():
                values.setdefault(label, set()).add(value)
    for expr in expressions(read(path.name)):
        for label, operator, wanted in re.findall(r'(\w+)(=~|!~|=|!=)"([^"]*)"', expr):
            if label not in {"alertstate", "alertname", "job"}:
                options = wanted.split("|") if "~" in operator else [wanted]
                assert set(options) <= values[label], (label, wanted)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_panels_lie_beside_each_other(path: Any) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in read(path.name)["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_metric_is_watched_somewhere_and_described() -> None:
    """On a dashboard, in a rule, or plainly said to be for a closer look."""
    described = (ROOT / "docs" / "metrics.md").read_text()
    rows = dict(re.findall(r"^\| `(duologue_[a-z_]+)` \| ([^|]+) \|", described, re.MULTILINE))
    metrics = Metrics()
    assert {name: unit for name, unit in rows.items() if name in metrics.units} == metrics.units
    shown = {family.name for each in (metrics, LearnerMetrics()) for family in each.registry.collect()}
    assert shown - {name for name in shown if name.startswith(PROCESS)} == {
        name for name in rows if not name.startswith(PROCESS)
    }
    asked = " ".join(path.read_text() for path in [*FILES, *(DEPLOY / "prometheus" / "rules").glob("*.yml")])
    for name in shown - {name for name in shown if name.startswith(PROCESS)}:
        closer_look = re.search(rf"^\| `{name}` .*not on a dashboard", described, re.MULTILINE)
        assert (name in asked) is not bool(closer_look), name


def test_grafana_finds_its_source_and_its_files() -> None:
    provisioning = GRAFANA / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())
    provider = yaml.safe_load((provisioning / "dashboards" / "duologue.yaml").read_text())
    assert source["apiVersion"] == provider["apiVersion"] == 1
    assert [each["uid"] for each in source["datasources"]] == ["prometheus"]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    mounted = [volume["target"] for volume in compose["services"]["grafana"]["volumes"] if volume["type"] == "bind"]
    assert provider["providers"][0]["options"]["path"] in mounted
    uids = [read(path.name)["uid"] for path in FILES]
    assert len(set(uids)) == len(uids)
    for path in FILES:
        for panel in read(path.name)["panels"]:
            assert panel["datasource"] == {"type": "prometheus", "uid": "prometheus"}
