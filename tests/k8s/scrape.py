"""Alerts and dashboard, asked of a real Prometheus that scrapes a real worker under mixed traffic.

`python -m tests.k8s.scrape` (`make prometheus`, a part of `make check`) starts Kafka, Redis, the stand-ins, a worker
and Debian's Prometheus with the rules loaded, evaluates every alert and every query of the dashboard, and prints what
each gave. Ends with 1 if one cannot be evaluated, if a panel is empty that should not be, or if an alert is active that
should be quiet. Everything it starts ends with it. No test: no wheel carries Prometheus.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from pipeline.errors import StartFailed
from pipeline.sandbox.kafka import LocalKafka
from pipeline.sandbox.processes import StandIns, until
from pipeline.sandbox.project_data import API_KEYS, datafile
from pipeline.sandbox.traffic import Sent, Stream, decide_requests, odp_events, track_events
from pipeline.sandbox.worker import Worker
from tests.flows.wire import Outgoing, Writer
from tests.k8s.dashboard import QUERIES, VARIABLES, resolved, selector_and_label
from tests.k8s.prometheus import Prometheus, QueryFailed, Series, running
from tests.k8s.prometheus_rule import RULES
from tests.k8s.promql import exported
from tests.patience import PATIENCE
from tests.redis_server import RedisServer
from tests.support import create_topics, unique_topics, worker_env

PARTITIONS = 4
REQUESTS, CONVERSIONS, ODP_EVENTS = 3000, 400, 200
LABELS = {"job": "decision-pipeline", "namespace": "decisions", "pod": "decision-pipeline-0"}
QUICK = {"LOGX__LINGER": "0.3", "ODP__EVENT_LINGER": "0.3"}

_SAMPLED = "work may be done between two scrapes"
_UNTROUBLED = "nothing of the kind happens here"
STILL = {
    "Age of the oldest record not settled (A)": _SAMPLED,
    "Records behind (A)": _SAMPLED,
    "Lag (A)": _SAMPLED,
    "Records under way (A)": _SAMPLED,
    "Bytes under way, fullest worker (A)": _SAMPLED,
    "Queries under way, busiest worker (A)": _SAMPLED,
    "Partitions not asked for records (A)": _UNTROUBLED,
    "Partitions not asked for records (B)": _UNTROUBLED,
    "Batches that had to wait for a slot (A)": _UNTROUBLED,
    "Results found published already (A)": _UNTROUBLED,
    "Users put out because the cache was full (A)": _UNTROUBLED,
    "Profiles that could not be read or saved (A)": _UNTROUBLED,
    "Profiles that could not be read or saved (B)": _UNTROUBLED,
    "Predictions that could not be had (A)": _UNTROUBLED,
    "Predictions put out because the cache was full (A)": _UNTROUBLED,
    "Denied and stale keys (B)": _UNTROUBLED,
    "Longest stall of the event loop since the start (A)": _UNTROUBLED,
    "Partitions whose records were lost (A)": _UNTROUBLED,
    "Partitions whose records were lost (B)": _UNTROUBLED,
    "Starts within the last hour (A)": _UNTROUBLED,
    "Rebalances (A)": "the only one comes before the first scrape of its series",
}
"""Queries of panels that may show nothing but 0, each with the reason; every other one must rise above it."""

ACTIVE = {
    "DecisionPipelineDatafileDenied": "the CDN denies one of the three SDK keys",
    "DecisionPipelineDeadLetters": "one record in twenty is broken",
}
"""Alerts whose expression must hold, each with the reason; every other one must be quiet."""

EITHER = dict.fromkeys(
    ("DecisionPipelineLatencyBudgetBurnsFast", "DecisionPipelineLatencyBudgetBurns"),
    "all requests come in one burst, and how long that takes is up to the machine",
)
"""Alerts whose expression may hold or not."""


class Asked(NamedTuple):
    """An alert or a query of a panel, what it gave, and why that was to be expected."""

    name: str
    series: list[Series]
    note: str

    @property
    def moved(self) -> int:
        """How many of its series were more than 0 at some time."""
        return sum(any(series.values) for series in self.series)


def with_a_bandit(project: dict[str, Any]) -> bytes:
    """The sandbox's datafile with a contextual bandit in one flag, so that its traffic asks for predictions."""
    key = "dark_mode"
    variations = [{"id": f"3010{n}", "key": name, "featureEnabled": n > 1} for n, name in enumerate(("off", "on"), 1)]
    bandit = {
        "id": "3010", "key": "dark_bandit", "layerId": "93010", "status": "Running", "audienceIds": [],
        "forcedVariations": {}, "variations": variations, "trafficAllocation": [],
        "cmab": {"attributeIds": ["801"], "trafficAllocation": 10_000},
    }  # fmt: skip
    flags = [flag | ({"experimentIds": ["3010"]} if flag["key"] == key else {}) for flag in project["featureFlags"]]
    return json.dumps(project | {"experiments": [*project["experiments"], bandit], "featureFlags": flags}).encode()


