"""Says when a record's identity headers are not used: its effect then counts as another one than its first life's.

Only a replay from the dead letters sets them. One of two, or one that cannot be read, is most likely a replay that lost
something on its way; the record is processed all the same, under the identity of the place it lies at now. Called by
the roles that read what may be replayed, for records with headers.
"""

from __future__ import annotations

import structlog

from pipeline.messages.delivery import Delivery, identity_fault, source_of

log = structlog.get_logger("pipeline.identity")


class IgnoredIdentities:
    """Of one partition: the first is a warning, since others of the same producer are likely to follow."""

    __slots__ = ("_warned",)

    def __init__(self) -> None:
        self._warned = False

    def look_at(self, record: Delivery) -> None:
        fault = identity_fault(record.headers)
        if fault:
            write = log.debug if self._warned else log.warning
            self._warned = True
            write("identity headers ignored", source=source_of(record), detail=fault)
