"""What the tests of handlers share: datafiles already there, a chunk that takes results, values of metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry

from pipeline.datafile.poller import Datafiles
from pipeline.messages.delivery import Result
from pipeline.metrics import Metrics
from pipeline.project import ProjectConfig
from tests.settled import Record, RecordingChunk


class Loaded(Datafiles):
    """Datafiles that were loaded, or have an error; nothing is polled."""

    def __init__(self, projects: Mapping[str, ProjectConfig], errors: Mapping[str, str] | None = None) -> None:
        self.projects = dict(projects)
        self.errors = dict(errors or {})

    def project(self, sdk_key: str) -> ProjectConfig | None:
        return self.projects.get(sdk_key)

    def error(self, sdk_key: str) -> str | None:
        return self.errors.get(sdk_key, "unknown SDK key") if sdk_key not in self.projects else None

    @property
    def sole_key(self) -> str | None:
        keys = [*self.projects, *self.errors]
        return keys[0] if len(keys) == 1 else None


@dataclass(slots=True, eq=False)
class PublishingChunk(RecordingChunk):
    """Keeps results in the order in which they were published; `log` may be shared by several chunks."""

    log: list[Result] = field(default_factory=list)
    publishes: int = 0
    has_room: bool = True
    held_back: list[Callable[[], object]] = field(default_factory=list)

    def when_room(self, go_on: Callable[[], object]) -> None:
        if self.has_room:
            go_on()
        else:
            self.held_back.append(go_on)

    def let_go_on(self) -> None:
        """Kafka has taken some."""
        held_back, self.held_back = self.held_back, []
        for go_on in held_back:
            go_on()

    def publish(self, results: Sequence[Result]) -> None:
        assert results, "an empty publish settles nothing"
        self.publishes += 1
        self.settled += len(results)
        self.log.extend(results)

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(result.value) for result in self.log]

    @property
    def reasons(self) -> list[str]:
        return [why.reason for _, why in self.rejected]


class Expecting(RecordingChunk):
    """Counts further settlements that were asked for."""

    expected = 0

    def expect(self, count: int) -> None:
        self.expected += count


def records(*values: Mapping[str, Any] | bytes | None, first: int = 0, **common: Any) -> list[Record]:
    """Consecutive records of one partition, keyed by their user."""
    made = []
    for offset, value in enumerate(values, first):
        raw = json.dumps(value).encode() if isinstance(value, Mapping) else value
        key = str(value["userId"]).encode() if isinstance(value, Mapping) and "userId" in value else b"key"
        made.append(Record(raw, offset, **({"key": key} | common)))
    return made


def new_metrics() -> Metrics:
    return Metrics(CollectorRegistry())


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"decision_pipeline_{name}", labels) or 0.0
