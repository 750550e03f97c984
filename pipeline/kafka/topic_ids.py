"""Topic ids: which of several topics of one name a broker has now.

A topic that was deleted and made again has the same name and the same offsets, and other records. Kafka gives each
topic an id (2.8 and later); commits carry it, so the next owner knows whether an offset belongs to this log.
aiokafka 0.14 asks for metadata without ids, so the request is described here.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from io import BytesIO
from typing import Any

import structlog
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

from pipeline.metrics import Metrics

log = structlog.get_logger("pipeline.topics")

_NO_ID = bytes(16)


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


async def topic_ids(admin: AIOKafkaAdminClient, topics: Collection[str], node: int | None = None) -> dict[str, str]:
    """Topic -> id, as Kafka's own tools print it; a topic that does not exist is left out.

    Empty where the broker is older than topic ids. Asks a random broker, or `node`. Raises KafkaError.
    """
    try:
        response: Any = await admin._send_request(_MetadataRequest(topics), node)
    except (IncompatibleBrokerVersion, NotImplementedError):
        return {}
    return {
        name: base64.urlsafe_b64encode(topic_id).rstrip(b"=").decode()
        for error, name, topic_id, *_ in response.topics
        if not error and topic_id != _NO_ID
    }


class TopicIds:
    """The ids of a role's topics as they were seen last. Says once for each new topic that it took another's name."""

    def __init__(self, admin: AIOKafkaAdminClient, *, role: str, topics: Collection[str], metrics: Metrics) -> None:
        """`topics`: all that the role reads and writes."""
        self._admin = admin
        self._role = role
        # Made at the start: a series whose first sample is 1 shows no increase.
        self._recreated = {topic: metrics.topics_recreated.labels(role, topic) for topic in topics}
        self._seen: dict[str, str] = {}
        self._missing: set[str] = set()
        self._told: set[str] = set()

    async def look(self) -> Mapping[str, str]:
        """Ask for the ids and return them; without those of a topic never seen. Raises KafkaError."""
        now = await topic_ids(self._admin, self._recreated)
        self._tell_missing({topic for topic in self._seen if topic not in now})
        for topic, topic_id in now.items():
            if not await self.replaced(topic, self._seen.get(topic), topic_id):
                self._seen.setdefault(topic, topic_id)
        return self._seen

    async def replaced(self, topic: str, before: str | None, now: str | None) -> bool:
        """Whether the topic of id `before` is gone and `now` has its name. False where either is not known."""
        if before is None or now is None or before == now or await self._is_there(topic, before):
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

    async def _is_there(self, topic: str, topic_id: str) -> bool:
        """Whether any broker still has it: one whose metadata lag behind must not make a log be read twice."""
        for broker in self._admin._client.cluster.brokers():
            try:
                if (await topic_ids(self._admin, [topic], broker.nodeId)).get(topic) == topic_id:
                    return True
            except KafkaError as error:
                log.debug("a broker does not name a topic's id", broker=broker.nodeId, reason=type(error).__name__)
        return False

    def _tell_missing(self, missing: set[str]) -> None:
        for topic in sorted(missing - self._missing):
            log.error("topic does not exist any more: waiting until it is created again", role=self._role, topic=topic)
        self._missing = missing
