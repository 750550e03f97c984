"""Role decide under any interleaving: answers that come, fail or are late, room that comes and goes, time that ends.

Whatever happens in whatever order, each request is answered once, in the order of its user, and nobody waits for ever.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from random import Random
from typing import Any

import pytest

from pipeline.errors import SegmentsUnavailable
from tests.handlers.chunks import PublishingChunk
from tests.handlers.test_decide import NOW_MS, Bench, body
from tests.settled import until

USERS = [f"user-{number}" for number in range(6)]
OUTCOMES: list[frozenset[str] | str] = [
    frozenset({"loyal_customers"}), frozenset(), "invalid_identifier", "timeout", "expired", "query_error",
]  # fmt: skip
FETCH_OPTIONS: list[list[str]] = [[], [], [], ["IGNORE_CACHE"], ["RESET_CACHE"]]


def request(dice: Random, number: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"fetchSegments": dice.random() < 0.7, "fetchSegmentsOptions": dice.choice(FETCH_OPTIONS)}
    if dice.random() < 0.2:
        fields["ttlMs"] = dice.choice([500, 1500, 5000])
    if dice.random() < 0.05:
        fields["keys"] = "no list"
    return body(f"r{number:03d}", dice.choice(USERS), **fields)


def answer_one(dice: Random, bench: Bench) -> None:
    """One of the users asked about, not always the one who was first."""
    waiting = [future for _, future, _ in bench.segments.asked if not future.done()]
    if waiting:
        outcome = dice.choice(OUTCOMES)
        future = dice.choice(waiting)
        if isinstance(outcome, str):
            future.set_exception(SegmentsUnavailable(outcome))
            future.exception()
        else:
            future.set_result(outcome)


async def play(dice: Random, bench: Bench) -> list[PublishingChunk]:
    chunks: list[PublishingChunk] = []
    for _ in range(60):
        event = dice.random()
        if event < 0.35:
            first = sum(len(chunk.records) for chunk in chunks)
            sent = (request(dice, first + number) for number in range(dice.randint(1, 8)))
            chunks.append(bench.chunk(*sent, timestamp=int(bench.now * 1000)))
        elif event < 0.7:
            answer_one(dice, bench)
        elif event < 0.8:
            bench.now += dice.choice([0.1, 1.0, 3.0])
        elif event < 0.9:
            # All chunks are of one partition, and share its room.
            there = dice.random() < 0.5
            for chunk in chunks:
                chunk.has_room = there
                if there:
                    chunk.let_go_on()
        elif event < 0.95:
            bench.segments.known = {user: frozenset() for user in USERS if dice.random() < 0.3}
            bench.segments.unknown = {user for user in USERS if dice.random() < 0.2}
        for _ in range(dice.randint(0, 2)):
            await asyncio.sleep(0)
    return chunks


async def let_all_go_on(dice: Random, bench: Bench, chunks: list[PublishingChunk]) -> None:
    def go_on() -> bool:
        answer_one(dice, bench)
        for chunk in chunks:
            chunk.has_room = True
            chunk.let_go_on()
        return all(chunk.settled == len(chunk.records) for chunk in chunks)

    await until(go_on)


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(40))
async def test_each_request_is_answered_once_and_in_the_order_of_its_user(seed: int) -> None:
    failed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed.append(context))
    dice, bench = Random(seed), Bench()
    assert bench.now * 1000 == NOW_MS
    chunks = await play(dice, bench)
    await let_all_go_on(dice, bench, chunks)
    sent: defaultdict[str, list[str]] = defaultdict(list)
    for chunk in chunks:
        for record in chunk.records:
            one = json.loads(record.value or b"")
            sent[one["userId"]].append(one["requestId"])
    answered: defaultdict[str, list[str]] = defaultdict(list)
    for result in bench.log:
        one = json.loads(result.value)
        answered[one["userId"]].append(one["requestId"])
    assert answered == sent
    # A request that comes now has nobody before it.
    bench.segments.known, bench.segments.unknown = {}, set()
    last = bench.chunk(*(body(f"last {user}", user) for user in USERS))
    assert last.settled == len(USERS)
    assert failed == []


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_answered_once_the_partition_is_given_away(seed: int) -> None:
    failed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed.append(context))
    dice, bench = Random(seed), Bench()
    chunks = await play(dice, bench)
    for chunk in chunks:
        chunk.abandoned = True
    answered = len(bench.log)
    for _ in range(2000):
        answer_one(dice, bench)
        for chunk in chunks:
            chunk.has_room = True
            chunk.let_go_on()
        await asyncio.sleep(0)
    assert len(bench.log) == answered
    assert failed == []
