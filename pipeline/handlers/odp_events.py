"""Role odp_events: events for the customer data platform. Its one effect is the POST to ODP.

To its sender an event is accepted once it is on the topic; whether it was delivered is seen here, in the metrics, in
the logs and in the dead letters, and nothing is lost in between.
"""

from __future__ import annotations

from pipeline.datafile.poller import Datafiles
from pipeline.errors import Rejected
from pipeline.handlers.identities import IgnoredIdentities
from pipeline.handlers.keys import project_of
from pipeline.logx.payload import CLIENT_VERSION, event_uuid
from pipeline.messages.delivery import Chunk, identity_of
from pipeline.messages.events import parse_odp_event
from pipeline.odp.events import OdpEvents, render_event


class OdpEventsHandler:
    """The ODP events of one partition."""

    def __init__(self, events: OdpEvents, datafiles: Datafiles, *, max_record_bytes: int) -> None:
        self._events = events
        self._datafiles = datafiles
        self._max_record_bytes = max_record_bytes
        self._identities = IgnoredIdentities()

    def handle(self, chunk: Chunk) -> None:
        """Hand each event to the dispatcher of its account; what ODP cannot take is a dead letter."""
        for record in chunk.records:
            try:
                event = parse_odp_event(record.value, max_bytes=self._max_record_bytes)
                project = project_of(self._datafiles, event.sdk_key)
                if project.odp is None:
                    raise Rejected("odp_not_integrated", "ODP is not integrated")
            except Rejected as why:
                chunk.reject(record, why)
                continue
            if record.headers:
                self._identities.look_at(record)
            source, timestamp = identity_of(record)
            # The same record gives the same id for ever, so that a repetition is one event to ODP.
            idempotence_id = event_uuid(source, timestamp, 0)
            body = render_event(event, idempotence_id=idempotence_id, version=CLIENT_VERSION)
            self._events.add(project.odp, body, chunk, record)
