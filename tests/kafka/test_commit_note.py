"""The note in a commit's metadata: read as it was written, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.kafka.commit_note import CommitNote

OFFSETS = st.integers(0, 2**63 - 1)


TOPIC_IDS = st.none() | st.text("AZaz09-_", min_size=22, max_size=22)
REQUESTS, RESULTS = "aK3u_x-Zq0aM5kq2S1bTNg", "-cHG2p5wQx2n4cJ1p8m_9w"


@given(st.none() | OFFSETS, st.integers(0, 10**6), st.none() | OFFSETS, TOPIC_IDS, TOPIC_IDS)
def test_a_note_is_read_as_it_was_written(
    floor: int | None, unclean: int, alone: int | None, topic: str | None, results: str | None
) -> None:
    note = CommitNote(floor, unclean, alone, topic, results)
    assert CommitNote.decode(note.encode()) == note


@pytest.mark.parametrize(
    ("note", "text"),
    [
        (CommitNote(), ""),
        (CommitNote(12), "floor=12"),
        (CommitNote(0, 3), "floor=0 unclean=3"),
        (CommitNote(12, 4, 99), "floor=12 unclean=4 alone=99"),
        (CommitNote(None, 1), "unclean=1"),
        (CommitNote(7, topic=REQUESTS, results=RESULTS), f"floor=7 topic={REQUESTS} results={RESULTS}"),
        (CommitNote(topic=REQUESTS), f"topic={REQUESTS}"),
    ],
)
def test_a_note_is_short_text_that_a_person_can_read(note: CommitNote, text: str) -> None:
    assert note.encode() == text
    assert CommitNote.decode(text) == note


@pytest.mark.parametrize(
    "text",
    [
        None,
        "somebody else's",
        "floor=",
        "floor=-1",
        "floor=x",
        "floor=1;",
        " floor=1",
        "floor=1\n",
        "floor=" + "9" * 20,
        "topic=" + "A" * 21,
        "floor=1 topic=" + "A" * 21 + "=",
    ],
)
def test_what_somebody_else_committed_is_no_note(text: str | None) -> None:
    assert CommitNote.decode(text) == CommitNote()


@given(st.text())
def test_no_metadata_whatever_it_is_stops_a_takeover(text: str) -> None:
    note = CommitNote.decode(text)
    assert note.unclean >= 0
