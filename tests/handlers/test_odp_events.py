"""Role odp_events without Kafka and ODP: rendered for its account, or rejected."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.handlers.odp_events import OdpEventsHandler
from pipeline.logx.payload import event_uuid
from pipeline.messages.delivery import Chunk, Delivery
from pipeline.odp.client import OdpAccount
from pipeline.odp.events import OdpEvents
from pipeline.project import compile_datafile
from pipeline.sandbox.project_data import API_KEYS, PRODUCTION, datafile
from pipeline.settings import OdpSettings
from pipeline.transport import Transport
from tests.flows.project import SDK_KEY as PLAIN
from tests.flows.project import datafile as plain_datafile
from tests.handlers.chunks import Loaded, new_metrics, records
from tests.settled import RecordingChunk

PROJECTS = {
    PRODUCTION: compile_datafile(json.dumps(datafile(PRODUCTION, "http://127.0.0.1:1")).encode()),
    PLAIN: compile_datafile(plain_datafile()),
}


class Added(OdpEvents):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__(transport=Transport(), settings=OdpSettings(), metrics=new_metrics())
        self.all: list[tuple[OdpAccount, dict[str, Any], Delivery]] = []

    def add(self, account: OdpAccount, event: bytes, chunk: Chunk, record: Delivery) -> None:
        self.all.append((account, json.loads(event), record))


def handled(chunk: RecordingChunk) -> Added:
    events = Added()
    OdpEventsHandler(events, Loaded(PROJECTS), max_record_bytes=1000).handle(chunk)
    return events


def event(**fields: Any) -> dict[str, Any]:
    return {"sdkKey": PRODUCTION, "action": "viewed", "identifiers": {"fs_user_id": "ada"}} | fields


def test_an_event_goes_to_its_datafiles_account_under_the_identity_of_its_record() -> None:
    chunk = RecordingChunk(records(event(data={"product": 7}), first=12))
    ((account, sent, record),) = handled(chunk).all
    assert (account.host, account.key) == ("http://127.0.0.1:1", API_KEYS[PRODUCTION])
    assert sent["data"]["idempotence_id"] == event_uuid("topic-0-12", 1_700_000_000_000, 0)
    assert (sent["data"]["product"], sent["identifiers"], record.offset) == (7, {"fs_user_id": "ada"}, 12)
    assert chunk.settled == 0


def test_a_replayed_event_keeps_its_identity() -> None:
    headers = [("pipeline-source", b"topic-0-12"), ("pipeline-timestamp", b"1700000000000")]
    first = handled(RecordingChunk(records(event(), first=12)))
    again = handled(RecordingChunk(records(event(), first=90, timestamp=1, headers=headers)))
    assert again.all[0][1] == first.all[0][1]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{", "not_json"),
        (event(action=""), "action_missing"),
        (event(identifiers={}), "identifiers_missing"),
        (event(data={"nested": {}}), "data_invalid"),
        (event(sdkKey="nobody"), "sdk_key_unusable"),
        (event(sdkKey=None), "sdk_key_missing"),
        (event(sdkKey=PLAIN), "odp_not_integrated"),
        (event(data={"text": "x" * 1000}), "too_large"),
    ],
)
def test_an_event_that_can_never_be_sent_is_rejected_and_its_neighbours_are_handed_over(
    value: dict[str, Any] | bytes, reason: str
) -> None:
    chunk = RecordingChunk(records(event(), value, event()))
    assert [record.offset for _, _, record in handled(chunk).all] == [0, 2]
    ((record, why),) = chunk.rejected
    assert (record.offset, why.reason) == (1, reason)
