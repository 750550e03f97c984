"""Role logx: impressions from published decisions, conversions from track events. Its one effect is the POST to logx.

An impression is taken from `tracking` in the result alone: what was decided and published is what Optimizely hears,
whatever the datafile says by now. A conversion needs the datafile, for its event's id and the attributes' ids.
"""

from __future__ import annotations

from pipeline.datafile.poller import Datafiles
from pipeline.errors import Rejected
from pipeline.handlers.identities import IgnoredIdentities
from pipeline.handlers.keys import project_of
from pipeline.logx.dispatcher import Logx
from pipeline.logx.payload import conversion, impressions
from pipeline.messages.delivery import Chunk, Delivery, identity_of
from pipeline.messages.events import parse_track_event
from pipeline.settings import LogxSettings


class ImpressionsHandler:
    """The results of one partition."""

    def __init__(self, logx: Logx, settings: LogxSettings) -> None:
        self._logx = logx
        self._max_events = settings.batch_events
        self._max_bytes = int(settings.batch_bytes)

    def handle(self, chunk: Chunk) -> None:
        """Hand each result's impressions to the dispatcher; a result that owes none is done."""
        nothing_due = 0
        for record in chunk.records:
            try:
                due = self._due(record, chunk)
            except Rejected as why:
                chunk.reject(record, why)
                continue
            if not due:
                nothing_due += 1
        if nothing_due:
            chunk.done(nothing_due)

    def _due(self, record: Delivery, chunk: Chunk) -> bool:
        owed = impressions(record.value, max_events=self._max_events, max_bytes=self._max_bytes)
        if owed is None:
            return False
        envelope, visitors = owed
        if len(visitors) > 1:
            chunk.expect(len(visitors) - 1)
        for visitor, events in visitors:
            self._logx.add(envelope, visitor, events, chunk, record)
        return True


class ConversionsHandler:
    """The track events of one partition."""

    def __init__(self, logx: Logx, datafiles: Datafiles, *, max_record_bytes: int) -> None:
        self._logx = logx
        self._datafiles = datafiles
        self._max_record_bytes = max_record_bytes
        self._identities = IgnoredIdentities()

    def handle(self, chunk: Chunk) -> None:
        """Hand each conversion to the dispatcher; what Optimizely could not attribute is a dead letter."""
        for record in chunk.records:
            try:
                event = parse_track_event(record.value, max_bytes=self._max_record_bytes)
                source, timestamp = identity_of(record)
                project = project_of(self._datafiles, event.sdk_key)
                envelope, visitor, events = conversion(project, event, source=source, timestamp=timestamp)
            except Rejected as why:
                chunk.reject(record, why)
                continue
            if record.headers:
                self._identities.look_at(record)
            self._logx.add(envelope, visitor, events, chunk, record)
