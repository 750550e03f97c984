"""Events on their way to an HTTP service: gathered by key, cut by count and bytes, posted until they are accepted.

Promises that nothing is dropped: a part is settled when the service took it or refused that very part. Whatever else
goes wrong is held and tried again for ever, key by key, so that one refused key does not stop the others. Memory is
bounded by the windows of the partitions, which stop giving records. `odp/events.py` and `logx/dispatcher.py` use it.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from itertools import count
from typing import Generic, Protocol, TypeVar

import msgspec
import structlog

from pipeline.errors import PayloadRefused, Rejected, Unavailable, UpstreamError
from pipeline.limits import Backoff
from pipeline.messages.delivery import Chunk, Delivery
from pipeline.metrics import Metrics
from pipeline.outage import DENIED, UNAVAILABLE, Outage, Upstream

K = TypeVar("K", bound=Hashable)
K_contra = TypeVar("K_contra", contravariant=True)

COUNT, BYTES, LINGER, DRAIN = TRIGGERS = ("count", "bytes", "linger", "drain")
OUTCOMES = ("ok", "retried", "denied", "split", "refused")

log = structlog.get_logger("pipeline.dispatch")


class Post(Protocol[K_contra]):
    """What differs between destinations."""

    def body(self, key: K_contra, parts: Sequence[bytes]) -> bytes:
        """One request's body. Pure, so that a repeated request has the same bytes: parts joined by one byte each,
        within an envelope of at most `overhead(key)` bytes."""

    async def send(self, key: K_contra, body: bytes) -> None:
        """Post it, within a deadline of its own. Raises what Transport raises."""

    def refused(self, error: PayloadRefused) -> Rejected:
        """Why the one part in a refused request becomes a dead letter."""


class Part(msgspec.Struct, frozen=True, gc=False):
    """What one record (or one share of it) adds to a body. `number` counts all parts, from 0."""

    number: int
    body: bytes
    events: int
    chunk: Chunk
    record: Delivery


class Batch:
    """Parts of one key that go out together. `size` is the body's length, envelope and commas included."""

    __slots__ = ("events", "parts", "size")

    def __init__(self, overhead: int) -> None:
        self.parts: list[Part] = []
        self.events = 0
        self.size = overhead

    def full_for(self, size: int, events: int, *, max_events: int, max_bytes: int) -> str | None:
        """What keeps a part of `size` bytes and `events` events out of this batch; None if it fits."""
        if self.events + events > max_events:
            return COUNT
        if self.size + size + bool(self.parts) > max_bytes:
            return BYTES
        return None

    def append(self, part: Part) -> None:
        self.size += len(part.body) + bool(self.parts)
        self.events += part.events
        self.parts.append(part)

    def without_abandoned(self, overhead: int) -> Batch:
        """The same less the parts of partitions that were given away: their new owner sends them."""
        if not any(part.chunk.abandoned for part in self.parts):
            return self
        return _batch_of([part for part in self.parts if not part.chunk.abandoned], overhead)

    def halves(self, overhead: int) -> tuple[Batch, Batch]:
        middle = len(self.parts) // 2
        return _batch_of(self.parts[:middle], overhead), _batch_of(self.parts[middle:], overhead)


def _batch_of(parts: Sequence[Part], overhead: int) -> Batch:
    batch = Batch(overhead)
    for part in parts:
        batch.append(part)
    return batch


class Lane(Generic[K]):
    """The batches of one key: one open, those closed (oldest first), those under way.

    While `failures` is not 0 one request at a time probes whether the service takes the key again.
    """

    __slots__ = (
        "closed",
        "due",
        "failures",
        "key",
        "offered",
        "opened",
        "outage",
        "overhead",
        "retry",
        "timer",
        "under_way",
    )

    def __init__(self, key: K, overhead: int, outage: Outage) -> None:
        self.key = key
        self.overhead = overhead
        self.opened: Batch | None = None
        # A heap by the first part's number, unique among batches: what failed goes before what came later.
        self.closed: list[tuple[int, Batch]] = []
        self.under_way: dict[int, Batch] = {}
        self.due = False
        self.timer: asyncio.Handle | None = None
        self.failures = 0
        self.outage = outage
        self.retry: asyncio.TimerHandle | None = None
        self.offered = False

    @property
    def sendable(self) -> bool:
        if self.retry is not None or (self.failures and self.under_way):
            return False
        return bool(self.closed) or self.due

    @property
    def idle(self) -> bool:
        return self.opened is None and not self.closed and not self.under_way and self.retry is None

    def put(self, batch: Batch) -> None:
        heapq.heappush(self.closed, (batch.parts[0].number, batch))

    def close(self) -> None:
        """Close the open batch, if there is one."""
        if self.timer is not None:
            self.timer.cancel()
        if self.opened is not None:
            self.put(self.opened)
        self.opened, self.timer, self.due = None, None, False

    def prune(self) -> None:
        """Forget abandoned parts of closed batches, else a long outage with rebalances keeps them all."""
        batches = [batch.without_abandoned(self.overhead) for _, batch in self.closed]
        self.closed = [(batch.parts[0].number, batch) for batch in batches if batch.parts]
        heapq.heapify(self.closed)

    def oldest(self) -> float:
        """Number of the oldest part not yet settled; infinite if there is none."""
        numbers = [number for number, _ in self.closed[:1]]
        numbers += self.under_way
        numbers += [self.opened.parts[0].number] if self.opened else []
        return min(numbers, default=float("inf"))


