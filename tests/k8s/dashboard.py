"""The dashboard as Grafana reads it: its panels, its queries, and what becomes of their variables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DASHBOARD = json.loads((Path(__file__).parents[2] / "k8s" / "dashboards" / "decision-pipeline.json").read_text("utf-8"))
ROWS = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
OVERVIEW = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PANELS: list[dict[str, Any]] = [*OVERVIEW, *(panel for row in ROWS for panel in row["panels"])]
"""Those of a collapsed row lie in the row."""
QUERIES: list[tuple[str, dict[str, Any]]] = [
    (panel["title"], target) for panel in PANELS for target in panel["targets"]
]
VARIABLES: list[dict[str, Any]] = [one for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]


def resolved(expression: str) -> str:
    """The expression as Grafana sends it, with `All` chosen for each variable."""
    expression = expression.replace("$__rate_interval", "1m")
    return re.sub(r"\$\w+", ".*", expression)


def selector_and_label(variable: dict[str, Any]) -> tuple[str, str]:
    """Of a variable that lists the values of a label."""
    match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
    assert match is not None, variable["definition"]
    return resolved(match[1]), match[2]
