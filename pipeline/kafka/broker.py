"""Whether Kafka answers: heartbeats and fetches of each role's consumer, and batches that the producer was given.

A request that is under way for longer than `patience`, or that failed and was not answered since, is an outage. So an
idle producer, a role without partitions and a fetch that waits for records are none. All reliance on how aiokafka 0.14
sends a consumer's requests is in `BrokerMonitor.follow`; `tests/kafka/test_broker.py` fails if an upgrade changes it.
`assembly.py` makes the monitor, `sink.py` reports the batches.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.group import HeartbeatRequest

from pipeline.metrics import Metrics
from pipeline.outage import UNAVAILABLE, Upstream

HEARTBEAT, FETCH, PRODUCE = REQUESTS = ("heartbeat", "fetch", "produce")
# A broker answers a fetch without records after half a second.
_LEAST_PATIENCE = 2.0
_KINDS: dict[type, str] = {HeartbeatRequest: HEARTBEAT, FetchRequest: FETCH}

log = structlog.get_logger("pipeline.kafka")


@dataclass(slots=True)
class _Pending:
    since: float
    """When the first request that was not answered was sent."""
    failed_at: float | None = None
    """When the last one failed; None while one is under way."""


class Requests:
    """Requests of one kind, one at a time for each target: a node of the cluster, or a partition that is written."""

    def __init__(self, *, patience: float = _LEAST_PATIENCE, clock: Callable[[], float] = time.monotonic) -> None:
        self.answered_at = 0.0
        """Unix time of the last answer; 0 before the first."""
        self._patience = patience
        self._clock = clock
        self._pending: dict[Hashable, _Pending] = {}

    def began(self, target: Hashable) -> None:
        """A request is sent. One that repeats a failed request continues its wait."""
        pending = self._pending.get(target)
        if pending is None:
            self._pending[target] = _Pending(self._clock())
        else:
            pending.failed_at = None

    def answered(self, target: Hashable) -> None:
        self.answered_at = time.time()
        self._pending.pop(target, None)

    def failed(self, target: Hashable) -> None:
        """The request came back without an answer: timed out, no connection."""
        if target in self._pending:
            self._pending[target].failed_at = self._clock()

    def dropped(self, target: Hashable) -> None:
        """The request was cancelled by us. One that is overdue counts as failed: leaving the group ends no outage."""
        pending = self._pending.get(target)
        if pending is not None and pending.since < self._clock() - self._patience:
            self.failed(target)
        else:
            self._pending.pop(target, None)

    def unanswered_since(self, *, heard_at: float = 0.0) -> float | None:
        """When the request that waits longest was sent, if that is longer ago than the patience.

        A failed request is forgotten after that time if Kafka answered anything (at `heard_at`) since it failed: it is
        sent to another node by now, or to none, as its partitions were given back.
        """
        now = self._clock()
        overdue = now - self._patience
        for target, one in list(self._pending.items()):
            if one.failed_at is not None and one.failed_at < heard_at and one.failed_at < overdue:
                del self._pending[target]
        oldest = min((one.since for one in self._pending.values()), default=now)
        return oldest if oldest < overdue else None


class _Member:
    """Requests of a role's consumer, and the time at which it last heard anything of Kafka."""

    def __init__(self, *, patience: float, clock: Callable[[], float]) -> None:
        self.heard_at = clock()
        self.requests = {kind: Requests(patience=patience, clock=clock) for kind in (HEARTBEAT, FETCH)}


class BrokerMonitor:
    """Looks at all requests of a process regularly, and says in gauges and in the log whether Kafka answers.

    `patience` is two heartbeats' intervals, and longer than a fetch waits for records. A new leader, or a long
    collection of the broker's garbage, takes less.
    """

    def __init__(
        self, roles: Sequence[str], *, heartbeat_interval: float, metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.patience = max(_LEAST_PATIENCE, 2 * heartbeat_interval)
        self.upstream = Upstream("kafka", metrics, clock=clock)
        self.produce = Requests(patience=self.patience, clock=clock)
        """Of the one producer, which all roles share."""
        self._interval = min(1.0, heartbeat_interval / 2)
        self._clock = clock
        self._metrics = metrics
        self._members: dict[str, _Member] = {}
        self._outage = self.upstream.outage(begins="Kafka does not answer", ends="Kafka answers again", log=log)
        self._timer: asyncio.TimerHandle | None = None
        self._looked_at = clock()
        for role in roles:
            self._show(role, PRODUCE, self.produce)

    def follow(self, role: str, consumer: AIOKafkaConsumer) -> None:
        """Hear of the consumer's requests and their answers. aiokafka has no hook for them: `send` is wrapped.

        Its fetcher and its coordinator send everything through this method of the one client that they share.
        """
        member = self._members[role] = _Member(patience=self.patience, clock=self._clock)
        for kind, requests in member.requests.items():
            self._show(role, kind, requests)
        network: Any = consumer._client
        send = network.send

        async def followed(node_id: Any, request: Any, **named: Any) -> Any:
            requests = member.requests.get(_KINDS.get(type(request), ""))
            if requests is None:
                answer = await send(node_id, request, **named)
            else:
                answer = await _observed(requests, node_id, send(node_id, request, **named))
            member.heard_at = self._clock()
            return answer

        network.send = followed

    def _show(self, role: str, kind: str, requests: Requests) -> None:
        self._metrics.kafka_last_response.labels(role, kind).set_function(lambda: requests.answered_at)

    def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._tick)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self.start()
        now = self._clock()
        late, self._looked_at = now - self._looked_at > self.patience, now
        # A process that stood still itself has answers at its door which it has not read yet.
        if not late:
            self.look()

    def look(self) -> None:
        """Begin the outage, go on with it, or end it."""
        waits: dict[str, float] = {}
        answers = [self.produce.answered_at]
        for role, member in self._members.items():
            for kind, requests in member.requests.items():
                answers.append(requests.answered_at)
                since = requests.unanswered_since(heard_at=member.heard_at)
                if since is not None:
                    waits[f"{kind} of role {role}"] = since
        since = self.produce.unanswered_since()
        if since is not None:
            waits[PRODUCE] = since
        if waits:
            self._outage.begin(UNAVAILABLE, f"no answer to {', '.join(waits)}", since=min(waits.values()))
        elif self._outage.reason is not None:
            self._outage.end()
        self.upstream.answered_at = max(answers)


async def _observed(requests: Requests, target: Hashable, sending: Any) -> Any:
    requests.began(target)
    try:
        answer = await sending
    except asyncio.CancelledError:
        requests.dropped(target)
        raise
    except BaseException:
        requests.failed(target)
        raise
    requests.answered(target)
    return answer
