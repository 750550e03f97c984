"""Settings in, a wired worker out: every object is made here, once. What runs it is `runtime.py`."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Mapping
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, KafkaTimeoutError
from prometheus_client import CollectorRegistry, disable_created_metrics

from pipeline.api.operations import Operations
from pipeline.cmab import Predictions
from pipeline.datafile.poller import Datafiles
from pipeline.errors import ConfigurationError, StartFailed
from pipeline.handlers.decide import Decider
from pipeline.handlers.facts import FactSource
from pipeline.handlers.logx import ConversionsHandler, ImpressionsHandler
from pipeline.handlers.odp_events import OdpEventsHandler
from pipeline.kafka import client
from pipeline.kafka.broker import BrokerMonitor
from pipeline.kafka.consumer import GroupConsumer
from pipeline.kafka.consumer import Role as RoleSpec
from pipeline.kafka.dead_letters import DeadLetters
from pipeline.kafka.lease import Lease
from pipeline.kafka.partition import Handler
from pipeline.kafka.sink import Sink
from pipeline.kafka.takeover import Takeover
from pipeline.kafka.topic_ids import TopicIds
from pipeline.kafka.topics import TopicFacts, check_topics, topics_of
from pipeline.logx.dispatcher import Logx
from pipeline.metrics import Metrics
from pipeline.odp.events import OdpEvents
from pipeline.odp.segments import Segments
from pipeline.outage import Outage
from pipeline.profiles import make_profiles
from pipeline.runtime import Fence, give_up, until_stopped
from pipeline.settings import Role, Settings
from pipeline.transport import Transport
from pipeline.version import versions

log = structlog.get_logger("pipeline.worker")

# Of a request whose user waits: the objects it is made of, and the question for the segments.
_DECIDE_WEIGHT = 3 * 1024
# Long-lived objects are many (compiled datafiles, caches) and never garbage: the collector need not walk them.
_GC_THRESHOLD = 50_000
# A start that is broken off has nothing to finish.
_START_GRACE_SECONDS = 1.0


class Worker:
    """One process: its roles, its clients, its start and its stop in the order of the flow."""

    def __init__(self, settings: Settings, fence: Fence) -> None:
        if not settings.optimizely.sdk_keys:
            raise ConfigurationError(["PIPELINE_OPTIMIZELY__SDK_KEYS: name at least one SDK key"])
        self.settings = settings
        self._fence = fence
        # A second series for each counter that says when it was made: nobody asks, and each scrape carries them all.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.metrics.loop_stall_seconds.set_function(lambda: fence.longest)
        self.metrics.build_info.labels(**versions()).set(1)
        self.transport = Transport()
        self.datafiles = Datafiles(transport=self.transport, settings=settings.optimizely, metrics=self.metrics)
        self.operations = Operations(self, self.registry, settings.ops)
        self.segments = Segments(transport=self.transport, settings=settings.odp, metrics=self.metrics)
        self.profiles = make_profiles(settings.profiles, self.metrics)
        self.predictions = Predictions(transport=self.transport, settings=settings.cmab, metrics=self.metrics)
        self.decider: Decider | None = None
        self.logx = Logx(transport=self.transport, settings=settings.logx, metrics=self.metrics)
        self.odp_events = OdpEvents(transport=self.transport, settings=settings.odp, metrics=self.metrics)
        self.broker = BrokerMonitor(
            settings.roles, heartbeat_interval=settings.kafka.heartbeat_interval, metrics=self.metrics
        )
        self.upstreams = [
            self.broker.upstream, self.datafiles.upstream, self.segments.upstream, self.predictions.upstream,
            self.logx.upstream, self.odp_events.upstream,
        ]  # fmt: skip
        if self.profiles is not None and self.profiles.upstream is not None:
            self.upstreams.append(self.profiles.upstream)
        self.consumers: list[GroupConsumer] = []
        self._producer: AIOKafkaProducer | None = None
        self._others: list[AIOKafkaConsumer | AIOKafkaAdminClient] = []
        self._sinks: list[Sink] = []
        self._awaited = "the first connection to Kafka"
        self._began = time.monotonic()

    # The start

    async def start(self) -> None:
        """Raises StartFailed. May be cancelled at any point; `stop()` cleans up whatever there is."""
        settings = self.settings
        await self.transport.start()
        await self.operations.start()
        await self.datafiles.start()
        await client.wait_for_broker(settings.kafka)
        admin = await client.start_client(client.admin(settings.kafka))
        self._others.append(admin)
        topics = await check_topics(admin, settings.kafka, settings.topics, settings.roles)
        self._producer = await client.start_client(client.producer(settings.kafka, before_send=self._fence.check))
        # Consumption begins when every key has a datafile or is known to be bad: a request would be lost otherwise.
        self._awaited = "the datafiles"
        await self.datafiles.settled()
        self._awaited = ""
        self.broker.start()
        letters = self._sink(settings.topics.dead_letters, topics, None)
        for role in settings.roles:
            self.consumers.append(await self._consumer(role, admin, topics, letters))
        for consumer in self.consumers:
            await consumer.start()
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD)
        log.info("worker started", roles=list(settings.roles), group=settings.kafka.group_id, **versions())

    async def log_readiness(self) -> None:
        """Log `ready` once every role has its first partitions open. Cancelled by a stop before that."""
        for consumer in self.consumers:
            await consumer.assigned.wait()
        partitions = {consumer.role.name: len(consumer.partitions) for consumer in self.consumers}
        log.info("ready", partitions=partitions, seconds=round(time.monotonic() - self._began, 1))

    async def _consumer(
        self, role: Role, admin: AIOKafkaAdminClient, topics: Mapping[str, TopicFacts], letters: Sink
    ) -> GroupConsumer:
        kafka, names = self.settings.kafka, self.settings.topics
        scanner = await client.start_client(client.scanner(kafka))
        self._others.append(scanner)
        # After the scanner: nothing is awaited between its start and the consumer that stops it.
        consumer = await client.start_client(client.group_consumer(kafka, role))
        self.broker.follow(role, consumer)
        lease = Lease(kafka.session_timeout - kafka.heartbeat_interval)
        results = self._sink(names.decide_results, topics, lease) if role == "decide" else None
        read = topics_of(role, names)
        written = (names.dead_letters, *((results.topic,) if results else ()))
        takeover = Takeover(
            group_id=f"{kafka.group_id}.{role}", admin=admin, scanner=scanner, role=role,
            topic_ids=TopicIds(admin, role=role, topics=(*read, *written), metrics=self.metrics),
            results_topic=results.topic if results else None, topics=read, metrics=self.metrics,
        )  # fmt: skip
        dead_letters = DeadLetters(
            letters, role=role, metrics=self.metrics,
            max_bytes=min(int(kafka.max_dead_letter_bytes), topics[names.dead_letters].max_bytes),
        )  # fmt: skip
        max_result_bytes = min(int(kafka.max_record_bytes), topics[names.decide_results].max_bytes) if results else 0
        return GroupConsumer(
            self._role(role, max_result_bytes), consumer=consumer, lease=lease, takeover=takeover, results=results,
            dead_letters=dead_letters, settings=kafka, drain_seconds=self.settings.ops.drain,
            metrics=self.metrics, fail=give_up,
        )  # fmt: skip

    def _sink(self, topic: str, topics: Mapping[str, TopicFacts], lease: Lease | None) -> Sink:
        assert self._producer is not None
        partitions = topics[topic].partitions
        sink = Sink(
            self._producer, topic, partitions=partitions, metrics=self.metrics, fail=give_up, lease=lease,
            requests=self.broker.produce,
        )  # fmt: skip
        self._sinks.append(sink)
        return sink

    def _role(self, role: Role, max_result_bytes: int) -> RoleSpec:
        settings, kafka = self.settings, self.settings.kafka
        topics = topics_of(role, settings.topics)
        max_bytes = int(kafka.max_record_bytes)
        if role == "decide":
            facts = FactSource(
                datafiles=self.datafiles, segments=self.segments, profiles=self.profiles,
                predictions=self.predictions, max_result_bytes=max_result_bytes,
            )  # fmt: skip
            decider = self.decider = Decider(
                datafiles=self.datafiles, facts=facts, settings=settings.decide,
                max_record_bytes=max_bytes, metrics=self.metrics,
            )  # fmt: skip
            return RoleSpec(
                role, topics, kafka.window_records, handler=lambda _: decider.handler(), weight=_DECIDE_WEIGHT
            )
        if role == "odp_events":
            return RoleSpec(
                role, topics, kafka.window_records,
                handler=lambda _: OdpEventsHandler(self.odp_events, self.datafiles, max_record_bytes=max_bytes),
                flush=self.odp_events.drain, held=lambda: self.odp_events.held,
            )  # fmt: skip

        def of_topic(topic: str) -> Handler:
            if topic == settings.topics.decide_results:
                return ImpressionsHandler(self.logx, settings.logx)
            return ConversionsHandler(self.logx, self.datafiles, max_record_bytes=max_bytes)

        return RoleSpec(
            role, topics, kafka.logx_window_records,
            handler=of_topic, flush=self.logx.drain, held=lambda: self.logx.held,
        )  # fmt: skip

    # The stop

    async def stop(self) -> None:
        """In the order of the flow: decide, then what follows from its results, then the clients and the server.

        Three quarters of the time are for finishing politely; what a service has not taken by then is read again. What
        Kafka has not acknowledged by the deadline ends the process: it may not be sent twice.
        """
        seconds = self.settings.ops.drain
        deadline = time.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds):
                for wave in (("decide",), ("logx", "odp_events")):
                    left = deadline - time.monotonic()
                    stopping = [consumer for consumer in self.consumers if consumer.role.name in wave]
                    await asyncio.gather(*(consumer.stop(seconds=left) for consumer in stopping))
                await self._close()
        except TimeoutError:
            unsent = sorted(sink.topic for sink in self._sinks if sink.sending)
            what = f"Kafka has not acknowledged what was written to {', '.join(unsent)}: " if unsent else ""
            give_up(f"{what}the stop took longer than {seconds:g} s")
        except Exception as error:  # noqa: BLE001 - boundary of the process: as a line of the log, not a traceback
            give_up("the stop failed", error)
        log.info("worker stopped", seconds=round(time.monotonic() - deadline + seconds, 1))

    async def _close(self) -> None:
        parts = (
            self.decider, self.profiles, self.predictions, self.segments, self.logx, self.odp_events, self.datafiles,
        )  # fmt: skip
        self.broker.close()
        for part in parts:
            if part is not None:
                await part.close()
        for sink in self._sinks:
            await sink.flush()
        others = [*self._others, *([] if self._producer is None else [self._producer])]
        await asyncio.gather(*(client.stop_client(other, seconds=1) for other in others))
        await self.operations.close()
        await self.transport.close()

    # What operators see

    def stuck(self) -> list[str]:
        now = time.monotonic()
        after = self.settings.ops.stuck_after
        return [sentence for consumer in self.consumers for sentence in consumer.stuck(now, after=after)]

    def awaited(self) -> list[str]:
        if self._awaited:
            missing = [f"the datafile of {key}: {fault}" for key, fault in self.datafiles.missing().items()]
            return [f"waiting for {self._awaited}", *missing]
        joining = [consumer.role.name for consumer in self.consumers if not consumer.assigned.is_set()]
        if not self.consumers:
            return ["waiting for the groups to be joined"]
        return [f"waiting for partitions of role {name}" for name in joining]

    def outages(self) -> list[Outage]:
        return [outage for upstream in self.upstreams for outage in upstream.outages()]

    def status(self) -> Mapping[str, Any]:
        return {
            "outages": [outage.document() for outage in self.outages()],
            "roles": {
                consumer.role.name: {
                    "partitions": len(consumer.partitions),
                    "recordsUnderWay": sum(partition.records_under_way for partition in consumer.partitions),
                    "held": consumer.role.held(),
                }
                for consumer in self.consumers
            },
            "datafiles": [
                {
                    "sdkKey": one.sdk_key,
                    "state": one.state,
                    "revision": one.revision,
                    "ageSeconds": None if one.age is None else round(one.age, 1),
                    "error": one.error,
                }
                for one in self.datafiles.status()
            ],
        }


def start_failure(error: KafkaError | TimeoutError) -> str:
    """An error of Kafka that ended the start, in words: no answer, which waiting may mend, or a refusal."""
    reason = str(error) or type(error).__name__
    if isinstance(error, TimeoutError | KafkaTimeoutError) or error.retriable:
        return f"Kafka did not answer during the start: {reason}"
    return f"Kafka refused a request of the start: {reason}"


async def run_worker(settings: Settings, fence: Fence) -> int:
    """Run a worker until it is asked to stop; its exit code. Raises StartFailed or ConfigurationError."""
    worker = Worker(settings, fence)

    async def live() -> None:
        await worker.start()
        await worker.log_readiness()
        await asyncio.Event().wait()

    try:
        await until_stopped(live(), grace=_START_GRACE_SECONDS)
    except (KafkaError, TimeoutError) as error:
        raise StartFailed(start_failure(error)) from error
    finally:
        await worker.stop()
    return 0
