"""The topics: made as the product needs them, described, and checked before a role starts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    InvalidReplicationFactorError,
    KafkaError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

from pipeline.errors import StartFailed
from pipeline.settings import KafkaSettings, Role, TopicsSettings

log = structlog.get_logger("pipeline.topics")

_APPEND_TIME = "message.timestamp.type"
_MAX_BYTES = "max.message.bytes"
_RETENTION = "retention.ms"
_DEFAULT_MAX_BYTES = 1_048_588
_PATIENCE_SECONDS = 2.0
_LOOK_AGAIN_SECONDS = 0.25
_CREATION_ADVICE = {
    InvalidReplicationFactorError: "set PIPELINE_TOPICS__REPLICATION_FACTOR to the number of brokers, or below",
    TopicAuthorizationFailedError: "the broker does not allow this user to do so",
    ClusterAuthorizationFailedError: "the broker does not allow this user to do so",
}
# What a broker adds around the records of a batch, with room to spare.
_BATCH_OVERHEAD = 64 * 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """A topic as the product needs it."""

    name: str
    config: dict[str, str]


@dataclass(frozen=True, slots=True)
class Described:
    """A topic as it is; `partitions` is 0 where there is none."""

    name: str
    partitions: int
    replicas: int
    config: dict[str, str]
    advice: tuple[str, ...]
    """What should be changed, one sentence each."""


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """What a worker needs to know of a topic: partitions, and the bytes of the largest record it surely takes."""

    partitions: int
    max_bytes: int


def wanted_topics(kafka: KafkaSettings, topics: TopicsSettings) -> tuple[Wanted, ...]:
    """All topics. Append time makes the order of the log the order of cause and effect: Optimizely attributes a
    conversion to a decision by their timestamps, and a takeover without a floor finds results by theirs."""
    retention = str(int(topics.retention * 1000))
    timed = {_APPEND_TIME: "LogAppendTime", _RETENTION: retention}
    sized = {_MAX_BYTES: str(int(kafka.max_record_bytes) + _BATCH_OVERHEAD)}
    return (
        Wanted(topics.decide_requests, timed),
        Wanted(topics.decide_results, timed | sized),
        Wanted(topics.track_events, timed),
        Wanted(topics.odp_events, {_RETENTION: retention}),
        Wanted(
            topics.dead_letters,
            {
                _RETENTION: str(int(topics.dead_letters_retention * 1000)),
                _MAX_BYTES: str(int(kafka.max_dead_letter_bytes) + _BATCH_OVERHEAD),
            },
        ),
    )


def topics_of(role: Role, topics: TopicsSettings) -> tuple[str, ...]:
    """What a role reads."""
    return {
        "decide": (topics.decide_requests,),
        "logx": (topics.decide_results, topics.track_events),
        "odp_events": (topics.odp_events,),
    }[role]


async def create_topics(
    admin: AIOKafkaAdminClient, kafka: KafkaSettings, topics: TopicsSettings
) -> list[tuple[str, bool]]:
    """Create what is missing; returns each name with whether it was made now. Raises StartFailed."""
    made = []
    for topic in wanted_topics(kafka, topics):
        new = NewTopic(topic.name, topics.partitions, topics.replication_factor, topic_configs=topic.config)
        try:
            response = await admin.create_topics([new])
        except KafkaError as error:
            raise StartFailed(f"topic {topic.name} cannot be created: {error}") from error
        code, text = response.topic_errors[0][1:3]  # type: ignore[attr-defined]
        failure = for_code(code)
        if code and failure is not TopicAlreadyExistsError:
            raise StartFailed(
                f"topic {topic.name} cannot be created: {_CREATION_ADVICE.get(failure, failure.__name__)} "
                f"({text or failure.description})"
            )
        made.append((topic.name, code == 0))
    # A broker answers before it shows them: whoever asks next should find them.
    await _partition_counts(admin, [name for name, _ in made])
    return made


async def describe_topics(admin: AIOKafkaAdminClient, kafka: KafkaSettings, topics: TopicsSettings) -> list[Described]:
    """Every topic as it is, with advice where it is not as needed."""
    wanted = wanted_topics(kafka, topics)
    found = {entry["topic"]: entry for entry in await admin.describe_topics([topic.name for topic in wanted])}
    existing = [topic.name for topic in wanted if found[topic.name]["partitions"]]
    configs = await _configs(admin, existing)
    requests = len(found[topics.decide_requests]["partitions"])
    described = []
    for topic in wanted:
        partitions = found[topic.name]["partitions"]
        config = configs.get(topic.name, {})
        advice = _advice(topic, len(partitions), config)
        if topic.name == topics.decide_results and partitions and len(partitions) < requests:
            advice = (*advice, f"needs at least {requests} partitions, as many as {topics.decide_requests}")
        replicas = len(partitions[0]["replicas"]) if partitions else 0
        shown = {name: config[name] for name in (_APPEND_TIME, _RETENTION, _MAX_BYTES) if name in config}
        described.append(Described(topic.name, len(partitions), replicas, shown, advice))
    return described


def _advice(topic: Wanted, partitions: int, config: dict[str, str]) -> tuple[str, ...]:
    if not partitions:
        return ("is missing: run `pipeline topics create`",)
    advice = []
    if topic.config.get(_APPEND_TIME) and config.get(_APPEND_TIME) != "LogAppendTime":
        advice.append(f"set {_APPEND_TIME}=LogAppendTime, else conversions may seem older than their decisions")
    needed = int(topic.config.get(_MAX_BYTES, 0))
    if _MAX_BYTES in config and int(config[_MAX_BYTES]) < needed:
        advice.append(f"set {_MAX_BYTES} to at least {needed}, else large records stop their partition")
    return tuple(advice)


async def _configs(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, dict[str, str]]:
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    configs: dict[str, dict[str, str]] = {}
    if resources:
        for response in await admin.describe_configs(resources):
            for _, _, _, name, entries in response.resources:  # type: ignore[attr-defined]
                configs[name] = {entry[0]: entry[1] for entry in entries}
    return configs


async def check_topics(
    admin: AIOKafkaAdminClient, kafka: KafkaSettings, topics: TopicsSettings, roles: Iterable[Role]
) -> dict[str, TopicFacts]:
    """The topics that the roles need. Raises StartFailed that names every missing one."""
    needed = {name for role in roles for name in topics_of(role, topics)} | {topics.dead_letters}
    if "decide" in roles:
        needed.add(topics.decide_results)
    counts = await _partition_counts(admin, needed)
    missing = sorted(name for name in needed if not counts.get(name))
    if missing:
        raise StartFailed(
            f"missing topics: {', '.join(missing)}. "
            "Create them with `pipeline topics create`, or name yours with PIPELINE_TOPICS__*"
        )
    limits = await _limits(admin, needed)
    for topic in wanted_topics(kafka, topics):
        wish = int(topic.config.get(_MAX_BYTES, 0)) - _BATCH_OVERHEAD
        if topic.name in needed and limits[topic.name] < wish:
            log.warning(
                "a topic takes smaller records than the settings allow; larger ones become pointers or dead letters",
                topic=topic.name, bytes=limits[topic.name], wanted=wish,
            )  # fmt: skip
    return {name: TopicFacts(counts[name], limits[name]) for name in needed}


async def _limits(admin: AIOKafkaAdminClient, names: Collection[str]) -> dict[str, int]:
    """Bytes of the largest record that each topic surely takes. A batch refused for its size ends the process."""
    try:
        configs = await _configs(admin, names)
    except KafkaError as error:
        log.warning("sizes of topics cannot be asked, Kafka's default is assumed", reason=type(error).__name__)
        configs = {}
    return {name: int(configs.get(name, {}).get(_MAX_BYTES, _DEFAULT_MAX_BYTES)) - _BATCH_OVERHEAD for name in names}


async def _partition_counts(admin: AIOKafkaAdminClient, names: Collection[str]) -> dict[str, int]:
    """Partitions of each topic, 0 where there is none. Raises StartFailed for one that may not be seen.

    A topic made a moment ago may not be known to each broker yet, so missing ones are looked for a little longer.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        found = await admin.describe_topics(sorted(names))
        hidden = [entry["topic"] for entry in found if for_code(entry["error_code"]) is TopicAuthorizationFailedError]
        if hidden:
            raise StartFailed(f"the broker does not allow this user to describe: {', '.join(sorted(hidden))}")
        counts = {entry["topic"]: len(entry["partitions"]) for entry in found}
        if all(counts.get(name) for name in names) or time.monotonic() > deadline:
            return counts
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
