"""A large document is read and freed in small steps, and is what orjson makes of the whole."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.project import compile_datafile, document
from pipeline.project.document import free, read_document
from tests.benchmarks.project import datafile

# Each name so unlike the others that no damage makes two of them the same: what a later one hides is not read.
SMALL = orjson.dumps(
    {
        "experiments": [1, "x", {"inner": [True, None, 1.5e3, "\u00e9\U0001f600"]}, []],
        "groups": {"text": "e", "list": [-0.0]},
        "\u00e9\u00e8\u00fc\u00f6\u00e4\u00ef": "4",
        "nothing": [],
    }
)
# A list that is read by its entries, one of them in turn by its members.
LARGE = orjson.dumps({"padding": [["y" * 60_000], {"member": ["x" * 60_000, 2], "other": 1}, *["z" * 1000] * 30]})
WHOLE = LARGE[:-1] + b"," + SMALL[1:] + b" \n"
PLACES = [at for at in range(len(WHOLE)) if WHOLE[at] not in b"xyz" or WHOLE[at - 1] not in b"xyz"]
TOKENS = [
    *(bytes([octet]) for octet in range(256)),
    b"\\ud800", b"\\udfff", b"\\u0000", b"NaN", b"-Infinity", b"1e999", b"18446744073709551616", b"null", b"[]", b"//",
    b"\xef\xbb\xbf", b"\xed\xa0\x80", b'":', b'",', b"[" * 1030 + b"]" * 1030,
]  # fmt: skip


def outcome(read: Any, raw: bytes) -> tuple[Any, ...]:
    try:
        return ("read", repr(read(raw)))
    except orjson.JSONDecodeError as error:
        return ("refused", error.msg, error.pos)


@settings(deadline=None, max_examples=1500)
@given(st.lists(st.tuples(st.sampled_from(PLACES), st.integers(0, 2), st.sampled_from(TOKENS)), max_size=2))
def test_damaged_or_not_it_is_what_the_whole_is(damage: list[tuple[int, int, bytes]]) -> None:
    raw = WHOLE
    for at, removed, token in damage:
        raw = raw[:at] + token + raw[at + removed :]
    assert outcome(read_document, raw) == outcome(orjson.loads, raw)


@pytest.mark.parametrize(
    "raw", [b"[" + b"1," * 50_000 + b"1]", b'"' + b"x" * 60_000 + b'"', b" " * 60_000 + b"{}", b""]
)
def test_what_is_no_object(raw: bytes) -> None:
    assert outcome(read_document, raw) == outcome(orjson.loads, raw)


def test_of_a_repeated_member_the_last_counts() -> None:
    raw = b'{"a":1,"b":2,"a":3,"x":"' + b"x" * 60_000 + b'"}'
    assert list(orjson.loads(raw).items()) == list(read_document(raw).items())  # type: ignore[attr-defined]


def test_no_step_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    class Noting:
        JSONDecodeError = orjson.JSONDecodeError

        @staticmethod
        def loads(text: bytes) -> Any:
            steps.append(len(text))
            return orjson.loads(text)

    raw = datafile(20, pad_bytes=2_000_000)
    # One rollout, whose rules are most of the document.
    rollout = {"id": "deep", "experiments": [{"id": f"{n}", "key": "k" * 900} for n in range(1000)]}
    raw = raw.replace(b'"rollouts":[', b'"rollouts":[' + orjson.dumps(rollout) + b",", 1)
    monkeypatch.setattr(document, "orjson", Noting)
    compile_datafile(raw)
    assert sum(steps) > 2_500_000
    assert max(steps) <= document._LARGE


def test_what_is_let_go_is_empty() -> None:
    section: list[Any] = [{"id": "1"}, {"id": "2"}]
    whole = {"experiments": section, "version": "4", "groups": {}}
    free(whole)
    assert (whole, section) == ({}, [])
    free(["no datafile"])


def test_a_refused_datafile_is_let_go_too(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[object] = []
    monkeypatch.setattr("pipeline.project.datafile.free", freed.append)
    compile_datafile(b'{"version":"4","revision":"1"}')
    with pytest.raises(Exception, match="revision is missing"):
        compile_datafile(b'{"version":"4"}')
    assert freed == [{"version": "4", "revision": "1"}, {"version": "4"}]
