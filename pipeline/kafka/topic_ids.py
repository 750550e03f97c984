"""Topic ids: which of several topics of one name a broker has now.

A topic that was deleted and made again has the same name and the same offsets, and other records. Kafka gives each
topic an id (2.8 and later); commits carry it, so the next owner knows whether an offset belongs to this log.
aiokafka 0.14 asks for metadata without ids, so the request is described here.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Collection, Mapping
from io import BytesIO
from typing import Any, NamedTuple

import structlog
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    KafkaConnectionError,
    KafkaError,
    UnknownTopicOrPartitionError,
)
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

from pipeline.metrics import Metrics

log = structlog.get_logger("pipeline.topics")

_NO_ID = bytes(16)
_ANSWER_SECONDS = 2.0


class _Uuid(AbstractType[bytes]):
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(len(_NO_ID))


class _Response(Response):
    API_KEY = 3
    API_VERSION = 11
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32), ("host", CompactString("utf-8")), ("port", Int32),
                ("rack", CompactString("utf-8")), ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16), ("name", CompactString("utf-8")), ("topic_id", _Uuid), ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16), ("partition", Int32), ("leader", Int32), ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)), ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)), ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32), ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )  # fmt: skip


class _RequestV11(RequestStruct):
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 11
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_RequestV11]):
    API_KEY = 3

    def __init__(self, topics: Collection[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_RequestV11]) -> _RequestV11:
        return request_struct_class([(_NO_ID, name, {}) for name in self._topics], False, False, {})


class _Answer(NamedTuple):
    """One broker's view of the topics."""

    ids: Mapping[str, str]
    missing: frozenset[str]
    """Topics that do not exist, as this broker has it."""
    brokers: tuple[int, ...]
    """Nodes of the cluster that are alive."""


class TopicIds:
    """The ids of a role's topics as they were seen last. Says once for each new topic that it took another's name."""

    def __init__(self, admin: AIOKafkaAdminClient, *, role: str, topics: Collection[str], metrics: Metrics) -> None:
        """`topics`: all that the role reads and writes."""
        self._admin = admin
        self._role = role
        # Made at the start: a series whose first sample is 1 shows no increase.
        self._recreated = {topic: metrics.topics_recreated.labels(role, topic) for topic in topics}
        self._seen: dict[str, str] = {}
        self._missing: frozenset[str] = frozenset()
        self._told_missing: frozenset[str] = frozenset()
        self._told: set[str] = set()
        self._brokers: tuple[int, ...] = ()

    async def look(self) -> Mapping[str, str]:
        """Ask for the ids and return them; without those of a topic never seen.

        One broker that does not answer costs two seconds and the next is asked. Raises KafkaError if none answers.
        """
        now = await self._first_answer()
        self._brokers = now.brokers
        self._tell_missing(now.missing & self._seen.keys())
        for topic, topic_id in now.ids.items():
            if not await self.replaced(topic, self._seen.get(topic), topic_id):
                self._seen.setdefault(topic, topic_id)
        return self._seen

    async def replaced(self, topic: str, before: str | None, now: str | None) -> bool:
        """Whether the topic of id `before` is gone and `now` has its name. False where either is not known."""
        if before is None or now is None or before == now or await self._may_be_there(topic, before):
            return False
        self._seen[topic] = now
        if now not in self._told:
            self._told.add(now)
            self._recreated[topic].inc()
            log.error(
                "topic was deleted and created again: its offsets begin anew, unread records of the old one are lost",
                role=self._role, topic=topic, topic_id=now, previous_topic_id=before,
            )  # fmt: skip
        return True

    async def _first_answer(self) -> _Answer:
        failure: Exception = KafkaConnectionError("no broker is known")
        for broker in [one.nodeId for one in self._admin._client.cluster.brokers()]:
            try:
                return await self._ask(broker, self._recreated)
            except (KafkaError, TimeoutError) as error:
                failure = error
        raise KafkaConnectionError(f"no broker names the topics' ids: {failure!r}") from failure

    async def _may_be_there(self, topic: str, topic_id: str) -> bool:
        """Whether a broker still has the topic, or may have it: lagging metadata must not make a log be read twice.

        A broker that does not answer may have it. A dead one leaves the list of brokers within seconds.
        """
        answers = await asyncio.gather(
            *(self._ask(broker, [topic]) for broker in self._brokers), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, (KafkaError, TimeoutError)) or (
                isinstance(answer, _Answer) and answer.ids.get(topic) == topic_id
            ):
                return True
            if isinstance(answer, BaseException):
                raise answer
        return False

    async def _ask(self, broker: int, topics: Collection[str]) -> _Answer:
        """Ask one broker; without ids where it is older than they are. Raises KafkaError and TimeoutError."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                response: Any = await self._admin._send_request(_MetadataRequest(topics), broker)
        except (IncompatibleBrokerVersion, NotImplementedError):
            return _Answer({}, frozenset(), ())
        return _Answer(
            {
                # As Kafka's own tools print it.
                name: base64.urlsafe_b64encode(topic_id).rstrip(b"=").decode()
                for error, name, topic_id, *_ in response.topics
                if not error and topic_id != _NO_ID
            },
            frozenset(name for error, name, *_ in response.topics if error == UnknownTopicOrPartitionError.errno),
            tuple(node for node, *_ in response.brokers),
        )

    def _tell_missing(self, missing: frozenset[str]) -> None:
        """Say that topics are gone once two answers in a row said so: one may be of a broker that lags behind."""
        sure = missing & self._missing
        for topic in sorted(sure - self._told_missing):
            log.error("topic does not exist any more: waiting until it is created again", role=self._role, topic=topic)
        self._missing, self._told_missing = missing, sure
