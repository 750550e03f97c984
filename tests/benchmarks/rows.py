"""The contenders of a load: ours, alone and with the second role, the floors, and the naive worker.

Each row of the table is one load with all of them in the same run, round after round in turn, so that what the machine
does beside it falls on all.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Self
from uuid import uuid4

from pipeline.decision import Facts, answer
from pipeline.messages.decide import parse_decide_request
from pipeline.project import compile_datafile
from pipeline.sandbox.processes import free_port
from pipeline.sandbox.worker import worker_environment
from tests.benchmarks.contenders.job import Job
from tests.benchmarks.loads import CACHED, MAIN, TWELVE, Load
from tests.benchmarks.project import SEGMENT
from tests.benchmarks.rig import PARTITIONS, Part, Rig, Taken

SDK_KEY = "benchProduction01"
DECIDE, BOTH = "decide", "decide + logx"
FLOOR, TWO_HOPS = "floor", "two-hop floor"
NAIVE, NAIVE_EVENTS = "naive, no events", "naive"
ALONE = (FLOOR, DECIDE, NAIVE)
CONTENDERS = (*ALONE, TWO_HOPS, BOTH, NAIVE_EVENTS)


def loads(*, quick: bool) -> list[tuple[Load, Sequence[str]]]:
    """The loads that are compared, each with who takes part; what a quick run gives is what bounds can be on."""
    if quick:
        return [(CACHED, CONTENDERS), (TWELVE, ALONE)]
    return [(load, CONTENDERS) for load in MAIN]


class Stand:
    """One load on the rig: its topic is filled, its datafile published. A context manager that removes the topics."""

    def __init__(self, rig: Rig, load: Load, *, partitions: int = PARTITIONS, filled: bool = True) -> None:
        """`filled`: whether the requests are there already, as they are unless their rate is what matters."""
        self.rig = rig
        self.load = load
        self.partitions = partitions
        self._filled = filled
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._set_up()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _set_up(self) -> None:
        self.requests = self.topic("requests")
        if self._filled:
            self.fill()
        self._others = {name: self.topic(name.replace("_", "-"), 1) for name in ("track_events", "odp_events")}
        self._others["dead_letters"] = self.topic("dead-letters", 1)
        document = self.load.datafile(self.rig.stand_ins.odp_host)
        self.publish(document)
        self._datafile = self._file("datafile.json", document)
        self._result = self._file("result.json", _result(self.load, document))

    def fill(self) -> None:
        """Write the load's requests."""
        self.rig.fill(self.requests, self.load.values())

    def publish(self, document: bytes) -> None:
        """Make this the datafile of the workers that start from now on."""
        self.rig.stand_ins.put_datafile(SDK_KEY, document)

    def topic(self, name: str, partitions: int | None = None) -> str:
        """A new topic, which goes when the stand does."""
        made = self.rig.new_topic(name, partitions or self.partitions)
        self._stack.callback(self.rig.delete_topics, made)
        return made

    def run(self, contender: str, seconds: float) -> list[Taken]:
        """One round of one contender; what each of its parts took for a request, or for the impressions of one."""
        with ExitStack() as stack:
            results = self.rig.new_topic("results", self.partitions)
            stack.callback(self.rig.delete_topics, results)
            return self.rig.measure(self.parts(contender, results), seconds=seconds)

    def parts(self, contender: str, results: str) -> list[Part]:
        """The processes of a contender that write to `results`."""
        match contender:
            case "decide":
                return [self.worker(results, "decide")]
            case "decide + logx":
                return [self.worker(results, "decide"), self.worker(results, "logx")]
            case "floor":
                return [self._job("floor", results)]
            case "two-hop floor":
                return [self._job("floor", results), self._job("second_hop", results)]
            case "naive, no events":
                return [self._job("naive", results)]
            case "naive":
                return [self._job("naive", results, sink=f"{self.rig.sink}/v1/events")]
        raise ValueError(contender)

    def worker(self, results: str, role: str, *, group: str | None = None, **settings: str) -> Part:
        """Our process for a role, as it runs in production."""
        own = {
            "KAFKA__BOOTSTRAP_SERVERS": self.rig.bootstrap_servers,
            "KAFKA__GROUP_ID": group or f"bench-{uuid4().hex[:6]}",
            "OPS__PORT": str(free_port()),
            "OPTIMIZELY__SDK_KEYS": SDK_KEY,
            "OPTIMIZELY__DATAFILE_URL_TEMPLATE": self.rig.stand_ins.cdn_url_template,
            "ODP__ALLOWED_HOSTS": "127.0.0.1",
            "ODP__ALLOW_HTTP": "true",
            "LOGX__URL": f"{self.rig.sink}/v1/events",
            "LOGX__EU_URL": f"{self.rig.sink}/v1/events",
            **self.load.settings,
            **settings,
        }
        topics = {"decide_requests": self.requests, "decide_results": results, **self._others}
        named = {f"TOPICS__{field.upper()}": name for field, name in topics.items()}
        environment = worker_environment(named | own, topics=_NOTHING)
        return Part(
            name=role, command=[sys.executable, "-m", "pipeline", "run", "--roles", role], environment=environment,
            finished=self.impressions() if role == "logx" else self.results(results), total=self.load.requests,
            errors=partial(_errors, own["OPS__PORT"]),
        )  # fmt: skip

    def results(self, topic: str) -> Callable[[], int]:
        """Counts the results of a topic."""
        return lambda: self.rig.end_of(topic, self.partitions)

    def impressions(self) -> Callable[[], int]:
        """Counts what the sink takes from now on, in requests whose impressions are there."""
        before = self.rig.sunk()["events"]
        return lambda: (self.rig.sunk()["events"] - before) // self.load.impressions

    def _job(self, module: str, results: str, *, sink: str = "") -> Part:
        second = module == "second_hop"
        job = Job(
            bootstrap_servers=self.rig.bootstrap_servers, group=f"{module}-{uuid4().hex[:6]}",
            source=results if second else self.requests, results=results,
            sink=f"{self.rig.sink}/v1/events" if second else sink,
            document=str(self._result), datafile=str(self._datafile), segments=(SEGMENT,) if self.load.segments else (),
        )  # fmt: skip
        return Part(
            name=module, command=[sys.executable, "-m", f"tests.benchmarks.contenders.{module}", job.argument],
            environment=worker_environment(_NOTHING, topics=_NOTHING),
            finished=self.impressions() if second else self.results(results), total=self.load.requests,
        )  # fmt: skip

    def _file(self, name: str, content: bytes) -> Path:
        path = self.rig.directory / f"{self.load.name}-{name}"
        path.write_bytes(content)
        return path


_NOTHING: Mapping[str, str] = {}
_ERRORS = 'decision_pipeline_decide_requests_total{outcome="error"} '


def _errors(port: str) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(int(float(line.removeprefix(_ERRORS))) for line in lines if line.startswith(_ERRORS))


def _result(load: Load, document: bytes) -> bytes:
    """What the worker answers to a request of this load."""
    _, value = next(load.values())
    request = parse_decide_request(value, max_bytes=1024**2)
    facts = Facts(segments=frozenset({SEGMENT}))
    rendered = answer(compile_datafile(document), request, facts, source="decide.requests-3-100000", timestamp=1).value
    assert json.loads(rendered)["tracking"]["impressions"], "this load would owe no impression"
    return rendered


def rounds(stand: Stand, contenders: Sequence[str], *, count: int, seconds: float) -> dict[str, list[list[Taken]]]:
    """All contenders, one after the other, again and again; contender -> round -> part."""
    taken: dict[str, list[list[Taken]]] = {contender: [] for contender in contenders}
    for _ in range(count):
        for contender in contenders:
            taken[contender].append(stand.run(contender, seconds))
    return taken
