"""The dashboard: every panel reads what the worker exports, says what it shows, and has a place of its own."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from pipeline.settings import Settings
from tests.k8s.dashboard import DASHBOARD, OVERVIEW, PANELS, QUERIES, ROWS, VARIABLES, resolved, selector_and_label
from tests.k8s.prometheus_rule import RULES
from tests.k8s.promql import PROCESS, exported, metrics_in, mistakes

COLUMNS = 24


def each_query() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("target", [one for _, one in QUERIES], ids=[title for title, _ in QUERIES])


def test_it_can_be_provisioned_and_found_again() -> None:
    assert DASHBOARD["id"] is None
    assert re.fullmatch(r"[a-z-]{1,40}", DASHBOARD["uid"])
    assert DASHBOARD["schemaVersion"] == 39
    # Those two are for dashboards imported by hand; provisioning leaves their variables unresolved.
    assert not {"__inputs", "__requires"} & DASHBOARD.keys()


def test_every_panel_has_an_id_a_title_and_a_place_of_its_own() -> None:
    panels = [*ROWS, *PANELS]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    # The panels of a collapsed row take no place until it is opened; Grafana then moves what is below.
    for together in (DASHBOARD["panels"], *(row["panels"] for row in ROWS)):
        taken: dict[tuple[int, int], str] = {}
        for panel in together:
            at = panel["gridPos"]
            assert at["x"] + at["w"] <= COLUMNS, panel["title"]
            for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
                assert taken.setdefault(cell, panel["title"]) == panel["title"]


def test_the_rows_follow_the_flow() -> None:
    assert [row["title"].split(":")[0] for row in ROWS] == [
        "Overview", "Flow", "Upstreams", "Decide", "Segments", "Sticky profiles", "Predictions", "Dispatch",
        "Datafiles", "Process and group",
    ]  # fmt: skip
    assert [panel["gridPos"]["y"] for panel in DASHBOARD["panels"]] == sorted(
        panel["gridPos"]["y"] for panel in DASHBOARD["panels"]
    )


def test_it_begins_with_single_figures_and_everything_else_is_collapsed() -> None:
    assert [panel["title"] for panel in OVERVIEW] == [
        "Requests decided", "Without a decision", "p99 latency", "Lag", "Dead letters, last hour", "Upstream outages",
        "Workers up",
    ]  # fmt: skip
    assert {panel["type"] for panel in OVERVIEW} == {"stat"}
    assert sum(panel["gridPos"]["w"] for panel in OVERVIEW) == COLUMNS
    assert [(row["collapsed"], bool(row["panels"])) for row in ROWS] == [(False, False)] + [(True, True)] * len(
        ROWS[1:]
    )
    for row in ROWS[1:]:
        # From here Grafana counts how far it has to move them.
        assert row["panels"][0]["gridPos"]["y"] == row["gridPos"]["y"] + 1, row["title"]
        assert [panel["gridPos"]["y"] for panel in row["panels"]] == sorted(
            panel["gridPos"]["y"] for panel in row["panels"]
        )


def test_a_default_that_is_said_is_the_settings() -> None:
    # Sizes and times in the text go out of date unseen.
    defaults = {
        f"PIPELINE_{section}__{name}".upper(): value
        for section, model in Settings()
        if isinstance(model, BaseModel)
        for name, value in model
    }
    for panel in PANELS:
        for name, said in re.findall(r"(PIPELINE_\w+__\w+) \(([\d.,]+)[^)]*\)", panel["description"]):
            assert float(said.replace(",", "")) == defaults[name], panel["title"]
        assert not re.search(r"\d [KMG]iB", panel["description"]), panel["title"]


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert {one["datasource"]["uid"] for one in [panel, *panel["targets"]]} == {"${datasource}"}
    references = [target["refId"] for target in panel["targets"]]
    assert references
    assert len(references) == len(set(references))


@each_query()
def test_a_query_reads_what_the_worker_exports(target: dict[str, Any]) -> None:
    assert mistakes(resolved(target["expr"])) == []


@each_query()
def test_a_rate_follows_the_scrape_interval(target: dict[str, Any]) -> None:
    assert re.findall(r"rate\([^\[]*\[(?!\$__rate_interval\])", target["expr"]) == []


@each_query()
def test_a_legend_names_labels_of_its_query(target: dict[str, Any]) -> None:
    assert target["legendFormat"]
    # Labels that an outer `sum(` adds up are gone.
    aggregated = re.findall(r"(?<!sum\()\b\w+ by \(([\w, ]+)\)", target["expr"])
    kept = {label for labels in aggregated for label in labels.split(", ")}
    assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == kept - {"le"}


def test_every_variable_used_is_offered_and_used() -> None:
    variables = DASHBOARD["templating"]["list"]
    offered = {variable["name"] for variable in variables}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps([PANELS, [one.get("query") for one in variables]])))
    assert used - {"__rate_interval", "__all"} == offered


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_lists_a_label_that_is_there(variable: dict[str, Any]) -> None:
    selector, label = selector_and_label(variable)
    assert mistakes(f"sum by ({label}) ({selector})") == []
    assert variable["datasource"]["uid"] == "${datasource}"
    # `.*` also matches series without the label, as they are outside Kubernetes.
    assert variable["allValue"] == ".*"


BARS = [panel for panel in PANELS if panel["targets"][0]["expr"].endswith(" > 0")]


def test_what_is_rare_is_counted_and_has_a_legend_that_can_be_read() -> None:
    # One dead letter in a day is nothing per second, and a list of all that never happened hides it.
    assert {panel["title"] for panel in BARS} == {"Dead letters", "Polls by outcome", "Requests by outcome"}
    for panel in BARS:
        assert re.search(r"\(increase\(.*\[\$__rate_interval\]", panel["targets"][0]["expr"])
        assert panel["fieldConfig"]["defaults"]["unit"] == "short"
        # A line through a single point is not drawn.
        assert panel["fieldConfig"]["defaults"]["custom"]["drawStyle"] == "bars"
        assert panel["options"]["legend"]["displayMode"] == "table"


def test_the_line_of_an_alert_is_where_the_alert_is() -> None:
    rules = {one["alert"]: one["expr"] for one in yaml.safe_load(RULES.read_text("utf-8"))["groups"][0]["rules"]}
    lines = {
        panel["title"]: [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1:]]
        for panel in PANELS
        if "thresholdsStyle" in panel["fieldConfig"]["defaults"].get("custom", {})
    }
    for title, alerts in {
        "Age of the oldest record not settled": ("DecisionsLate", "EventsLate"),
        "Answered with an error": ("RequestsFail",),
        "Expired": ("RequestsExpire",),
        "Profiles that could not be read or saved": ("ProfilesFail",),
        "Predictions that could not be had": ("PredictionsFail",),
    }.items():
        bounds = [{*map(float, re.findall(r" > ([\d.]+)", rules[f"DecisionPipeline{alert}"]))} for alert in alerts]
        assert [{line} for line in lines[title]] == bounds, title


def test_every_metric_is_on_a_panel() -> None:
    shown = {name for _, target in QUERIES for name in metrics_in(resolved(target["expr"]))}
    histograms = {name.removesuffix("_bucket") for name in exported() if name.endswith("_bucket")}
    unseen = {name for name in exported() if name not in shown}
    parts = {f"{name}{suffix}" for name in histograms for suffix in ("_bucket", "_sum", "_count")}
    assert unseen - parts == PROCESS - {
        "process_resident_memory_bytes", "process_cpu_seconds_total", "process_start_time_seconds",
    }  # fmt: skip
    assert {name for name in histograms if f"{name}_bucket" not in shown} == set()
