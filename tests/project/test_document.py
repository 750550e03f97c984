"""A large document is read and freed in small steps, and is what orjson makes of the whole."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DatafileRefused
from pipeline.project import compile_datafile, document
from pipeline.project.document import Document
from tests.benchmarks.project import datafile

SMALL = orjson.dumps(
    {
        "experiments": [1, "x", {"inner": [True, None, 1.5, "\u00e9\U0001f600"]}, []],
        "groups": {"text": "e", "list": [-0.0]},
        "\u00e9\u00e8": "4",
        "nothing": [],
    }
)
# A list that is read by its entries, one of them in turn by its members; and members that a later one hides.
LARGE = orjson.dumps({"padding": [["y" * 60_000], {"member": ["x" * 60_000, 2], "other": 1}, *["z" * 1000] * 30]})
HIDDEN = b'"groups":[{"text":"\xc3\xa9"},2],"":{"a":"b","a":[]},"":"\\u00e9","padding":["a"],'
WHOLE = b"\n" + LARGE[:1] + HIDDEN + LARGE[1:-1] + b"," + SMALL[1:] + b" \n"
PLACES = [at for at in range(len(WHOLE)) if WHOLE[at] not in b"xyz" or WHOLE[at - 1] not in b"xyz"]
TOKENS = [
    *(bytes([octet]) for octet in range(256)),
    b"\\ud800", b"\\udfff", b"\\u0000", b"\\x", b"NaN", b"-Infinity", b"01", b"1.", b"tru", b"null", b"[]", b"//",
    b"\xef\xbb\xbf", b"\xed\xa0\x80", b'":', b'",', b'"a":"\xff",', b"[" * 1100 + b"]" * 1100,
]  # fmt: skip


def read(raw: bytes) -> object:
    return Document(raw).root


def outcome(reading: Any, raw: bytes) -> tuple[Any, ...]:
    try:
        return ("read", repr(reading(raw)))
    except orjson.JSONDecodeError as error:
        return ("refused", error.msg, error.pos)


@settings(deadline=None, max_examples=1500)
@given(st.lists(st.tuples(st.sampled_from(PLACES), st.integers(0, 2), st.sampled_from(TOKENS)), max_size=2))
def test_damaged_or_not_it_is_what_the_whole_is(damage: list[tuple[int, int, bytes]]) -> None:
    raw = WHOLE
    for at, removed, token in damage:
        raw = raw[:at] + token + raw[at + removed :]
    assert outcome(read, raw) == outcome(orjson.loads, raw)


@pytest.mark.parametrize("number", [b"1e999", b"18446744073709551616", b"-1e-999", b"1" * 400])
def test_numbers_beyond_64_bits(number: bytes) -> None:
    raw = LARGE.replace(b'"other":1', b'"other":' + number)
    assert outcome(read, raw) == outcome(orjson.loads, raw)


@pytest.mark.parametrize(
    "raw", [b"[" + b"1," * 50_000 + b"1]", b'"' + b"x" * 60_000 + b'"', b" " * 60_000 + b"{}", b""]
)
def test_what_is_no_object(raw: bytes) -> None:
    assert outcome(read, raw) == outcome(orjson.loads, raw)


def deep() -> bytes:
    """One rollout, whose rules are most of a part of the datafile."""
    rollout = {"id": "deep", "experiments": [{"id": f"{n}", "key": "k" * 900} for n in range(1000)]}
    return datafile(20, pad_bytes=2_000_000).replace(b'"rollouts":[', b'"rollouts":[' + orjson.dumps(rollout) + b",", 1)


def test_no_step_of_reading_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    class Noting:
        JSONDecodeError = orjson.JSONDecodeError

        @staticmethod
        def loads(text: bytes) -> Any:
            steps.append(len(text))
            return orjson.loads(text)

    monkeypatch.setattr(document, "orjson", Noting)
    compile_datafile(deep())
    assert sum(steps) > 2_500_000
    assert max(steps) <= document._LARGE


def test_what_was_read_part_by_part_is_let_go_of_part_by_part() -> None:
    made = Document(b" \n" + deep())
    whole: Any = made.root
    experiments, small = whole["experiments"], whole["experiments"][0]
    rollout = whole["rollouts"][0]
    rules = rollout["experiments"]
    assert len(rules) == 1000
    made.free()
    assert (whole, experiments, rollout, rules) == ({}, [], {}, [])
    assert small


def test_a_refused_datafile_is_let_go_too(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[object] = []
    monkeypatch.setattr(Document, "free", lambda document: freed.append(document.root))
    compile_datafile(b'{"version":"4","revision":"1"}')
    with pytest.raises(DatafileRefused, match="revision is missing"):
        compile_datafile(b'{"version":"4"}')
    assert freed == [{"version": "4", "revision": "1"}, {"version": "4"}]
