"""Every metric, declared once, over a registry that is given. The help text is the documentation.

Components resolve their label children when they are made, never per record. No user id, attribute or request id is
a label. Names carry their unit; counters end in `_total`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from pipeline.version import versions

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# Up to an hour: a backlog is worked off after an outage, and the wait of each request in it counts.
_WAITED_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_USERS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_EVENTS = (1, 10, 50, 100, 500, 1000, 2500, 5000, 7500, 10_000)


class BulkHistogram(Collector):
    """A histogram without labels for values of single records: a value costs a tenth of what `observe` of the client's
    own histogram costs.

    Values are gathered and sorted into buckets a thousand at a time, and when they are scraped. Only the event loop's
    thread may use it.
    """

    _labelnames = ()  # as the library's own metrics have it
    _GATHERED = 1000

    def __init__(self, name: str, text: str, buckets: Sequence[float], registry: CollectorRegistry) -> None:
        self._name = name
        self._text = text
        self.bounds = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0
        self._values: list[float] = []
        registry.register(self)

    def observe(self, value: float) -> None:
        self._values.append(value)
        if len(self._values) >= self._GATHERED:
            self._count()

    def observe_all(self, values: Iterable[float]) -> None:
        self._values += values
        if len(self._values) >= self._GATHERED:
            self._count()

    def _count(self) -> None:
        values, self._values = self._values, []
        self._sum += sum(values)
        values.sort()
        below = 0
        for bucket, bound in enumerate(self.bounds):
            end = bisect_right(values, bound, below)
            self._counts[bucket] += end - below
            below = end
            if below == len(values):
                return
        self._counts[-1] += len(values) - below

    def describe(self) -> Iterable[HistogramMetricFamily]:
        return [HistogramMetricFamily(self._name, self._text)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        self._count()
        buckets, total = [], 0
        for bound, count in zip((*self.bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append((floatToGoString(bound), float(total)))  # type: ignore[no-untyped-call]
        return [HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)]


class Metrics:
    """The worker's metrics. One instance for a process; tests make their own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"decision_pipeline_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"decision_pipeline_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"decision_pipeline_{name}", text, labels, registry=registry, buckets=buckets)

        def bulk_histogram(name: str, text: str, buckets: tuple[float, ...]) -> BulkHistogram:
            return BulkHistogram(f"decision_pipeline_{name}", text, buckets, registry)

        # Memory, CPU, start time and open files of the process, by the names that all programs have for them (Linux).
        ProcessCollector(registry=registry)

        self.build_info = gauge(
            "build_info", "Always 1: the versions of the program, of Python and of aiokafka.", *versions()
        )

        # Kafka: what comes in, what is under way, what goes out
        self.records_consumed = counter("records_consumed_total", "Records taken from a topic.", "role", "topic")
        self.records_settled = counter("records_settled_total", "Records whose effect is durable.", "role", "topic")
        self.records_in_flight = gauge("records_in_flight", "Records taken and not yet settled.", "role")
        self.bytes_in_flight = gauge(
            "bytes_in_flight",
            "Records taken and not yet settled: their bytes, their results, and what handling them takes.",
            "role",
        )
        self.lag_records = gauge(
            "lag_records",
            "Records behind the end of an owned partition, by settled offset.",
            "role",
            "topic",
            "partition",
        )
        self.lag_seconds = gauge(
            "lag_seconds",
            "Age of the oldest record taken and not settled; 0 when none is, whatever still waits: see lag_records.",
            "role", "topic", "partition",
        )  # fmt: skip
        self.partitions_owned = gauge("partitions_owned", "Partitions owned by this process.", "role")
        self.partitions_full = gauge(
            "partitions_full",
            "Owned partitions not asked for records: their window is full. HELD_BYTES is seen in bytes_in_flight.",
            "role",
        )
        self.partitions_blocked = gauge(
            "partitions_blocked",
            "Owned partitions that cannot be worked on: the results topic has too few partitions.",
            "role",
        )
        self.rebalances = counter("rebalances_total", "Times partitions were assigned to this process.", "role")
        self.commits = counter("commits_total", "Offset commits by outcome: ok, failed.", "role", "outcome")
        self.offsets_lost = counter(
            "offsets_out_of_range_total",
            "Partitions whose committed offset was no longer in the log: records were lost.",
            "role",
            "topic",
        )
        self.topics_recreated = counter(
            "topics_recreated_total",
            "Topics found deleted and created again, once for each new one: unread records of the old one were lost.",
            "role",
            "topic",
        )
        self.takeover_seconds = histogram(
            "takeover_scan_seconds", "Time to find what a previous owner had published, per assignment.", _SECONDS
        )
        self.results_recovered = counter(
            "results_recovered_total", "Requests read again whose result was already published: not decided again."
        )
        self.records_produced = counter("records_produced_total", "Records acknowledged by Kafka.", "topic")
        self.produce_seconds = histogram("produce_seconds", "Time until Kafka acknowledged a batch.", _SECONDS, "topic")
        self.produce_retries = counter(
            "produce_retries_total", "Batches that waited for a slot and asked again.", "topic"
        )
        self.kafka_last_response = gauge(
            "kafka_last_response_timestamp_seconds",
            "When Kafka last answered a request (heartbeat, fetch, produce; Unix time, 0: not yet). "
            "Idle, a role sends no produce; without partitions it sends no fetch.",
            "role", "request",
        )  # fmt: skip
        self.dead_letters = counter("dead_letters_total", "Records written to the dead letters.", "role", "reason")

        # Decide
        self.decide_requests = counter(
            "decide_requests_total",
            "Decide requests by outcome: decided, error, expired, rejected.",
            "outcome",
        )
        self.decide_seconds = histogram(
            "decide_chunk_seconds", "Time the event loop was held by one chunk of requests.", _SECONDS
        )

        self.decide_latency = bulk_histogram(
            "decide_latency_seconds",
            "Time from a request record's timestamp until Kafka acknowledged its result, errors and expired counted. "
            "With CreateTime the producer's clock is part of it; a timestamp in the future, or none, counts as 0. "
            "A replayed dead letter counts from its own append.",
            _WAITED_SECONDS,
        )

        # Datafiles
        self.datafile_polls = counter(
            "datafile_polls_total",
            "Datafile requests by outcome: new, unchanged, refused (bad content), denied (401, 403, 404), failed.",
            "sdk_key", "outcome",
        )  # fmt: skip
        self.datafile_loaded = gauge(
            "datafile_last_success_timestamp_seconds", "When a datafile was last confirmed.", "sdk_key"
        )
        self.datafile_denied = gauge(
            "datafile_key_denied",
            "1 while the CDN answers 401, 403 or 404 for the key. Never loaded: its requests get an error.",
            "sdk_key",
        )
        self.datafile_stale = gauge(
            "datafile_stale", "1 while the last good answer is older than `optimizely.stale_after`.", "sdk_key"
        )
        self.datafile_compile_seconds = histogram("datafile_compile_seconds", "Time to compile a datafile.", _SECONDS)

        # Segments
        self.segment_lookups = counter(
            "segment_lookups_total",
            "Segment look-ups: hit, miss, shared (the user is being asked about), bypass (IGNORE_CACHE), unknown "
            "(remembered to be unknown to ODP).",
            "outcome",
        )
        self.segment_cache_entries = gauge("segment_cache_entries", "Users whose segments are remembered.")
        self.segment_cache_evictions = counter(
            "segment_cache_evictions_total", "Entries put out because the cache was full."
        )
        self.segment_failures = counter(
            "segment_failures_total", "Requests whose user's segments could not be had.", "reason"
        )
        self.segment_wait = bulk_histogram(
            "segment_wait_seconds",
            "Time from the first question for a user's segments until the answer, or the failure, came. "
            "Remembered segments are not waited for.",
            _WAITED_SECONDS,
        )
        self.odp_queries = counter(
            "odp_queries_total", "GraphQL requests by outcome: ok, partial, unavailable, denied, refused.", "outcome"
        )
        self.odp_query_seconds = histogram("odp_query_seconds", "Time of one GraphQL request.", _SECONDS)
        self.odp_users_per_query = histogram("odp_users_per_query", "Users in one GraphQL request.", _USERS)
        self.odp_queries_in_flight = gauge("odp_queries_in_flight", "GraphQL requests under way.")

        # Sticky profiles
        self.profile_lookups = counter(
            "profile_lookups_total",
            "Profiles looked up: found, none (a new user), failed, unreadable. After the last two nothing is kept.",
            "outcome",
        )
        self.profile_saves = counter(
            "profile_saves_total",
            "Profiles saved: ok, failed, unreadable (something else lies there, and stays).",
            "outcome",
        )
        self.profile_request_seconds = histogram(
            "profile_request_seconds", "Time of one request to Redis: lookup, save.", _SECONDS, "operation"
        )

        # Predictions
        self.cmab_lookups = counter(
            "cmab_lookups_total", "Predictions looked up: hit, miss, bypass (IGNORE_CMAB_CACHE).", "outcome"
        )
        self.cmab_requests = counter(
            "cmab_requests_total",
            "Prediction requests: ok, retried, failed. Not made: overloaded (too many wait), held (no answer comes).",
            "outcome",
        )
        self.cmab_request_seconds = histogram("cmab_request_seconds", "Time of one prediction request.", _SECONDS)
        self.cmab_cache_entries = gauge("cmab_cache_entries", "Predictions remembered.")
        self.cmab_cache_evictions = counter(
            "cmab_cache_evictions_total", "Predictions put out because the cache was full."
        )

        # Events
        self.dispatches = counter(
            "dispatches_total", "Event requests: ok, retried, denied, split, refused.", "destination", "outcome"
        )
        self.dispatched_events = counter(
            "dispatched_events_total", "Events accepted by their destination.", "destination"
        )
        self.dispatched_bytes = counter("dispatched_bytes_total", "Bytes of accepted requests.", "destination")
        self.events_per_dispatch = histogram(
            "events_per_dispatch", "Events in one accepted request.", _EVENTS, "destination"
        )
        self.dispatch_seconds = histogram("dispatch_seconds", "Time of one event request.", _SECONDS, "destination")
        self.dispatch_cuts = counter(
            "dispatch_cuts_total", "What closed a batch: count, bytes, linger, drain.", "destination", "trigger"
        )

        # Upstreams: kafka, cdn, odp_segments, odp_events, logx, cmab, redis
        self.upstream_blocked = gauge(
            "upstream_blocked",
            "1 during an outage of a service: unavailable, denied (access), refused (no answer of it can be used). "
            "Upstreams: kafka, cdn, odp_segments, odp_events, logx, cmab, redis.",
            "upstream",
            "reason",
        )
        self.upstream_last_response = gauge(
            "upstream_last_response_timestamp_seconds",
            "When a service last gave a good answer (Unix time, 0: not yet). Most are asked on demand only.",
            "upstream",
        )

        # Process
        self.loop_stall_seconds = gauge(
            "event_loop_longest_stall_seconds", "Longest time the event loop was held since the start."
        )
