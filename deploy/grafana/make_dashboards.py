"""Write Grafana's dashboards from the pages beside this file: `python deploy/grafana/make_dashboards.py`.

A page (`pages/*.toml`) is a list of panels, a panel a question with its Prometheus queries. The JSON in `dashboards`
is what Grafana reads, and a test compares it with what this program makes; nobody edits it by hand. Grafana's own words
are used for its own things (targets, fieldConfig, gridPos).
"""

import json
import tomllib
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

__all__ = ["FOLDER", "Dashboard", "Panel", "Query", "as_grafana", "main", "read_pages", "written"]

PAGES: Final = Path(__file__).parent / "pages"
FOLDER: Final = Path(__file__).parent / "dashboards"
_SOURCE: Final = {"type": "prometheus", "uid": "prometheus"}
_WIDTH: Final = 24
_SCHEMA_VERSION: Final = 39

Kind = Literal["timeseries", "stat", "heatmap", "table"]


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A PromQL expression, and how its series are called."""

    expr: str
    legend: str


class Panel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question."""

    title: str
    what: str
    """What it says, and what is good: a sentence or two for who has never seen it."""
    queries: list[Query]
    kind: Kind = "timeseries"
    unit: str = "short"
    """One of Grafana's units."""
    width: int = 8
    """Of 24."""
    height: int = 8
    stacked: bool = False
    least: float | None = None
    most: float | None = None
    lines: list[tuple[float, str]] = []
    """Thresholds: from this value on, this colour."""


class Dashboard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One page. With `swaps`, adapter swaps and rollbacks are marked in every picture."""

    title: str
    panels: list[Panel]
    name: str = ""
    """The file's, without its ending."""
    swaps: bool = False
    span: str = "now-1h"


def read_pages(folder: Path = PAGES) -> list[Dashboard]:
    """Read every page. Raises `msgspec.ValidationError` for what is not one, with the place of the mistake."""
    return [
        msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")) | {"name": path.stem}, Dashboard)
        for path in sorted(folder.glob("*.toml"))
    ]


def as_grafana(dashboard: Dashboard) -> dict[str, Any]:
    """Give a dashboard in Grafana's own words."""
    return {
        "uid": f"duologue-{dashboard.name.replace('_', '-')}",
        "title": dashboard.title,
        "tags": ["duologue"],
        "schemaVersion": _SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": dashboard.span, "to": "now"},
        "timezone": "browser",
        "templating": {"list": []},
        "links": [{"type": "dashboards", "title": "Duologue", "tags": ["duologue"], "asDropdown": True}],
        "annotations": {"list": _marks() if dashboard.swaps else []},
        "panels": list(_placed(dashboard.panels)),
    }


def _marks() -> list[dict[str, Any]]:
    """Mark when adapters came into use and when calls were taken off one."""
    marks = (
        ("Adapter swapped", 'sum(changes(duologue_swap_total{result="flipped"}[$__interval])) > 0', "blue"),
        ("Adapter rolled back", "sum(changes(duologue_swap_rollback_total[$__interval])) > 0", "red"),
    )
    return [
        {"name": name, "titleFormat": name, "expr": expr, "iconColor": colour, "enable": True, "datasource": _SOURCE}
        for name, expr, colour in marks
    ]


def _placed(panels: list[Panel]) -> list[dict[str, Any]]:
    """Lay panels out from left to right, in rows as high as their highest."""
    placed, x, y, row_height = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > _WIDTH:
            x, y, row_height = 0, y + row_height, 0
        place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
        placed.append(_panel(panel, number) | {"gridPos": place})
        x, row_height = x + panel.width, max(row_height, panel.height)
    return placed


def _panel(panel: Panel, number: int) -> dict[str, Any]:
    instant = panel.kind == "table"
    shape = "heatmap" if panel.kind == "heatmap" else "table" if instant else "time_series"
    targets = [
        {"refId": chr(ord("A") + place), "datasource": _SOURCE, "expr": query.expr, "legendFormat": query.legend}
        | {"format": shape, "instant": instant, "range": not instant}
        for place, query in enumerate(panel.queries)
    ]
    limits = {"min": panel.least, "max": panel.most}
    defaults = {"unit": panel.unit, "thresholds": _thresholds(panel), "custom": _custom(panel)}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.what,
        "datasource": _SOURCE,
        "targets": targets,
        "fieldConfig": {
            "defaults": defaults | {name: value for name, value in limits.items() if value is not None},
            "overrides": [],
        },
        "options": _options(panel.kind),
    }


def _thresholds(panel: Panel) -> dict[str, Any]:
    """Give colours from the lowest up; Grafana's first step has no value."""
    lines = panel.lines or [(0, "green")]
    first, rest = (lines[0][1], lines[1:]) if panel.kind == "stat" else ("green", lines)
    return {
        "mode": "absolute",
        "steps": [{"value": None, "color": first}, *({"value": value, "color": colour} for value, colour in rest)],
    }


def _custom(panel: Panel) -> dict[str, Any]:
    if panel.kind != "timeseries":
        return {}
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 40 if panel.stacked else 5,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "line" if panel.lines else "off"},
    }


def _options(kind: str) -> dict[str, Any]:
    match kind:
        case "timeseries":
            return {
                "legend": {"displayMode": "list", "placement": "bottom", "calcs": ["lastNotNull"], "showLegend": True},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        case "stat":
            return {
                "colorMode": "background",
                "graphMode": "area",
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            }
        case "heatmap":
            return {"calculate": False, "cellGap": 0, "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64}}
        case _:
            return {"showHeader": True}


def written(dashboard: Dashboard) -> str:
    """Give the file's text."""
    return json.dumps(as_grafana(dashboard), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write every file, and remove those of dashboards that are no more."""
    FOLDER.mkdir(exist_ok=True)
    wanted = {FOLDER / f"{dashboard.name}.json": written(dashboard) for dashboard in read_pages()}
    for path in set(FOLDER.glob("*.json")) - set(wanted):
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
