"""Events for ODP: rendered, gathered by account, posted until ODP has each of them or has refused that very one.

Nothing is dropped: an outage, a wrong key or a host that is not allowed holds the account's events, and with them the
partitions they came from. `handlers/odp_events.py` adds the events and drains them when a partition is given back.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from pipeline.dispatch import Dispatcher, refusal
from pipeline.errors import AccessRefused, PayloadRefused, Rejected
from pipeline.limits import Backoff
from pipeline.messages.delivery import Chunk, Delivery
from pipeline.messages.events import OdpEvent
from pipeline.metrics import Metrics
from pipeline.odp.client import HostNotAllowed, OdpAccount, endpoint
from pipeline.settings import OdpSettings
from pipeline.transport import Transport

DESTINATION = "odp_events"
DATA_SOURCE = "decision-pipeline"
# ODP names no limit in bytes; this one holds a record of the largest default size with room for its envelope.
MAX_BYTES = 2 * 1024**2

# Where events go and by which key. The account's segments play no part here.
Address = tuple[str, str]


def render_event(event: OdpEvent, *, idempotence_id: str, version: str) -> bytes:
    """The event as ODP takes it, with the SDKs' default data, each of which the sender may have set itself.

    A timestamp (milliseconds) becomes ODP's field `ts` in seconds, so that a late event counts when it happened.
    """
    data: dict[str, object] = {
        "idempotence_id": idempotence_id,
        "data_source_type": "sdk",
        "data_source": DATA_SOURCE,
        "data_source_version": version,
    }
    if event.timestamp is not None:
        data["ts"] = event.timestamp // 1000
    data.update(event.data)
    return orjson.dumps({"type": event.type, "action": event.action, "identifiers": event.identifiers, "data": data})


class OdpEvents:
    """The way of events to ODP. At most `odp.event_batch_size` in a request, each waits `odp.event_linger` at most."""

    def __init__(
        self, *, transport: Transport, settings: OdpSettings, metrics: Metrics, backoff: Backoff | None = None
    ) -> None:
        self._dispatcher = Dispatcher[Address](
            destination=DESTINATION,
            post=_EventPost(transport, settings),
            max_events=settings.event_batch_size,
            max_bytes=MAX_BYTES,
            overhead=lambda address: len(b"[]"),
            linger=settings.event_linger,
            max_in_flight=settings.event_max_in_flight,
            metrics=metrics,
            backoff=backoff or Backoff(),
        )
        self.upstream = self._dispatcher.upstream

    @property
    def held(self) -> bool:
        """ODP does not take the events of one account at least."""
        return self._dispatcher.held

    def add(self, account: OdpAccount, event: bytes, chunk: Chunk, record: Delivery) -> None:
        """Take a rendered event; never blocks. The chunk gets one settlement: done, or the record's rejection."""
        self._dispatcher.add((account.host, account.key), event, 1, chunk, record)

    async def drain(self) -> None:
        """Send what was added until now and wait until it is settled; the caller sets the deadline."""
        await self._dispatcher.drain()

    async def close(self) -> None:
        """Stop at once; what is not settled is sent again by whoever owns the partition next."""
        await self._dispatcher.close()


class _EventPost:
    """How a batch of events is posted to an account's ODP."""

    def __init__(self, transport: Transport, settings: OdpSettings) -> None:
        self._transport = transport
        self._settings = settings

    def body(self, key: Address, parts: Sequence[bytes]) -> bytes:
        return b"[" + b",".join(parts) + b"]"

    async def send(self, key: Address, body: bytes) -> None:
        host, api_key = key
        try:
            url = endpoint(host, "/v3/events", self._settings)
        except HostNotAllowed as error:
            # Held like a refused key: whoever allows the host, or mends the datafile, loses nothing.
            raise AccessRefused(str(error)) from error
        headers = {"Content-Type": "application/json", "x-api-key": api_key}
        await self._transport.post(url, body, headers=headers, timeout=self._settings.event_timeout)

    def refused(self, error: PayloadRefused) -> Rejected:
        return Rejected("odp_refused", refusal("ODP", error))
