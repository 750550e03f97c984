"""Every metric, declared once, over a registry that is given. The help text is the documentation.

Components resolve their label children when they are made, never per record. No user id, attribute or request id is
a label. Names carry their unit; counters end in `_total`.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_USERS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_EVENTS = (1, 10, 50, 100, 500, 1000, 2500, 5000, 7500, 10_000)


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

        # Memory, CPU, start time and open files of the process, by the names that all programs have for them (Linux).
        ProcessCollector(registry=registry)

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
            "segment_lookups_total", "Segment look-ups: hit, miss, bypass (IGNORE_CACHE).", "outcome"
        )
        self.segment_cache_entries = gauge("segment_cache_entries", "Users whose segments are remembered.")
        self.segment_cache_evictions = counter(
            "segment_cache_evictions_total", "Entries put out because the cache was full."
        )
        self.segment_failures = counter(
            "segment_failures_total", "Users whose segments could not be fetched.", "reason"
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
        self.upstream_held = gauge(
            "upstream_held",
            "1 while requests to a service are held: reason unavailable or denied.",
            "upstream",
            "reason",
        )
        self.loop_stall_seconds = gauge(
            "event_loop_longest_stall_seconds", "Longest time the event loop was held since the start."
        )
