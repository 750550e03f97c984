"""Headers of a dead letter: where a record came from and why it was given up, beside the headers it had.

Key and value stay the record's own bytes. Called by the writer of the dead letters; `schemas/dead-letter.schema.json`
is the contract of what is added here.
"""

from __future__ import annotations

from pipeline.errors import Rejected
from pipeline.messages.contracts import DEAD_LETTER
from pipeline.messages.delivery import SOURCE_HEADER, TIMESTAMP_HEADER, Delivery, identity_of

TOPIC_HEADER = "pipeline-source-topic"
PARTITION_HEADER = "pipeline-source-partition"
OFFSET_HEADER = "pipeline-source-offset"
ROLE_HEADER = "pipeline-role"
REASON_HEADER = "pipeline-reason"
DETAIL_HEADER = "pipeline-detail"
# Added by the writer where the value is too large to copy.
POINTER_HEADER = "pipeline-pointer"

# A replayed record may bring all of these; a second failure replaces them.
ADDED_HEADERS = frozenset(
    {
        TOPIC_HEADER,
        PARTITION_HEADER,
        OFFSET_HEADER,
        SOURCE_HEADER,
        TIMESTAMP_HEADER,
        ROLE_HEADER,
        REASON_HEADER,
        DETAIL_HEADER,
        POINTER_HEADER,
    }
)
MAX_DETAIL_BYTES = 1024

# The schema is the only list of reasons.
REASONS: tuple[str, ...] = tuple(DEAD_LETTER.schema["properties"][REASON_HEADER]["enum"])


def dead_letter_headers(record: Delivery, why: Rejected, *, role: str) -> list[tuple[str, bytes]]:
    """The record's own headers, then ours. Identity and timestamp are those the record first had."""
    source, timestamp = identity_of(record)
    added = (
        (TOPIC_HEADER, record.topic),
        (PARTITION_HEADER, str(record.partition)),
        (OFFSET_HEADER, str(record.offset)),
        (SOURCE_HEADER, source),
        (TIMESTAMP_HEADER, str(timestamp)),
        (ROLE_HEADER, role),
        (REASON_HEADER, why.reason),
        (DETAIL_HEADER, _shortened(why.detail)),
    )
    kept = [header for header in record.headers if header[0] not in ADDED_HEADERS]
    return kept + [(name, text.encode("utf-8")) for name, text in added]


def _shortened(text: str) -> str:
    """At most MAX_DETAIL_BYTES in UTF-8, cut between characters, whatever the text holds."""
    return text.encode("utf-8", "replace")[:MAX_DETAIL_BYTES].decode("utf-8", "ignore")