class Scene:
    """A worker on topics of its own, whose start waits for the CDN, and who may send to it."""

    def __init__(self, stack: ExitStack) -> None:
        kafka = stack.enter_context(LocalKafka())
        self.stand_ins = stack.enter_context(StandIns())
        self.topics = unique_topics()
        for sdk_key in API_KEYS:
            self.stand_ins.put_datafile(sdk_key, with_a_bandit(datafile(sdk_key, self.stand_ins.odp_host)))
        asyncio.run(create_topics(kafka.bootstrap_servers, self.topics, PARTITIONS, PARTITIONS))
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="decision-pipeline-scrape-")))
        redis = stack.enter_context(RedisServer(log=directory / "redis.log"))
        # A machine that is busy is no trouble of Redis.
        settings = QUICK | {"PROFILES__REDIS_URL": redis.url, "PROFILES__TIMEOUT": "5"}
        environment = worker_env(kafka, self.topics, self.stand_ins, settings)
        self.worker = Worker(environment, log=directory / "worker.log", remove=directory)
        self._writer = Writer(kafka.bootstrap_servers)
        # What happens at a start happens after the first scrape: a rate sees nothing of a series that begins above 0.
        self.stand_ins.control("cdn", status=503)
        stack.callback(self.worker.stop)
        self.worker.start()

    def go(self) -> None:
        """The CDN answers, and the worker begins."""
        self.stand_ins.control("cdn", status=None)
        self.worker.wait_ready()

    def topic(self, stream: Stream) -> str:
        return str(getattr(self.topics, stream))

    def send(self, stream: Stream, records: Iterable[Sent]) -> None:
        self._writer.send(self.topic(stream), [Outgoing(record.value, record.key) for record in records])


def under_traffic(scene: Scene, prometheus: Prometheus) -> None:
    """Let the worker begin, send everything in three parts with scrapes between, until Prometheus has seen it done."""
    _after_a_scrape(prometheus)
    scene.go()
    traffic: dict[Stream, list[Sent]] = {
        "decide_requests": list(decide_requests(REQUESTS)),
        "track_events": list(track_events(CONVERSIONS)),
        "odp_events": list(odp_events(ODP_EVENTS)),
    }
    for part in range(3):
        _after_a_scrape(prometheus)
        for stream, records in traffic.items():
            scene.send(stream, records[part::3])
    for stream, records in traffic.items():
        topic = scene.topic(stream)
        _seen(prometheus, f'sum(decision_pipeline_records_settled_total{{topic="{topic}"}})', len(records))
    # How far behind each partition of these topics and of the results is, a worker looks at every now and then.
    _seen(prometheus, "count(decision_pipeline_lag_records)", PARTITIONS * (len(traffic) + 1))
    _after_a_scrape(prometheus)


def _seen(prometheus: Prometheus, expression: str, value: int) -> None:
    """Wait until an expression has this value."""
    what = f"{expression} = {value}"
    until(lambda: prometheus.value(expression) == value, timeout=PATIENCE, interval=0.2, what=what)


def _after_a_scrape(prometheus: Prometheus) -> None:
    """Wait for one more good scrape."""
    scrapes = "sum(sum_over_time(up[10m]))"
    before = prometheus.value(scrapes)
    try:
        until(lambda: prometheus.value(scrapes) > before, timeout=PATIENCE, interval=0.2, what="a scrape")
    except TimeoutError as error:
        raise StartFailed(f"{error}; the target is {prometheus.target()}") from error


