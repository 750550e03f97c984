"""Variables: cast as the Python SDK casts, on one line of JSON, null with the Agent's reason where it cannot."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.project.variables import Variable, write_values


def written(kind: str, text: str | None) -> tuple[str, tuple[str, ...]]:
    values = write_values((Variable("1", "k", kind, "unused"),), {"1": text})
    return values.member.decode().removeprefix(',"variables":{"k":').removesuffix("}"), values.errors


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("boolean", "true", "true"),
        ("boolean", "false", "false"),
        ("integer", "42", "42"),
        ("integer", "-7", "-7"),
        ("integer", "+5", "5"),
        ("integer", " 5", "5"),
        ("integer", "9007199254740993", "9007199254740993"),
        ("integer", "123456789012345678901", "123456789012345678901"),
        ("double", "0.25", "0.25"),
        ("double", "3", "3.0"),
        ("double", "1e3", "1000.0"),
        ("json", '{"a": [1, 2.5, null],\n "b": "\\u017e\\n"}', '{"a":[1,2.5,null],"b":"ž\\n"}'),
        ("json", "[1]", "[1]"),
        ("json", "5", "5"),
        ("json", "null", "null"),
        ("json", "123456789012345678901", "123456789012345678901"),
        ("string", "", '""'),
        ("string", 'a "b"\n', '"a \\"b\\"\\n"'),
        ("color", "#fff", '"#fff"'),
    ],
)
def test_values(kind: str, text: str, expected: str) -> None:
    assert written(kind, text) == (expected, ())


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("boolean", "True", "false"),
        ("boolean", "", "false"),
        ("boolean", None, "false"),
        ("integer", "abc", "null"),
        ("integer", "1.5", "null"),
        ("integer", "", "null"),
        ("integer", "9" * 5000, "null"),
        # Python reads these, but no reader of the result could: a number beyond a float's range.
        ("integer", "9" * 400, "null"),
        ("json", "-" + "9" * 400, "null"),
        ("json", '{"a": [' + "9" * 400 + "]}", "null"),
        ("double", "x", "null"),
        ("double", "inf", "null"),
        ("double", "nan", "null"),
        ("json", "{bad", "null"),
        ("json", "", "null"),
        ("json", '{"a": NaN}', "null"),
        ("json", '"\\ud800"', "null"),
        ("json", "[" * 100_000 + "]" * 100_000, "null"),
        ("string", None, "null"),
    ],
)
def test_values_that_cannot_be_cast(kind: str, text: str | None, expected: str) -> None:
    assert written(kind, text) == (expected, ('Variable value for key "k" is invalid or wrong type.',))


def test_defaults_and_own_values() -> None:
    variables = (Variable("1", "a", "string", "default a"), Variable("2", "b", "integer", "2"))
    assert write_values(variables, {"2": "7", "9": "x"}).member == b',"variables":{"a":"default a","b":7}'
    assert write_values((), {}).member == b""


@given(st.sampled_from(("boolean", "integer", "double", "json", "string", "?")), st.text())
def test_always_json_on_one_line(kind: str, text: str) -> None:
    value, _ = written(kind, text)
    assert "\n" not in value
    json.loads(value)


def test_a_json_value_is_nested_as_deep_as_a_result_can_carry() -> None:
    for depth, expected in ((200, True), (201, False)):
        text = "[" * depth + "]" * depth
        written = write_values((Variable("1", "v", "json", text),), {})
        assert (text.encode() in written.member) == expected
        assert bool(written.errors) != expected
