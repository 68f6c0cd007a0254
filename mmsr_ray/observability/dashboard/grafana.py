"""The dashboard as Grafana's JSON. Pure; nothing in it depends on when or where it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mmsr_ray.metrics.catalogue import STEP
from mmsr_ray.observability.dashboard.panels import Panel, Query

UID = "mmsr"  # the dashboard lies at /d/mmsr
_WIDTH, _HEIGHT, _ACROSS = 8, 8, 3  # of Grafana's 24 columns
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard(rows: Mapping[str, Sequence[Panel]]) -> str:
    """The file that Grafana is provisioned with."""
    panels: list[dict[str, Any]] = []
    y = 0
    for name, members in rows.items():
        panels.append({"id": len(panels) + 1, "type": "row", "title": name, "collapsed": False, "panels": [], "gridPos": _at(0, y, 24, 1)})
        for place, panel in enumerate(members):
            column, line = place % _ACROSS, place // _ACROSS
            panels.append(_panel(panel, len(panels) + 1, _at(_WIDTH * column, y + 1 + _HEIGHT * line, _WIDTH, _HEIGHT)))
        y += 1 + _HEIGHT * -(-len(members) // _ACROSS)
    whole = {
        "uid": UID,
        "title": "mmsr-ray",
        "tags": ["mmsr-ray", "ray"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [{"type": "dashboards", "title": "Ray's own dashboards", "tags": [], "asDropdown": True, "includeVars": False}],
        "templating": {"list": [_datasource(), _runs()]},
        "panels": panels,
    }
    return json.dumps(whole, indent=2) + "\n"


def _at(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    fill: dict[str, Any] = {"fillOpacity": 40, "stacking": {"mode": "normal", "group": "A"}} if panel.stacked else {"fillOpacity": 0}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": " ".join([panel.about, *(f"{_name(query)}: where {query.when}." for query in panel.queries if query.when)]),
        "datasource": _SOURCE,
        "gridPos": place,
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": _SOURCE, "expr": query.expr, "legendFormat": query.legend, "range": True}
            for i, query in enumerate(panel.queries)
        ],
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "custom": {"drawStyle": "line", "lineWidth": 1, "showPoints": "auto", "spanNulls": True, **fill},
            },
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def _name(query: Query) -> str:
    return query.legend.replace("{{", "").replace("}}", "")


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus", "refresh": 1, "hide": 0}


def _runs() -> dict[str, Any]:
    values = f"label_values({STEP.series}, run)"
    return {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": _SOURCE,
        "definition": values,
        "query": {"query": values, "refId": "runs"},
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }
