"""Batches are cut within both bounds and posted until settled; one key's trouble stays its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from pipeline.dispatch import Batch, Dispatcher, Part
from pipeline.errors import AccessRefused, PayloadRefused, Rejected, Unavailable, UpstreamError
from pipeline.limits import Backoff
from pipeline.metrics import Metrics
from tests.patience import PATIENCE
from tests.settled import Record, RecordingChunk, until


@dataclass
class Desk:
    """A destination: remembers every body, answers what it is told to, waits at the gate."""

    bodies: list[tuple[str, bytes]] = field(default_factory=list)
    accepted: list[tuple[str, bytes]] = field(default_factory=list)
    failures: list[UpstreamError] = field(default_factory=list)
    poison: bytes | None = None
    denied: set[str] = field(default_factory=set)
    gate: asyncio.Event | None = None
    now: int = 0
    most: int = 0

    def body(self, key: str, parts: Sequence[bytes]) -> bytes:
        return b"[" + b",".join(parts) + b"]"

    async def send(self, key: str, body: bytes) -> None:
        self.bodies.append((key, body))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await (self.gate.wait() if self.gate else asyncio.sleep(0))
            if key in self.denied:
                raise AccessRefused("HTTP 403", status=403)
            if self.failures:
                raise self.failures.pop(0)
            if self.poison is not None and self.poison in body:
                raise PayloadRefused("HTTP 400", status=400)
        finally:
            self.now -= 1
        self.accepted.append((key, body))

    def refused(self, error: PayloadRefused) -> Rejected:
        return Rejected("desk_refused", str(error))


class Bench:
    """A dispatcher at a desk, with its metrics."""

    def __init__(self, desk: Desk, *, max_events: int, max_bytes: int, linger: float, max_in_flight: int) -> None:
        self.desk = desk
        self.registry = CollectorRegistry()
        self.dispatcher = Dispatcher[str](
            destination="desk", post=desk, max_events=max_events, max_bytes=max_bytes, overhead=lambda key: 2,
            linger=linger, max_in_flight=max_in_flight, metrics=Metrics(self.registry),
            backoff=Backoff(first=0.001, cap=0.004, rng=Random(1)),
        )  # fmt: skip

    def add(self, body: bytes, chunk: RecordingChunk, *, key: str = "a", events: int = 1) -> Record:
        record = Record(value=body)
        self.dispatcher.add(key, body, events, chunk, record)
        return record

    def sample(self, name: str, **labels: str) -> float:
        found = self.registry.get_sample_value(f"decision_pipeline_{name}", labels)
        assert found is not None, name
        return found

    def outcome(self, outcome: str) -> float:
        return self.sample("dispatches_total", destination="desk", outcome=outcome)

    def cuts(self, trigger: str) -> float:
        return self.sample("dispatch_cuts_total", destination="desk", trigger=trigger)

    def held(self, reason: str) -> float:
        return self.sample("upstream_blocked", upstream="desk", reason=reason)


@asynccontextmanager
async def bench(
    *,
    desk: Desk | None = None,
    max_events: int = 100,
    max_bytes: int = 10_000,
    linger: float = 10 * PATIENCE,
    max_in_flight: int = 4,
) -> AsyncIterator[Bench]:
    made = Bench(desk or Desk(), max_events=max_events, max_bytes=max_bytes, linger=linger, max_in_flight=max_in_flight)
    try:
        yield made
    finally:
        await made.dispatcher.close()


async def drained(made: Bench) -> None:
    async with asyncio.timeout(PATIENCE):
        await made.dispatcher.drain()


def parts_of(body: bytes) -> list[bytes]:
    return body[1:-1].split(b",")


shares = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 4), st.integers(0, 2)), max_size=60)


@settings(max_examples=60, deadline=None)
@given(shares=shares, max_events=st.integers(4, 12), max_bytes=st.integers(32, 120), slots=st.integers(1, 3))
def test_batches_keep_bounds_and_order_and_lose_nothing(
    shares: list[tuple[int, int, int]], max_events: int, max_bytes: int, slots: int
) -> None:
    async def run() -> tuple[Desk, RecordingChunk, dict[bytes, int]]:
        async with bench(max_events=max_events, max_bytes=max_bytes, max_in_flight=slots) as made:
            chunk, events_of = RecordingChunk(), dict[bytes, int]()
            for number, (size, events, key) in enumerate(shares):
                body = b"%d:%d;" % (key, number) + b"x" * size
                body = body[:30]
                events_of[body] = events
                made.add(body, chunk, key=str(key), events=events)
            await drained(made)
            return made.desk, chunk, events_of

    desk, chunk, events_of = asyncio.run(run())
    assert chunk.settled == len(shares)
    for key in "012":
        sent = [part for at, body in desk.accepted if at == key for part in parts_of(body)]
        assert sent == [body for body in events_of if body.startswith(key.encode())]
    for _, body in desk.accepted:
        assert len(body) <= max_bytes
        assert sum(events_of[part] for part in parts_of(body)) <= max_events
    assert desk.most <= slots


@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=40), overhead=st.integers(0, 10))
def test_size_is_that_of_the_joined_body(sizes: list[int], overhead: int) -> None:
    batch, chunk = Batch(overhead), RecordingChunk()
    for number, size in enumerate(sizes):
        batch.append(Part(number, b"x" * size, 1, chunk, Record()))
    joined = overhead + len(b",".join(part.body for part in batch.parts))
    assert batch.size == joined
    assert batch.full_for(5, 1, max_events=1000, max_bytes=joined + 6) is None
    assert batch.full_for(6, 1, max_events=1000, max_bytes=joined + 6) == "bytes"
    halves = batch.halves(overhead)
    assert [*halves[0].parts, *halves[1].parts] == batch.parts


@pytest.mark.asyncio
async def test_full_by_count_goes_at_once() -> None:
    async with bench(max_events=2) as made:
        chunk = RecordingChunk()
        for text in (b"1", b"2"):
            made.add(text, chunk)
        await until(lambda: made.desk.accepted)
        assert made.desk.accepted == [("a", b"[1,2]")]
        assert chunk.settlements == [2]
        assert made.cuts("count") == 1
        assert made.sample("dispatched_events_total", destination="desk") == 2
        assert made.sample("dispatched_bytes_total", destination="desk") == 5


@pytest.mark.asyncio
async def test_full_by_bytes_goes_at_once() -> None:
    async with bench(max_bytes=7) as made:
        chunk = RecordingChunk()
        for text in (b"11", b"22", b"3"):
            made.add(text, chunk)
        await until(lambda: made.desk.accepted)
        assert made.desk.accepted == [("a", b"[11,22]")]
        assert made.cuts("bytes") == 1


@pytest.mark.asyncio
async def test_linger_sends_what_is_there() -> None:
    async with bench(linger=0.005) as made:
        chunk = RecordingChunk()
        made.add(b"1", chunk)
        made.add(b"2", chunk)
        await until(lambda: chunk.settled == 2)
        assert made.desk.accepted == [("a", b"[1,2]")]
        assert made.cuts("linger") == 1


@pytest.mark.asyncio
async def test_lingered_batch_goes_on_filling_while_no_slot_is_free() -> None:
    async with bench(linger=0, max_in_flight=1, desk=Desk(gate=asyncio.Event())) as made:
        chunk = RecordingChunk()
        made.add(b"1", chunk)
        await until(lambda: made.desk.bodies)
        made.add(b"2", chunk)
        for _ in range(5):
            await asyncio.sleep(0)
        made.add(b"3", chunk)
        assert made.desk.gate is not None
        made.desk.gate.set()
        await until(lambda: chunk.settled == 3)
        assert made.desk.accepted == [("a", b"[1]"), ("a", b"[2,3]")]


@pytest.mark.asyncio
async def test_settled_once_for_a_run_of_one_chunk() -> None:
    async with bench() as made:
        one, two = RecordingChunk(), RecordingChunk()
        for chunk in (one, one, two, one):
            made.add(b"1", chunk)
        await drained(made)
        assert (one.settlements, two.settlements) == ([2, 1], [1])


@pytest.mark.asyncio
async def test_part_over_the_limit_is_rejected_without_a_request() -> None:
    async with bench(max_bytes=10) as made:
        chunk = RecordingChunk()
        made.add(b"1", chunk)
        bad = made.add(b"x" * 9, chunk)
        made.add(b"2", chunk)
        await drained(made)
        assert [(record, why.reason, why.detail) for record, why in chunk.rejected] == [
            (bad, "event_too_large", "alone it is over the limit of a request")
        ]
        assert made.outcome("refused") == 0
        assert sorted(body for _, body in made.desk.accepted) == [b"[1]", b"[2]"]
        assert chunk.settled == 2


@pytest.mark.asyncio
async def test_part_over_the_limit_of_a_partition_given_away_is_its_next_owners() -> None:
    async with bench(max_bytes=10) as made:
        chunk = RecordingChunk(abandoned=True)
        made.add(b"x" * 9, chunk)
        await drained(made)
        assert (chunk.rejected, chunk.settled) == ([], 0)
        # No service refused anything.
        assert made.outcome("refused") == 0


@pytest.mark.asyncio
async def test_refused_batch_is_split_until_the_bad_one_is_alone() -> None:
    async with bench(desk=Desk(poison=b"bad")) as made:
        chunk = RecordingChunk()
        for number in range(16):
            made.add(b"%d" % number, chunk)
        bad = made.add(b"bad", chunk)
        await drained(made)
        assert [(record, why.reason) for record, why in chunk.rejected] == [(bad, "desk_refused")]
        assert chunk.settled == 16
        sent = [part for _, body in made.desk.accepted for part in parts_of(body)]
        assert sorted(sent) == sorted(b"%d" % number for number in range(16))
        assert made.outcome("refused") == 1
        assert made.outcome("split") <= 5


@pytest.mark.asyncio
async def test_unavailable_is_retried_with_the_same_bytes_and_shown() -> None:
    desk = Desk(failures=[Unavailable("HTTP 503", status=503), Unavailable("no answer"), UpstreamError("x")])
    async with bench(desk=desk) as made:
        chunk = RecordingChunk()
        made.add(b"1", chunk)
        made.add(b"2", chunk)
        with capture_logs() as logs:
            await drained(made)
        assert desk.bodies == [("a", b"[1,2]")] * 4
        assert chunk.settlements == [2]
        assert (made.outcome("retried"), made.outcome("denied"), made.outcome("ok")) == (2, 1, 1)
        assert (made.held("unavailable"), made.held("denied")) == (0, 0)
        assert made.sample("upstream_last_response_timestamp_seconds", upstream="desk") > 0
        assert [(entry["log_level"], entry["event"], entry["reason"]) for entry in logs] == [
            ("warning", "dispatch held", "unavailable"),
            ("error", "dispatch held", "denied"),
            ("info", "dispatch resumed", "denied"),
        ]


@pytest.mark.asyncio
async def test_pause_asked_for_is_kept() -> None:
    async with bench(desk=Desk(failures=[Unavailable("HTTP 429", status=429, retry_after=0.03)])) as made:
        chunk = RecordingChunk()
        made.add(b"1", chunk)
        started = asyncio.get_running_loop().time()
        await drained(made)
        assert asyncio.get_running_loop().time() - started >= 0.03
        assert chunk.settled == 1


@pytest.mark.asyncio
async def test_denied_key_is_held_and_the_others_go_on() -> None:
    async with bench(max_events=1, max_in_flight=1, desk=Desk(denied={"a"})) as made:
        mine, others = RecordingChunk(), RecordingChunk()
        for _ in range(5):
            made.add(b"1", mine, key="a")
            made.add(b"2", others, key="b")
        await until(lambda: others.settled == 5)
        assert (mine.settled, mine.rejected) == (0, [])
        assert made.held("denied") == 1
        made.desk.denied.clear()
        await until(lambda: mine.settled == 5)
        assert made.held("denied") == 0


@pytest.mark.asyncio
async def test_one_request_probes_while_a_key_is_held() -> None:
    async with bench(max_events=2, desk=Desk(denied={"a"})) as made:
        chunk = RecordingChunk()
        for number in range(8):
            made.add(b"%d" % number, chunk, events=2)
        made.add(b"left open", RecordingChunk())
        await until(lambda: len(made.desk.bodies) >= 7)
        sent = [body for _, body in made.desk.bodies[:7]]
        assert sent == [b"[0]", b"[1]", b"[2]", b"[3]", b"[0]", b"[0]", b"[0]"]
        made.desk.denied.clear()
        await until(lambda: chunk.settled == 8)
        assert made.cuts("linger") == 0
        # All slots are used again, no longer one at a time.
        made.desk.gate = asyncio.Event()
        for number in range(8):
            made.add(b"%d" % number, chunk, events=2)
        await until(lambda: made.desk.now == 4)


@pytest.mark.asyncio
async def test_abandoned_batches_are_let_go_while_the_key_is_held() -> None:
    async with bench(max_events=1, desk=Desk(denied={"a"})) as made:
        kept, lost = RecordingChunk(), RecordingChunk(abandoned=True)
        made.add(b"1", kept)
        await until(lambda: made.held("denied"))
        for _ in range(100):
            made.add(b"2", lost)
        held = made.dispatcher._lanes["a"].closed
        assert len(held) >= 100
        await until(lambda: len(made.dispatcher._lanes["a"].closed) <= 1)
        assert made.held("denied") == 1


@pytest.mark.asyncio
async def test_parts_abandoned_before_their_first_request_are_not_sent() -> None:
    async with bench(max_in_flight=1, max_events=1, desk=Desk(gate=asyncio.Event())) as made:
        kept, lost = RecordingChunk(), RecordingChunk()
        made.add(b"1", kept)
        made.add(b"2", lost)
        made.add(b"3", kept)
        lost.abandoned = True
        assert made.desk.gate is not None
        made.desk.gate.set()
        await drained(made)
        assert [body for _, body in made.desk.bodies] == [b"[1]", b"[3]"]


@pytest.mark.asyncio
async def test_abandoned_parts_are_not_sent_again() -> None:
    async with bench(desk=Desk(denied={"a"})) as made:
        kept, lost = RecordingChunk(), RecordingChunk()
        made.add(b"1", kept)
        made.add(b"2", lost)
        draining = asyncio.create_task(drained(made))
        await until(lambda: made.held("denied") and not made.dispatcher._lanes["a"].under_way)
        lost.abandoned = True
        made.desk.denied.clear()
        await draining
        assert made.desk.accepted == [("a", b"[1]")]
        assert (kept.settled, lost.settled) == (1, 0)


@pytest.mark.asyncio
async def test_held_key_with_nothing_left_is_forgotten() -> None:
    async with bench(max_events=1, desk=Desk(denied={"a"})) as made:
        chunk = RecordingChunk()
        for _ in range(6):
            made.add(b"1", chunk)
        await until(lambda: made.held("denied") == 1)
        chunk.abandoned = True
        await until(lambda: not made.dispatcher._lanes)
        assert made.held("denied") == 0
        await drained(made)


@pytest.mark.asyncio
async def test_drain_waits_for_what_was_there_and_not_for_what_follows() -> None:
    async with bench(desk=Desk(gate=asyncio.Event())) as made:
        before, after = RecordingChunk(), RecordingChunk()
        made.add(b"1", before)
        waiting = asyncio.create_task(made.dispatcher.drain())
        await until(lambda: made.desk.bodies)
        made.add(b"2", after)
        assert not waiting.done()
        assert made.desk.gate is not None
        made.desk.gate.set()
        async with asyncio.timeout(PATIENCE):
            await waiting
        assert (before.settled, after.settled) == (1, 0)


@pytest.mark.asyncio
async def test_drain_ends_when_the_last_it_waits_for_are_given_away() -> None:
    async with bench(max_events=1, desk=Desk(denied={"a"})) as made:
        chunk = RecordingChunk()
        for _ in range(6):
            made.add(b"1", chunk)
        await until(lambda: made.held("denied") == 1)
        draining = asyncio.create_task(drained(made))
        # No request is under way whose end would be noticed: the next probe finds nothing left to send.
        await until(lambda: len(made.desk.bodies) >= 5 and made.dispatcher._lanes["a"].retry is not None)
        chunk.abandoned = True
        sent = len(made.desk.bodies)
        await draining
        assert (len(made.desk.bodies), chunk.settled) == (sent, 0)


@pytest.mark.asyncio
async def test_close_settles_nothing_more_and_leaves_no_timer() -> None:
    async with bench(max_events=1, desk=Desk(denied={"a"}), linger=0.001) as made:
        chunk = RecordingChunk()
        for key in ("a", "a", "b"):
            made.add(b"1", chunk, key=key)
        await until(lambda: made.held("denied") == 1)
        settled = chunk.settled
        await made.dispatcher.close()
        made.add(b"1", chunk)
        made.desk.denied.clear()
        await asyncio.sleep(0.02)
        assert chunk.settled == settled
        async with asyncio.timeout(PATIENCE):
            await made.dispatcher.drain()


@pytest.mark.asyncio
async def test_defect_in_a_strategy_reaches_the_loop() -> None:
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    async with bench(max_events=1) as made:
        made.desk.failures.append(ZeroDivisionError())  # type: ignore[arg-type]
        made.add(b"1", RecordingChunk())
        await until(lambda: told)
    # Raised at once, not found out when the task is collected.
    assert told[0]["message"] != "Task exception was never retrieved"
    assert isinstance(told[0]["exception"], ZeroDivisionError)
