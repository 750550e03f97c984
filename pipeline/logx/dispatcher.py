"""Visitors on their way to Optimizely's event endpoint, in as few requests as its limits allow.

A request holds visitors of one envelope, at most `logx.batch_events` events and `logx.batch_bytes` bytes, envelope
and commas counted. Any 2xx settles them; whatever is not accepted is held, or split down to the one visitor that is
refused (see `pipeline/dispatch.py`). Called by the role `logx`; the window of its partitions bounds the memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.dispatch import Dispatcher, refusal
from pipeline.errors import PayloadRefused, Rejected
from pipeline.limits import Backoff
from pipeline.logx.payload import Envelope, envelope_bytes, overhead
from pipeline.messages.delivery import Chunk, Delivery
from pipeline.metrics import Metrics
from pipeline.settings import LogxSettings
from pipeline.transport import Transport

_HEADERS = {"Content-Type": "application/json"}


class Logx:
    """The one way to Optimizely's events. Not started: it works as soon as something is added."""

    def __init__(
        self, *, transport: Transport, settings: LogxSettings, metrics: Metrics, backoff: Backoff | None = None
    ) -> None:
        self._dispatcher = Dispatcher[Envelope](
            destination="logx",
            post=_Endpoint(transport, settings),
            max_events=settings.batch_events,
            max_bytes=settings.batch_bytes,
            overhead=overhead,
            linger=settings.linger,
            max_in_flight=settings.max_in_flight,
            metrics=metrics,
            backoff=backoff or Backoff(),
        )
        self.upstream = self._dispatcher.upstream

    def add(self, envelope: Envelope, visitor: bytes, events: int, chunk: Chunk, record: Delivery) -> None:
        """Take one visitor; never blocks. The chunk gets one settlement for it: done, or the record rejected."""
        self._dispatcher.add(envelope, visitor, events, chunk, record)

    @property
    def held(self) -> bool:
        """Optimizely does not take events at the moment."""
        return self._dispatcher.held

    async def drain(self) -> None:
        """Send what was added, without lingering, and wait until it is settled. The caller sets the deadline."""
        await self._dispatcher.drain()

    async def close(self) -> None:
        """Stop at once; what was not settled is read and sent again, with the same identities."""
        await self._dispatcher.close()


class _Endpoint:
    """Where an envelope's region goes, and how a body is put together."""

    def __init__(self, transport: Transport, settings: LogxSettings) -> None:
        self._transport = transport
        self._timeout = settings.request_timeout
        # As in the SDKs, a region that is not known is the US.
        self._url, self._urls = settings.url, {"EU": settings.eu_url}

    def body(self, key: Envelope, parts: Sequence[bytes]) -> bytes:
        before, after = envelope_bytes(key)
        return b"".join((before, b",".join(parts), after))

    async def send(self, key: Envelope, body: bytes) -> None:
        url = self._urls.get(key.region.upper(), self._url)
        await self._transport.post(url, body, headers=_HEADERS, timeout=self._timeout)

    def refused(self, error: PayloadRefused) -> Rejected:
        return Rejected("logx_refused", refusal("Optimizely", error))
