"""What is wrong with a PromQL expression: its syntax, its types, and names of series and labels that no worker has."""

from __future__ import annotations

from functools import cache

import promql_parser
from prometheus_client import CollectorRegistry

from pipeline.metrics import Metrics

# What Prometheus and the Kubernetes discovery add to each series.
TARGET_LABELS = frozenset({"namespace", "pod", "job", "instance"})

PROCESS = frozenset(
    f"process_{name}"
    for name in (
        "virtual_memory_bytes", "resident_memory_bytes", "start_time_seconds", "cpu_seconds_total",
        "open_fds", "max_fds",
    )
)  # fmt: skip
"""Series that every program may export; a selector of one needs the job to mean the worker."""


@cache
def exported() -> dict[str, frozenset[str]]:
    """Every series a worker exports, with its own labels; for a histogram those of its three kinds of series."""
    found = {name: frozenset[str]() for name in ("up", *PROCESS)}
    for collector in vars(Metrics(CollectorRegistry())).values():
        if isinstance(collector, CollectorRegistry):
            continue
        described = next(iter(collector.describe()))
        labels = frozenset(collector._labelnames)
        if described.type == "histogram":
            found[f"{described.name}_bucket"] = labels | {"le"}
            found[f"{described.name}_sum"] = found[f"{described.name}_count"] = labels
        else:
            found[described.name + ("_total" if described.type == "counter" else "")] = labels
    return found


def _nodes(expression: promql_parser.Expr) -> list[promql_parser.Expr]:
    nodes: list[promql_parser.Expr] = []
    promql_parser.walk(expression, nodes.append)
    return nodes


def _selectors(expression: promql_parser.Expr) -> list[promql_parser.VectorSelector]:
    found = []
    for node in _nodes(expression):
        if isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        elif isinstance(node, promql_parser.VectorSelector):
            found.append(node)
    return found


def metrics_in(expression: str) -> set[str]:
    """Names of the series an expression reads."""
    return {str(selector.name) for selector in _selectors(promql_parser.parse(expression))}


def mistakes(expression: str) -> list[str]:
    """One sentence for each thing wrong; empty when the expression is good."""
    try:
        parsed = promql_parser.parse(expression)
    except ValueError as error:
        return [f"{error}: {expression}"]
    found = []
    for selector in _selectors(parsed):
        name = str(selector.name)
        if name not in exported():
            found.append(f"no worker exports {name}")
            continue
        if name in PROCESS | {"up"} and "decision-pipeline" not in [
            one.value for one in selector.matchers.matchers if one.name == "job"
        ]:
            found.append(f"{name} is everybody's: it needs the job")
        labels = exported()[name] | TARGET_LABELS
        found += [f"{name} has no label {one.name}" for one in selector.matchers.matchers if one.name not in labels]
    for node in _nodes(parsed):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            offered = TARGET_LABELS.union(*(exported().get(str(one.name), ()) for one in _selectors(node)))
            found += [
                f"nothing here has a label {label}: {expression}" for label in set(node.modifier.labels) - offered
            ]
    return found
