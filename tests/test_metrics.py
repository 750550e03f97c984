"""The histogram for single records counts as the client library's own does, and is scraped like it."""

from __future__ import annotations

import random

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.metrics import BulkHistogram, Metrics

BOUNDS = (0.01, 0.1, 1.0, 60.0)


def scraped(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    """Each sample but the sum, which is a float of another order of adding."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith(("_created", "_sum"))
    }


@pytest.mark.parametrize("count", [0, 1, 7, 999, 1000, 2500])
def test_it_counts_as_the_libraries_own(count: int) -> None:
    rng = random.Random(count)
    # Values on the bounds, between them and above them all.
    values = [rng.choice((*BOUNDS, 0.0, rng.random(), 100 * rng.random())) for _ in range(count)]
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    bulk = BulkHistogram("waits", "Waits.", BOUNDS, ours)
    single = Histogram("waits", "Waits.", registry=theirs, buckets=BOUNDS)
    bulk.observe_all(values[: count // 2])
    for value in values[count // 2 :]:
        bulk.observe(value)
    for value in values:
        single.observe(value)
    assert scraped(ours) == scraped(theirs)
    assert scraped(ours) == scraped(theirs), "a scrape takes nothing away"
    assert ours.get_sample_value("waits_sum") == pytest.approx(theirs.get_sample_value("waits_sum"))


def test_a_bound_of_the_objectives_example_is_a_bucket() -> None:
    # `le` in the alert must name a bucket, or the alert never fires.
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.decide_latency.observe(0.5)
    assert registry.get_sample_value("decision_pipeline_decide_latency_seconds_bucket", {"le": "1.0"}) == 1


def test_its_memory_is_bounded_without_a_scrape() -> None:
    bulk = BulkHistogram("waits", "Waits.", BOUNDS, CollectorRegistry())
    for _ in range(5000):
        bulk.observe(0.5)
    assert len(bulk._values) < 1000
