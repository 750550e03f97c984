"""Whatever was asked, on whatever datafile was taken: the answer is one line of JSON that keeps its contract."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pipeline.decision import Facts, Prediction, answer
from pipeline.errors import DatafileRefused, Rejected
from pipeline.messages.contracts import DECIDE_RESULT, MAX_NESTING
from pipeline.messages.decide import DECIDE_OPTIONS, DecideRequest, parse_decide_request
from pipeline.messages.results import parse_result
from pipeline.project import ProjectConfig, compile_datafile
from tests.decision.deciding import settled
from tests.decision.projects import Json, decided, flag, project, request, rule, variation
from tests.project.damage import ANY_JSON, WHOLE, damaged

MAX_BYTES = 1024**2
PARSING = "error parsing request body"

# Requests

_FLAGS = st.sampled_from([one["key"] for one in WHOLE["featureFlags"]] + ["gone", ""]) | st.text(max_size=3)
_RULES = st.sampled_from(["", "ab", "bandit", "td", "fr", "grouped", "first", "default-61", "gone"])
_VARIATIONS = st.sampled_from(["on", "off", "b1", "held", "gone", ""])
_ATTRIBUTES = st.dictionaries(
    st.sampled_from(["a", "version", "gone", "$opt_bucketing_id", "$opt_user_agent", "$opt_bot_filtering", ""])
    | st.text(max_size=3),
    ANY_JSON | st.sampled_from(["x", "y", 2, 7.5, "2.1", "2.1.0-alpha", "1.0", True]),
    max_size=5,
)
_USUAL = st.fixed_dictionaries(
    {"userId": st.sampled_from(["ada", "bob", "eve", "ž"]) | st.text(min_size=1, max_size=4)},
    optional={
        "requestId": st.text(max_size=4),
        "userAttributes": _ATTRIBUTES,
        "keys": st.lists(_FLAGS, max_size=4),
        "decideOptions": st.lists(st.sampled_from(sorted(DECIDE_OPTIONS)), max_size=4),
        "forcedDecisions": st.lists(
            st.fixed_dictionaries(
                {"flagKey": _FLAGS}, optional={"ruleKey": _RULES, "variationKey": st.none() | _VARIATIONS}
            ),
            max_size=3,
        ),
        "ttlMs": st.integers(1, 10**6),
    },
)
_NAMES = st.sampled_from(
    ["requestId", "userId", "userAttributes", "keys", "decideOptions", "forcedDecisions", "fetchSegments", "x"]
)
REQUESTS = _USUAL | st.builds(lambda usual, odd: usual | odd, _USUAL, st.dictionaries(_NAMES, ANY_JSON, max_size=2))

# What was fetched comes as text that was read from JSON: without lone surrogates.
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
_IDS = st.sampled_from(["1", "3", "4", "5", "6", "7", "8", "gone"]) | _TEXT
_CHOSEN = st.sampled_from(["101", "102", "105", "106", "107", "108", "109", "110", "", "gone"]) | _TEXT
FACTS = st.builds(
    Facts,
    st.none() | st.frozensets(st.sampled_from(["vip", "other", ""]) | _TEXT, max_size=3),
    st.none() | st.dictionaries(_IDS, _CHOSEN, max_size=4),
    st.none() | st.dictionaries(_IDS, st.none() | st.builds(Prediction, _CHOSEN, _TEXT), max_size=4),
)


def parsed(document: object) -> DecideRequest:
    try:
        return parse_decide_request(json.dumps(document).encode(), max_bytes=MAX_BYTES)
    except Rejected:
        assume(False)
        raise


def checked(line: bytes) -> Json:
    """A line that is an answer; read by two readers alike."""
    assert b"\n" not in line
    assert b"\r" not in line
    result: Json = orjson.loads(line)
    assert json.loads(line) == result
    assert DECIDE_RESULT.is_valid(result), DECIDE_RESULT.first_fault(result)
    return result


def answered(config: ProjectConfig, asked: DecideRequest, facts: Facts) -> Json:
    """The answer; what is wanted first is given, so far as the facts have it."""
    found = answer(config, asked, facts, source="t-0-1", timestamp=1700)
    if found.wanted:
        assert found.value == b""
        known = facts.predictions or {}
        assert found.wanted.keys().isdisjoint(known)
        later = answer(
            config, asked, msgspec.structs.replace(facts, predictions={**known, **dict.fromkeys(found.wanted)}),
            source="t-0-1", timestamp=1700,
        )  # fmt: skip
        assert not later.wanted or later.wanted.keys().isdisjoint(found.wanted)
    last = settled(config, asked, facts, source="t-0-1", timestamp=1700)
    result = checked(last.value)
    assert (result["userId"], result["source"], result["timestamp"]) == (asked.user_id, "t-0-1", 1700)
    assert result.get("error") == asked.error
    learned = last.learned or {}
    assert all(type(part) is str for pair in learned.items() for part in pair)
    return result


@cache
def whole() -> ProjectConfig:
    return compile_datafile(json.dumps(WHOLE).encode())


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(REQUESTS, FACTS)
def test_any_request(document: Json, facts: Facts) -> None:
    asked = parsed(document)
    result = answered(whole(), asked, facts)
    if asked.error is None and "ENABLED_FLAGS_ONLY" not in asked.options:
        assert [one["flagKey"] for one in result["decisions"]] == list(asked.keys or whole().flags)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(damaged(), st.lists(_USUAL, min_size=2, max_size=2), FACTS)
def test_any_request_on_a_damaged_datafile(datafile: Json, documents: list[Json], facts: Facts) -> None:
    try:
        config = compile_datafile(json.dumps(datafile).encode())
    except DatafileRefused:
        return
    for document in documents:
        # Texts that cannot be written are refused by the parser; here they must not come from elsewhere.
        try:
            asked = parse_decide_request(json.dumps(document).encode(), max_bytes=MAX_BYTES)
        except Rejected:
            continue
        answered(config, asked, facts)
        answered(config, msgspec.structs.replace(asked, options=frozenset({"INCLUDE_REASONS"}), keys=()), facts)


# One by one: the value of a record. A line of `pipeline decide` is the same, see tests/test_offline.py


def usable(text: str, **more: Any) -> DecideRequest:
    """The request with this text, as it stands, as the attribute `a`."""
    document = json.dumps({"userId": "ada", "userAttributes": {"a": "HERE"}} | more).replace('"HERE"', text)
    return parse_decide_request(document.encode(), max_bytes=MAX_BYTES)


def rejection(raw: bytes) -> tuple[str, str]:
    with pytest.raises(Rejected) as rejected:
        parse_decide_request(raw, max_bytes=MAX_BYTES)
    return rejected.value.reason, rejected.value.detail


@pytest.mark.parametrize(
    ("raw", "reason", "detail"),
    [
        (b"", "empty", "the record has no value"),
        (b" ", "not_json", "input data is empty, at character 0"),
        (b'\xef\xbb\xbf{"userId":"ada"}', "not_json", "UTF-8 byte order mark (BOM) is not supported, at character 0"),
        (b'\xff\xfe{"userId":"ada"}', "not_json", "not UTF-8 at byte 0"),
        (b'{"userId":"\xed\xa0\x80"}', "not_json", "not UTF-8 at byte 11"),
        (b'{"userId":"ada","x":"\xff"}', "not_json", "not UTF-8 at byte 21"),
        (b'{"userId":"\\ud800"}', "not_json", "no low surrogate in string, at character 11"),
        (
            b'{"userId":"ada","userAttributes":{"a":"\\ud800"}}',
            "not_json",
            "no low surrogate in string, at character 39",
        ),
        (b'{"userId":"ada","userAttributes":{"\\udfff":1}}', "not_json", "invalid high surrogate in string, at"),
        (b'{"userId":"ada","x":"\\ud800x"}', "not_json", "no low surrogate in string, at"),
        (b'{"userId":"ada","userAttributes":{"a":NaN}}', "not_json", "unexpected character, expected a JSON value, at"),
        (
            b'{"userId":"ada","userAttributes":{"a":Infinity}}',
            "not_json",
            "unexpected character, expected a JSON value, at",
        ),
        (b'{"userId":"ada","userAttributes":{"a":-Infinity}}', "not_json", "no digit after sign, at character 39"),
        (
            b'{"userId":"ada","x":' + b"[" * 10**5 + b"]" * 10**5 + b"}",
            "not_json",
            "depth limit exceeded, at character ",
        ),
        (b'{"a":' * 10**5 + b"1" + b"}" * 10**5, "not_json", "depth limit exceeded, at character "),
        (b'{"userId":"ada"', "not_json", "unexpected end of data, at character 15"),
        (b'{"userId":"ada","pad":"' + b"x" * 50 * 1024**2 + b'"}', "too_large", "52428825 bytes; at most 1048576 are"),
        (b'{"userId":"ada","userId":5}', "user_id_missing", "userId is no string"),
    ],
)
def test_what_is_no_request_is_rejected_with_its_fault(raw: bytes, reason: str, detail: str) -> None:
    told = rejection(raw)
    assert told[0] == reason
    assert told[1].startswith(detail)
    assert told[1]


def test_of_a_repeated_member_the_last_counts() -> None:
    for raw in (
        b'{"userId":5,"userId":"ada","keys":["x"],"keys":["f1"],"userAttributes":{"a":1,"a":"x"}}',
        b'{"userId":"bob","userId":"ada","keys":["x"],"keys":["f1"],"userAttributes":{"a":1,"a":"x"}}',
    ):
        asked = parse_decide_request(raw, max_bytes=MAX_BYTES)
        assert (asked.user_id, asked.keys, asked.attributes) == ("ada", ("f1",), {"a": "x"})


def test_nesting_within_what_is_read_but_not_within_what_is_written_is_an_error() -> None:
    for depth in (MAX_NESTING, 1000):
        assert usable("[" * depth + "]" * depth).error == PARSING
    assert usable("[" * (MAX_NESTING - 2) + "]" * (MAX_NESTING - 2)).error is None


def compared(match: str, value: object, asked: DecideRequest) -> bool:
    """Whether the user is in an audience that compares the attribute `a`, and whether in its opposite: one of both."""
    leaf = {"name": "a", "type": "custom_attribute", "match": match, "value": value}
    found = []
    for conditions in (leaf, ["not", leaf]):
        experiment = rule("1", "e", variation("101", "on"), audienceIds=["21"])
        config = project(
            featureFlags=[flag("f", experiment)], experiments=[experiment],
            typedAudiences=[{"id": "21", "name": "a", "conditions": conditions}],
            attributes=[{"id": "41", "key": "a"}], sendFlagDecisions=True,
        )  # fmt: skip
        result = answered(config, asked, Facts())
        found.append(bool(result["decisions"][0]["ruleKey"]))
        sent = result["tracking"]["attributes"]
        assert [one["key"] for one in sent] == (["a"] if abs(asked.attributes["a"]) <= 2**53 else [])
    assert not all(found)
    return any(found)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("9007199254740992", True), ("9007199254740993", False), ("9223372036854775808", False),
        ("18446744073709551615", False), ("18446744073709551616", False), ("-18446744073709551616", False),
        ("1" * 300, False), ("1e308", False), ("-9007199254740992", True), ("-9007199254740993", False),
    ],
)  # fmt: skip
def test_a_number_beyond_two_to_the_53_is_a_number_that_is_not_compared_and_not_sent(text: str, told: bool) -> None:
    """2^64 is a number, which a reader may round: it is carried along, as JSON, and matches nothing."""
    asked = usable(text)
    assert asked.error is None
    assert compared("gt", 5, asked) is told
    assert compared("exact", 5, asked) is told
    result = answered(project(featureFlags=[flag("f")]), asked, Facts())
    echoed = result["decisions"][0]["userContext"]["attributes"]["a"]
    assert echoed == (
        int(text) if re.fullmatch("-?[0-9]{1,20}", text) and -(2**63) <= int(text) < 2**64 else float(text)
    )


@pytest.mark.parametrize("text", ["18446744073709551615", "18446744073709551616", "9007199254740993"])
def test_large_bucketing_ids_are_told_of(text: str) -> None:
    asked = usable("1", userAttributes={"$opt_bucketing_id": "HERE"}, decideOptions=["INCLUDE_REASONS"])
    asked.attributes["$opt_bucketing_id"] = orjson.loads(text)
    experiment = rule("1", "e", variation("101", "on"))
    config = project(featureFlags=[flag("f", experiment)], experiments=[experiment])
    (decision,) = answered(config, asked, Facts())["decisions"]
    assert f'invalid bucketing ID provided: \\"{text}\\"' in decision["reasons"][-1]


def test_a_bucketing_id_that_is_no_text_is_told_of_in_its_own_letters() -> None:
    experiment = rule("1", "e", variation("101", "on"))
    config = project(featureFlags=[flag("f", experiment)], experiments=[experiment])
    attributes = {"$opt_bucketing_id": ["Ada"]}
    (reason,) = decided(config, "f", attributes=attributes, options=("INCLUDE_REASONS",))["reasons"][-1:]
    assert "Ada" in reason


# Trees


@pytest.mark.parametrize("options", [(), ("INCLUDE_REASONS",)])
def test_the_deepest_and_the_widest_audiences_are_decided_and_told_of(options: tuple[str, ...]) -> None:
    leaf: Any = {"name": "a", "type": "browser"}
    deep: Any = leaf
    gone: Any = "gone"
    for _ in range(64):
        deep, gone = ["not", deep], ["not", gone]
    wide = ["or", *["gone"] * 10**5, "22"]
    audiences = [{"id": "21", "name": "d", "conditions": deep}, {"id": "22", "name": "w", "conditions": ["or"]}]
    experiments = [
        rule("1", "deep", variation("101", "on"), audienceIds=["21"]),
        rule("2", "lost", variation("102", "on"), audienceConditions=gone),
        rule("3", "wide", variation("103", "on"), audienceConditions=wide),
        rule("4", "last", variation("104", "on")),
    ]
    config = project(
        featureFlags=[flag("f", *experiments)], experiments=experiments, typedAudiences=audiences
    )  # fmt: skip
    decision = decided(config, "f", options=options)
    assert decision["ruleKey"] == "last"
    told = decision["reasons"]
    if not options:
        assert told == []
        return
    assert told[:3] == [
        'unable to evaluate condition of type "browser"',
        'an error occurred while evaluating nested tree for audience ID "21"',
        "Audiences for experiment deep collectively evaluated to false.",
    ]
    assert told.count('unable to evaluate nested tree for audience ID "gone"') == 10**5 + 1


@pytest.mark.parametrize("depth", [10, MAX_NESTING, 10**5])
def test_a_variable_however_deep_leaves_the_answer_readable(depth: int) -> None:
    """What is written must be read again by the role that sends its impressions."""
    variables = [{"id": "v", "key": "v", "type": "json", "defaultValue": "[" * depth + "]" * depth}]
    config = project(featureFlags=[flag("f", variables=variables)], sendFlagDecisions=True)
    found = answer(config, request("f"), Facts(), source="t-0-1", timestamp=1)
    assert (checked(found.value)["decisions"][0]["variables"]["v"] is None) == (depth > MAX_NESTING)
    assert parse_result(found.value).tracking
