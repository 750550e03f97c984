"""The most obvious worker: `getmany`, `optimizely-sdk`, json, `send()`; its impressions are batched by the thousand.

It is spared what would cost it more: segments are at hand, events of a thousand requests go in one POST while the next
thousand are decided, and nothing is logged.
"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import aiohttp
from optimizely.event import event_factory
from optimizely.event.event_processor import BaseEventProcessor
from optimizely.event.user_event import UserEvent
from optimizely.helpers.sdk_settings import OptimizelySdkSettings
from optimizely.logger import NoOpLogger
from optimizely.optimizely import Optimizely

from tests.benchmarks.contenders.job import POLL_RECORDS, Commits, Job, Record, consumer, ends, producer, run

_EVENTS = 1000


class Collected(BaseEventProcessor):
    """An event processor that keeps the SDK's events for the next POST, or drops them."""

    def __init__(self, wanted: bool) -> None:
        self.events: list[UserEvent] = []
        self._wanted = wanted

    def process(self, user_event: UserEvent) -> None:
        if self._wanted:
            self.events.append(user_event)


async def naive(job: Job) -> None:
    logging.disable(logging.CRITICAL)
    collected = Collected(bool(job.sink))
    client = Optimizely(
        datafile=await asyncio.to_thread(Path(job.datafile).read_text, "utf-8"),
        logger=NoOpLogger(),
        event_processor=collected,
        settings=OptimizelySdkSettings(odp_disabled=True),
    )
    posts: set[asyncio.Task[None]] = set()
    async with consumer(job) as reader, producer(job, linger_ms=5) as writer, aiohttp.ClientSession() as session:
        commits = Commits(reader)
        while True:
            polled = await reader.getmany(timeout_ms=200, max_records=POLL_RECORDS)
            sent = []
            for partition, records in polled.items():
                for record in records:
                    value = json.dumps(decided(client, job, record)).encode()
                    sent.append(await writer.send(job.results, value, key=record.key, partition=partition.partition))
            while len(collected.events) >= _EVENTS:
                events, collected.events = collected.events[:_EVENTS], collected.events[_EVENTS:]
                task = asyncio.create_task(_post(session, job.sink, events))
                posts.add(task)
                task.add_done_callback(posts.discard)
            await asyncio.gather(*sent)
            await commits.done(ends(polled))


def decided(client: Any, job: Job, record: Record) -> dict[str, Any]:
    """The result of one request, with the Agent's fields."""
    request = json.loads(record.value or b"")
    user = client.create_user_context(request["userId"], request["userAttributes"])
    if job.segments:
        user.set_qualified_segments(list(job.segments))
    keys = request["keys"]
    if len(keys) == 1:
        decisions = [user.decide(keys[0])]
    else:
        decisions = list((user.decide_for_keys(keys) if keys else user.decide_all()).values())
    return {
        "requestId": request["requestId"],
        "source": f"{record.topic}-{record.partition}-{record.offset}",
        "timestamp": record.timestamp,
        "userId": request["userId"],
        "decisions": [
            {
                "variationKey": one.variation_key,
                "enabled": one.enabled,
                "ruleKey": one.rule_key,
                "flagKey": one.flag_key,
                "userContext": {"userId": request["userId"], "attributes": request["userAttributes"]},
                "reasons": one.reasons,
                "variables": one.variables,
            }
            for one in decisions
        ],
    }


async def _post(session: aiohttp.ClientSession, sink: str, events: list[UserEvent]) -> None:
    body = event_factory.EventFactory.create_log_event(events, NoOpLogger())
    assert body is not None
    async with session.post(sink, data=json.dumps(body.params), headers=body.headers) as answer:
        answer.raise_for_status()


if __name__ == "__main__":
    run(naive)
