"""Identity headers that are not used are seen: by every role that takes replayed records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from pipeline.handlers.identities import IgnoredIdentities
from pipeline.handlers.logx import ConversionsHandler
from pipeline.handlers.odp_events import OdpEventsHandler
from pipeline.messages.delivery import Headers
from pipeline.sandbox.project_data import PRODUCTION
from pipeline.settings import LogxSettings
from tests.handlers.chunks import Loaded, records
from tests.handlers.test_decide import Bench, body
from tests.handlers.test_logx import PROJECTS
from tests.handlers.test_logx import Added as AddedToLogx
from tests.handlers.test_odp_events import Added as AddedToOdp
from tests.handlers.test_odp_events import event
from tests.settled import RecordingChunk

HALF: list[tuple[str, Any]] = [("traceparent", b"00-1"), ("pipeline-source", b"old-0-1")]


def _decide(headers: Headers) -> object:
    return Bench().chunk(body("a"), body("b", "bob"), headers=headers)


def _conversions(headers: Headers) -> None:
    converted = {"userId": "ada", "eventKey": next(iter(PROJECTS[PRODUCTION].events))}
    handler = ConversionsHandler(
        AddedToLogx(LogxSettings()), Loaded({PRODUCTION: PROJECTS[PRODUCTION]}), max_record_bytes=1000
    )
    handler.handle(RecordingChunk(records(converted, converted, headers=headers)))


def _odp_events(headers: Headers) -> None:
    handler = OdpEventsHandler(AddedToOdp(), Loaded({PRODUCTION: PROJECTS[PRODUCTION]}), max_record_bytes=1000)
    handler.handle(RecordingChunk(records(event(), event(), headers=headers)))


@pytest.mark.parametrize("handle", [_decide, _conversions, _odp_events])
def test_the_first_of_a_partition_is_a_warning_and_the_next_are_debug_lines(
    handle: Callable[[Headers], object],
) -> None:
    with capture_logs() as lines:
        handle(HALF)
        handle([*HALF, ("pipeline-timestamp", b'"5"')])
        handle([("traceparent", b"00-1")])
    assert [(line["log_level"], line["source"], line["detail"]) for line in lines] == [
        ("warning", "topic-0-0", "header pipeline-timestamp: required"),
        ("debug", "topic-0-1", "header pipeline-timestamp: required"),
    ]
    assert {line["event"] for line in lines} == {"identity headers ignored"}


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ([("pipeline-timestamp", b"5")], "header pipeline-source: required"),
        (
            [("pipeline-source", b"someone@example.org"), ("pipeline-timestamp", b"5")],
            "header pipeline-source: pattern",
        ),
        ([("pipeline-source", b"a-0-1"), ("pipeline-timestamp", b"now")], "header pipeline-timestamp: pattern"),
    ],
)
def test_the_line_names_the_header_and_not_its_value(headers: Headers, detail: str) -> None:
    (record,) = records(b"{}", headers=headers)
    with capture_logs() as lines:
        IgnoredIdentities().look_at(record)
    assert lines == [
        {"event": "identity headers ignored", "log_level": "warning", "source": "topic-0-0", "detail": detail}
    ]
