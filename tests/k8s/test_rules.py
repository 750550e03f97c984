"""The alerts ask for what is there, tell a person what to do, and are all tested by promtool (`make rules`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from pipeline.metrics import Metrics
from pipeline.settings import TopicsSettings
from tests.k8s.prometheus_rule import RESOURCE, RULES, resource
from tests.k8s.promql import TARGET_LABELS, exported, metrics_in, mistakes

ROOT = Path(__file__).parents[2]
(GROUP,) = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
ALERTS: list[dict[str, Any]] = GROUP["rules"]
CASES = yaml.safe_load((RULES.parent / "decision-pipeline.test.yml").read_text("utf-8"))


def each_alert() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("alert", ALERTS, ids=[one["alert"] for one in ALERTS])


def test_every_alert_has_a_name_of_its_own() -> None:
    names = [one["alert"] for one in ALERTS]
    assert len(names) > 15
    assert len(names) == len(set(names))


@each_alert()
def test_an_alert_asks_for_what_the_worker_exports(alert: dict[str, Any]) -> None:
    assert mistakes(alert["expr"]) == []


@each_alert()
def test_an_alert_says_how_urgent_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    # Enough to act on, short enough for a telephone.
    assert len(alert["annotations"]["summary"]) < 120
    assert 80 < len(alert["annotations"]["description"]) < 600


@each_alert()
def test_an_alert_names_only_labels_that_it_has(alert: dict[str, Any]) -> None:
    named = set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])))
    aggregated = re.findall(r"by \(([\w, ]+)\)", alert["expr"])
    kept = {label for labels in aggregated for label in labels.split(", ")} if aggregated else TARGET_LABELS
    assert named <= kept


@each_alert()
def test_a_runbook_is_a_section_that_is_there(alert: dict[str, Any]) -> None:
    # Before the path may be the address of somebody's copy of this repository, see k8s/README.md.
    path, anchor = alert["annotations"]["runbook_url"].split("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / path.rpartition("/")[2]).read_text("utf-8"), re.MULTILINE)
    assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_alert()
def test_the_settings_an_alert_names_are_there(alert: dict[str, Any]) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    named = re.findall(r"PIPELINE_[A-Z_]+[A-Z]", alert["annotations"]["description"])
    assert [name for name in named if f"| `{name}` |" not in readme] == []


def test_half_of_the_retention_is_that_of_the_topics() -> None:
    (alert,) = [one for one in ALERTS if one["alert"] == "DecisionPipelineRetentionNear"]
    assert alert["expr"].endswith(f"> 0.5 * {TopicsSettings().retention:.0f}")


def test_every_outcome_of_a_request_without_a_decision_has_an_alert() -> None:
    asked = {
        outcome
        for alert in ALERTS
        for outcomes in re.findall(r'decide_requests_total\{outcome=~?"([\w|]+)"', alert["expr"])
        for outcome in outcomes.split("|")
    }
    # Those that are rejected are dead letters.
    assert asked == {"error", "expired"}


def test_an_outcome_asked_for_is_one_that_the_metric_has() -> None:
    # Its help text names them all. One that no worker counts would make an alert that never fires.
    told = {
        f"{described.name}_total": set(re.findall(r"\w+", described.documentation))
        for collector in vars(Metrics(CollectorRegistry())).values()
        if not isinstance(collector, CollectorRegistry)
        for described in collector.describe()
    }
    asked = {
        (name, outcome)
        for alert in ALERTS
        for name, outcomes in re.findall(r'(\w+)\{outcome[!=]=?~?"([\w|]+)"', alert["expr"])
        for outcome in outcomes.split("|")
    }
    assert len(asked) > 8
    assert {(name, outcome) for name, outcome in asked if outcome not in told[name]} == set()


def test_every_alert_is_seen_to_fire() -> None:
    fired = set(re.findall(r'alertname="(\w+)"', str([case["promql_expr_test"] for case in CASES["tests"]])))
    assert fired == {one["alert"] for one in ALERTS}


def test_the_cases_of_promtool_have_the_labels_of_the_worker() -> None:
    # A series that no worker exports would prove an alert that never fires.
    wrong = []
    for case in CASES["tests"]:
        for one in case["input_series"]:
            name, labels = re.fullmatch(r"(\w+)\{(.*)\}", one["series"]).groups()  # type: ignore[union-attr]
            given = set(re.findall(r"(\w+)=", labels))
            if name not in exported() or given - TARGET_LABELS != exported()[name]:
                wrong.append(one["series"])
    assert wrong == []


def test_the_resource_is_made_from_the_rules() -> None:
    assert RESOURCE.read_text("utf-8") == resource(), "run `make rules`"


def test_every_sign_of_trouble_has_an_alert() -> None:
    asked = {name for alert in ALERTS for name in metrics_in(alert["expr"])}
    trouble = {
        "lag_seconds", "partitions_blocked", "upstream_blocked", "datafile_key_denied", "datafile_stale",
        "dead_letters_total", "offsets_out_of_range_total", "topics_recreated_total", "commits_total",
        "event_loop_longest_stall_seconds", "results_recovered_total", "segment_failures_total", "rebalances_total",
        "profile_lookups_total", "profile_saves_total", "cmab_requests_total", "decide_latency_seconds_bucket",
    }  # fmt: skip
    assert {f"decision_pipeline_{name}" for name in trouble} - asked == set()


def test_the_bound_of_the_latency_objective_is_a_bucket_and_the_one_that_is_said() -> None:
    # `le` of no bucket has no series: the alert would never fire.
    bounds = Metrics(CollectorRegistry()).decide_latency.bounds
    burning = [alert for alert in ALERTS if "decide_latency_seconds_bucket" in alert["expr"]]
    assert len(burning) == 2
    for alert in burning:
        (bound,) = {float(le) for le in re.findall(r'le="([\d.]+)"', alert["expr"])}
        assert bound in bounds
        assert f"longer than {bound:g} s" in alert["annotations"]["summary"]
        (share,) = set(re.findall(r"> [\d.]+ \* ([\d.]+)", alert["expr"]))
        assert f"{100 - 100 * float(share):g} % within {bound:g} s" in alert["annotations"]["description"]


def test_the_bounds_that_people_may_choose_from_are_the_buckets() -> None:
    text = (ROOT / "k8s" / "README.md").read_text("utf-8")
    (listed,) = re.findall(r"any bucket of the histogram: ([\d., \n]+)\)", text)
    assert tuple(map(float, listed.split(","))) == Metrics(CollectorRegistry()).decide_latency.bounds