class Dispatcher(Generic[K]):
    """Batches by key for one destination. `overhead` gives the bytes of a key's envelope, `linger` is seconds."""

    def __init__(
        self, *, destination: str, post: Post[K], max_events: int, max_bytes: int, overhead: Callable[[K], int],
        linger: float, max_in_flight: int, metrics: Metrics, backoff: Backoff,
    ) -> None:  # fmt: skip
        self._destination = destination
        self.upstream = Upstream(destination, metrics)
        self._post = post
        self._max_events, self._max_bytes = max_events, max_bytes
        self._overhead = overhead
        self._linger = linger
        self._max_in_flight = max_in_flight
        self._backoff = backoff
        self._lanes: dict[K, Lane[K]] = {}
        self._ready: deque[Lane[K]] = deque()
        self._requests: set[asyncio.Task[None]] = set()
        self._numbers = count()
        self._progress = asyncio.Event()
        self._closed = False
        self._outcomes = {outcome: metrics.dispatches.labels(destination, outcome) for outcome in OUTCOMES}
        self._cuts = {trigger: metrics.dispatch_cuts.labels(destination, trigger) for trigger in TRIGGERS}
        self._events = metrics.dispatched_events.labels(destination)
        self._bytes = metrics.dispatched_bytes.labels(destination)
        self._batch_events = metrics.events_per_dispatch.labels(destination)
        self._seconds = metrics.dispatch_seconds.labels(destination)

    def add(self, key: K, part: bytes, events: int, chunk: Chunk, record: Delivery) -> None:
        """Take one part of a body, `events` events for `record`; never blocks. The chunk gets one settlement for it.

        A part that alone is over a bound is refused here: no request may be over. After `close` nothing is taken.
        """
        if self._closed:
            return
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key, self._overhead(key), self._outage())
        batch = lane.opened
        if batch is not None and (trigger := self._full(batch, len(part), events)):
            self._cut(lane, trigger)
            batch = None
        if batch is None:
            batch = Batch(lane.overhead)
            if self._full(batch, len(part), events):
                if not chunk.abandoned:
                    chunk.reject(record, Rejected("event_too_large", "alone it is over the limit of a request"))
                return
            lane.opened = batch
            lane.timer = asyncio.get_running_loop().call_later(self._linger, self._lingered, lane)
        # A copy: the heap keeps a hole behind each text that orjson made, and thousands held here double the process.
        batch.append(Part(next(self._numbers), bytes(memoryview(part)), events, chunk, record))
        if batch.events == self._max_events:
            self._cut(lane, COUNT)

    @property
    def held(self) -> bool:
        """The destination does not take what it is sent, for one key at least."""
        return bool(self.upstream.outages())

    async def drain(self) -> None:
        """Send what was added until now without lingering and wait until it is settled, however long that takes.

        What is added meanwhile is not waited for. The caller sets the deadline.
        """
        end = next(self._numbers)
        for lane in list(self._lanes.values()):
            if lane.opened is not None:
                self._cut(lane, DRAIN)
        while any(lane.oldest() < end for lane in self._lanes.values()):
            self._progress.clear()
            await self._progress.wait()

    async def close(self) -> None:
        """Stop at once. What was not settled stays so: its offsets are not committed and it is sent again."""
        self._closed = True
        for task in self._requests:
            task.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)
        for lane in self._lanes.values():
            for handle in (lane.timer, lane.retry):
                if handle is not None:
                    handle.cancel()
        self._lanes.clear()
        self._ready.clear()
        self._progress.set()

    def _outage(self) -> Outage:
        return self.upstream.outage(
            begins="dispatch held", ends="dispatch resumed", log=log, destination=self._destination
        )

    def _full(self, batch: Batch, size: int, events: int) -> str | None:
        return batch.full_for(size, events, max_events=self._max_events, max_bytes=self._max_bytes)

    def _cut(self, lane: Lane[K], trigger: str) -> None:
        self._cuts[trigger].inc()
        lane.close()
        self._offer(lane)
        self._pump()

    def _lingered(self, lane: Lane[K]) -> None:
        # Without a free slot the batch stays open and goes on filling: fewer, larger requests under load.
        lane.timer, lane.due = None, True
        self._offer(lane)
        self._pump()

    def _offer(self, lane: Lane[K]) -> None:
        if lane.sendable and not lane.offered:
            lane.offered = True
            self._ready.append(lane)

    def _pump(self) -> None:
        """Fill the free slots, one batch of each ready key in turn."""
        while self._ready and len(self._requests) < self._max_in_flight and not self._closed:
            lane = self._ready.popleft()
            lane.offered = False
            if not lane.sendable:
                continue
            if not lane.closed:
                self._cuts[LINGER].inc()
                lane.close()
            batch = heapq.heappop(lane.closed)[1].without_abandoned(lane.overhead)
            if batch.parts:
                lane.under_way[batch.parts[0].number] = batch
                task = asyncio.create_task(self._request(lane, batch), name=f"dispatch-{self._destination}")
                self._requests.add(task)
                task.add_done_callback(self._requested)
            self._offer(lane)
            self._tidy(lane)

    async def _request(self, lane: Lane[K], batch: Batch) -> None:
        body = self._post.body(lane.key, [part.body for part in batch.parts])
        try:
            with self._seconds.time():
                await self._post.send(lane.key, body)
        except PayloadRefused as error:
            self._release(lane)
            self._refused(lane, batch, error)
        except Unavailable as error:
            self._outcomes["retried"].inc()
            self._hold(lane, batch, UNAVAILABLE, error)
        except UpstreamError as error:
            # AccessRefused, and statuses no one expects here, such as a redirect: a person must look at the address.
            self._outcomes["denied"].inc()
            self._hold(lane, batch, DENIED, error)
        else:
            self._outcomes["ok"].inc()
            self._events.inc(batch.events)
            self._bytes.inc(len(body))
            self._batch_events.observe(batch.events)
            self._release(lane)
            _settle(batch)
        del lane.under_way[batch.parts[0].number]
        self._offer(lane)
        self._tidy(lane)

    def _requested(self, task: asyncio.Task[None]) -> None:
        self._requests.discard(task)
        self._progress.set()
        self._pump()
        if not task.cancelled():
            # A defect in a strategy or a chunk: raised here it reaches the loop's exception handler at once.
            task.result()

    def _refused(self, lane: Lane[K], batch: Batch, error: PayloadRefused) -> None:
        if len(batch.parts) == 1:
            part = batch.parts[0]
            self._reject(part.chunk, part.record, error)
            return
        self._outcomes["split"].inc()
        for half in batch.halves(lane.overhead):
            lane.put(half)

    def _reject(self, chunk: Chunk, record: Delivery, error: PayloadRefused) -> None:
        self._outcomes["refused"].inc()
        if not chunk.abandoned:
            chunk.reject(record, self._post.refused(error))

    def _hold(self, lane: Lane[K], batch: Batch, reason: str, error: UpstreamError) -> None:
        lane.put(batch)
        if lane.retry is not None:
            return  # Another request of the key failed just before: one outage is one series of failures.
        lane.failures += 1
        pause = self._backoff.delay(lane.failures, error.retry_after if isinstance(error, Unavailable) else None)
        lane.retry = asyncio.get_running_loop().call_later(pause, self._probe, lane)
        lane.outage.begin(reason, str(error), status=error.status)

    def _probe(self, lane: Lane[K]) -> None:
        lane.retry = None
        lane.prune()
        self._offer(lane)
        self._pump()
        self._tidy(lane)

    def _release(self, lane: Lane[K]) -> None:
        if lane.retry is not None:
            return  # An answer to an earlier request does not shorten the pause the service asked for.
        lane.failures = 0
        lane.outage.end()

    def _tidy(self, lane: Lane[K]) -> None:
        """Forget a key with nothing on its way, so that keys changed long ago leave nothing behind."""
        if lane.idle and self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]
            self._progress.set()
            lane.outage.forget()


def _settle(batch: Batch) -> None:
    """Tell each chunk how many of its parts are durable, once for a run of parts of one chunk."""
    chunk, run = batch.parts[0].chunk, 0
    for part in batch.parts:
        if part.chunk is not chunk:
            chunk.done(run)
            chunk, run = part.chunk, 0
        run += 1
    chunk.done(run)


def refusal(service: str, error: PayloadRefused) -> str:
    """What a service said of the one part it refused, for the dead letter, which holds the part's record anyway."""
    said = error.body.decode("utf-8", "replace").strip()
    return f"{service} refused the event: {error}" + (f": {said}" if said else "")