class Asking:
    """Every alert, panel and variable put to Prometheus; what is wrong is collected in `faults`."""

    def __init__(self, prometheus: Prometheus, *, seconds: float) -> None:
        self.faults: list[str] = []
        self._prometheus = prometheus
        self._seconds = seconds

    def panels(self) -> list[Asked]:
        """What each query of the dashboard drew since the first scrape."""
        asked = []
        for title, target in QUERIES:
            name, expression = f"{title} ({target['refId']})", resolved(target["expr"])
            series = self._evaluated(name, partial(self._prometheus.over, expression, seconds=self._seconds))
            found = Asked(name, series, STILL.get(name, ""))
            if not series:
                self.faults.append(f"the panel {name} is empty")
            elif not found.moved and name not in STILL:
                self.faults.append(f"the panel {name} shows nothing but 0")
            asked.append(found)
        return asked

    def alerts(self) -> list[Asked]:
        """What each alert's expression gives now, which is what its state must follow from."""
        asked = []
        for group in self._prometheus.rule_groups():
            for rule in group["rules"]:
                name, expression = rule["name"], rule["query"]
                if (rule["health"], rule.get("lastError", "")) != ("ok", ""):
                    self.faults.append(f"the alert {name} is {rule['health']}: {rule.get('lastError')}")
                series = self._evaluated(name, partial(self._prometheus.instant, expression))
                if bool(series) != (name in ACTIVE) and name not in EITHER:
                    self.faults.append(f"the alert {name} should {'hold' if name in ACTIVE else 'be quiet'}")
                if rule["state"] == "firing":
                    self.faults.append(f"the alert {name} fires within a minute")
                asked.append(Asked(name, series, (ACTIVE | EITHER).get(name, "quiet, as it should be")))
        return asked

    def variables(self) -> dict[str, list[str]]:
        """What each variable of the dashboard offers."""
        offered = {}
        for variable in VARIABLES:
            selector, label = selector_and_label(variable)
            values = offered[variable["name"]] = self._prometheus.label_values(selector, label)
            if not values:
                self.faults.append(f"the variable {variable['name']} offers nothing")
        return offered

    def _evaluated(self, name: str, ask: Callable[[], list[Series]]) -> list[Series]:
        try:
            return ask()
        except QueryFailed as error:
            self.faults.append(f"{name} cannot be evaluated: {error}")
            return []


def report(kind: str, asked: list[Asked]) -> None:
    """A table of them."""
    width = max(len(one.name) for one in asked)
    print(f"\n{kind:<{width}}  series  above 0")
    for one in asked:
        print(f"{one.name:<{width}}  {len(one.series):>6}  {one.moved:>7}  {one.note}".rstrip())
    given = sum(bool(one.series) for one in asked)
    print(f"{len(asked)} evaluated: {given} gave series, {len(asked) - given} gave none")


def unseen(prometheus: Prometheus) -> list[str]:
    """What a worker can export and this one did not."""
    seen = {one.labels["__name__"] for one in prometheus.instant('{job="decision-pipeline"}')}
    return sorted(exported().keys() - seen)


def main() -> int:
    began = time.monotonic()
    with ExitStack() as stack:
        scene = Scene(stack)
        prometheus = stack.enter_context(
            running(target=f"127.0.0.1:{scene.worker.port}", labels=LABELS, rules=[RULES])
        )  # fmt: skip
        under_traffic(scene, prometheus)
        asking = Asking(prometheus, seconds=time.monotonic() - began)
        report("Panel", asking.panels())
        report("Alert", asking.alerts())
        offered = ", ".join(f"{name}: {' '.join(values)}" for name, values in asking.variables().items())
        print(f"\nThe dashboard's variables offer {offered}.")
        asking.faults += [f"no series has the name {name}" for name in unseen(prometheus)]
        if not scene.worker.running:
            asking.faults.append(f"the worker ended:\n{scene.worker.log_tail()}")
    for fault in asking.faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if asking.faults else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (StartFailed, TimeoutError) as error:
        sys.exit(f"error: {error}")
