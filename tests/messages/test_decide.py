"""Decide requests: what is answered, what is answered by an error, what is a dead letter."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import Rejected
from pipeline.messages.contracts import DECIDE_REQUEST, MAX_NESTING, too_deep
from pipeline.messages.decide import DECIDE_OPTIONS, DecideRequest, ForcedDecision, parse_decide_request
from tests.messages.examples import MAX_BYTES, document, files, nested, value
from tests.messages.faults import FAULTS
from tests.messages.strategies import documents_like

MESSAGE = "decide-request"
PARSING = "error parsing request body"

# What becomes of each invalid example: a reason, or the error that is the answer.
DEAD_LETTERS = {
    "user-id-missing": "user_id_missing",
    "user-id-null": "user_id_missing",
    "user-id-empty": "user_id_missing",
    "user-id-number": "user_id_missing",
    "user-id-list": "user_id_missing",
    "user-id-misspelled": "user_id_missing",
    "not-an-object-list": "not_an_object",
    "not-an-object-null": "not_an_object",
    "not-an-object-text": "not_an_object",
}
ERRORS = {
    "option-unknown": "invalid option: NOPE",
    "option-in-lower-case": "invalid option: include_reasons",
    "option-empty": "invalid option: ",
    "option-null": "invalid option: ",
    "option-with-markup": "invalid option: <b>&",
    "sdk-key-with-blank": "sdkKey failed validation",
    "sdk-key-too-long": "sdkKey failed validation",
}


def parse(request: object) -> DecideRequest:
    return parse_decide_request(orjson.dumps(request), max_bytes=MAX_BYTES)


def test_the_options_are_those_of_the_agent() -> None:
    assert {
        "DISABLE_DECISION_EVENT",
        "ENABLED_FLAGS_ONLY",
        "IGNORE_USER_PROFILE_SERVICE",
        "EXCLUDE_VARIABLES",
        "INCLUDE_REASONS",
        "IGNORE_CMAB_CACHE",
        "RESET_CMAB_CACHE",
        "INVALIDATE_USER_CMAB_CACHE",
    } == DECIDE_OPTIONS


@pytest.mark.parametrize("name", files("valid", MESSAGE))
def test_a_valid_example_is_a_request_without_error(name: str) -> None:
    request = parse_decide_request(value("valid", MESSAGE, name), max_bytes=MAX_BYTES)
    assert request.error is None
    assert request.user_id == document("valid", MESSAGE, name)["userId"]


@pytest.mark.parametrize("name", DEAD_LETTERS)
def test_an_example_that_names_no_user_is_rejected(name: str) -> None:
    with pytest.raises(Rejected) as rejection:
        parse_decide_request(value("invalid", MESSAGE, name), max_bytes=MAX_BYTES)
    assert rejection.value.reason == DEAD_LETTERS[name]
    assert rejection.value.detail


@pytest.mark.parametrize("name", sorted(set(files("invalid", MESSAGE)) - set(DEAD_LETTERS)))
def test_any_other_invalid_example_is_answered_by_its_error(name: str) -> None:
    request = parse_decide_request(value("invalid", MESSAGE, name), max_bytes=MAX_BYTES)
    assert request.user_id == "u"
    assert request.error == ERRORS.get(name, PARSING)


def test_the_expectations_name_existing_examples() -> None:
    assert set(DEAD_LETTERS) | set(ERRORS) <= set(files("invalid", MESSAGE))


def test_everything_is_read() -> None:
    assert parse(document("valid", MESSAGE, "everything")) == DecideRequest(
        user_id="user-1",
        request_id="0f8fad5b-d9cb-469f-a165-70867728950e",
        sdk_key="Kq3zV8wL2bT7nR5xY1mP9",
        attributes={"country": "SI", "age": 34, "score": 0.75, "beta": True, "referrer": None},
        keys=("checkout_flow", "new_search"),
        options=frozenset({"INCLUDE_REASONS", "IGNORE_USER_PROFILE_SERVICE"}),
        forced=(ForcedDecision("new_search", "search_ab", "treatment"),),
        fetch_segments=True,
        ignore_cache=True,
        reset_cache=False,
        ttl_ms=5000,
        error=None,
    )


@pytest.mark.parametrize("name", ["null-is-absent", "empty-is-absent", "unknown-property-is-ignored"])
def test_null_empty_and_unknown_change_nothing(name: str) -> None:
    assert parse(document("valid", MESSAGE, name)) == parse({"userId": "user-1"})
    assert parse({"userId": "user-1"}) == DecideRequest(
        "user-1", None, None, {}, (), frozenset(), (), False, False, False, None, None
    )


# Of examples whose fault is only told by the error, nothing; of the others the first fault that is one of types.
DETAILS = {
    "option-unknown-and-keys-text": "keys: type",
    "option-unknown-and-number": "decideOptions.1: type",
    "option-number": "decideOptions.0: type",
}


@pytest.mark.parametrize("name", sorted(set(files("invalid", MESSAGE)) - set(DEAD_LETTERS)))
def test_an_error_that_does_not_say_so_itself_has_the_fault_as_its_detail(name: str) -> None:
    request = parse_decide_request(value("invalid", MESSAGE, name), max_bytes=MAX_BYTES)
    if name in ERRORS:
        assert request.detail is None
    else:
        assert request.detail == DETAILS.get(name, FAULTS[MESSAGE][name])


def test_the_detail_of_a_fault_among_others_is_of_a_type_and_quotes_nothing() -> None:
    document = {"userId": "u", "userAttributes": {"mail": "someone@example.org"}, "decideOptions": ["NOPE", None]}
    assert parse(document | {"forcedDecisions": [{"flagKey": "f"}, {"ruleKey": 5}]}).detail == (
        "forcedDecisions.1.ruleKey: type"
    )
    assert parse(document | {"decideOptions": ["NOPE", {"someone": 1}]}).detail == "decideOptions.1: type"
    assert parse({"userId": "u", "x": nested(MAX_NESTING)}).detail == "$: depth"
    deep = b'{"userId":"u","keys":' + b'{"a":' * 280 + b"1" + b"}" * 281
    assert parse_decide_request(deep, max_bytes=MAX_BYTES).detail == "$: depth"


@pytest.mark.parametrize(
    ("name", "entry", "most"),
    [
        ("keys", "a", 10_000), ("decideOptions", "INCLUDE_REASONS", 1000), ("forcedDecisions", {"flagKey": "f"}, 1000),
        ("fetchSegmentsOptions", "IGNORE_CACHE", 1000),
    ],
)  # fmt: skip
def test_a_list_has_its_bound(name: str, entry: object, most: int) -> None:
    assert parse({"userId": "u", name: [entry] * most}).error is None
    over = parse({"userId": "u", name: [entry] * (most + 1)})
    assert (over.error, over.detail) == (PARSING, f"{name}: maxItems")


def test_attributes_have_their_bound_too() -> None:
    attributes = {str(number): number for number in range(10_000)}
    assert parse({"userId": "u", "userAttributes": attributes}).attributes == attributes
    assert parse({"userId": "u", "userAttributes": attributes | {"one": 1}}).detail == "userAttributes: maxProperties"


def test_a_worker_may_take_fewer_keys_than_the_contract_and_counts_the_different_ones() -> None:
    def keys(*names: str) -> DecideRequest:
        raw = orjson.dumps({"userId": "u", "requestId": "r", "sdkKey": "k", "keys": names})
        return parse_decide_request(raw, max_bytes=MAX_BYTES, max_keys=2)

    assert keys("a", "b", "a").keys == ("a", "b")
    over = keys("a", "b", "c")
    assert (over.keys, over.error) == ((), PARSING)
    assert (over.user_id, over.request_id, over.sdk_key) == ("u", "r", "k")
    assert over.detail == "keys: maxItems, 2 here (PIPELINE_DECIDE__MAX_KEYS)"


def test_a_key_sent_twice_is_told_from_one_sent_once() -> None:
    twice = parse(document("valid", MESSAGE, "one-key-twice-is-several"))
    assert (twice.keys, twice.keys_repeated) == (("a",), True)
    assert [parse({"userId": "u", "keys": keys}).keys_repeated for keys in ([], ["a"], ["a", "b"])] == [False] * 3


def test_repeated_keys_keep_their_first_place() -> None:
    assert parse(document("valid", MESSAGE, "repeated-keys")).keys == ("b", "a", "c")
    assert parse({"userId": "u", "keys": [""]}).keys == ("",)


def test_forced_decisions_are_for_a_flag_or_a_rule() -> None:
    assert parse(document("valid", MESSAGE, "forced-for-flag-and-rule")).forced == (
        ForcedDecision("a", "", "on"),
        ForcedDecision("a", "", "off"),
        ForcedDecision("b", "", "on"),
        ForcedDecision("b", "r", "on"),
        # Without a variation it is kept, and reported as an invalid one.
        ForcedDecision("c", "", ""),
        ForcedDecision("", "", ""),
    )


def test_segment_options_are_two_and_unknown_ones_are_ignored() -> None:
    request = parse(document("valid", MESSAGE, "unknown-fetch-option-is-ignored"))
    assert (request.fetch_segments, request.ignore_cache, request.reset_cache) == (True, False, True)
    assert parse({"userId": "u", "fetchSegmentsOptions": ["IGNORE_CACHE", "RESET_CACHE"]}).ignore_cache
    assert not parse({"userId": "u", "fetchSegmentsOptions": ["ignore_cache"]}).ignore_cache


def test_a_whole_number_with_a_fraction_is_whole() -> None:
    ttl = parse(document("valid", MESSAGE, "whole-number-with-fraction")).ttl_ms
    assert (ttl, type(ttl)) == (5000, int)


def test_a_faulty_request_keeps_its_usable_ids_and_nothing_else() -> None:
    faulty = {"userId": "u", "requestId": "r", "sdkKey": "k", "keys": ["a"], "userAttributes": {"a": 1}, "ttlMs": 1}
    assert parse({**faulty, "decideOptions": ["NOPE"]}) == DecideRequest(
        "u", "r", "k", {}, (), frozenset(), (), False, False, False, None, "invalid option: NOPE"
    )
    unusable = parse({**faulty, "requestId": 7, "sdkKey": "two words"})
    assert (unusable.request_id, unusable.sdk_key, unusable.error) == (None, None, "sdkKey failed validation")
    assert parse({**faulty, "requestId": "r" * 1025}).request_id is None


def test_the_sdk_key_comes_before_types_and_types_before_options() -> None:
    faults: dict[str, Any] = {"userId": "u", "sdkKey": "two words", "keys": 5, "decideOptions": ["NOPE"]}
    assert parse(faults).error == "sdkKey failed validation"
    assert parse({**faults, "sdkKey": "k"}).error == PARSING
    assert parse({**faults, "sdkKey": "k", "keys": None}).error == "invalid option: NOPE"
    assert parse({**faults, "sdkKey": 7, "keys": None}).error == PARSING


def test_an_unknown_option_is_repeated_in_part() -> None:
    assert parse({"userId": "u", "decideOptions": ["x" * 100_000]}).error == "invalid option: " + "x" * 256


def test_a_request_that_is_too_deep_is_answered_by_an_error() -> None:
    # The document and its attributes are two levels of their own.
    assert parse({"userId": "u", "userAttributes": {"a": nested(MAX_NESTING - 2)}}).error is None
    too_much = parse({"userId": "u", "requestId": "r", "userAttributes": {"a": nested(MAX_NESTING - 1)}})
    assert (too_much.error, too_much.request_id, too_much.attributes) == (PARSING, "r", {})
    assert parse({"userId": "u", "decideOptions": ["INCLUDE_REASONS"], "x": nested(MAX_NESTING)}).error == PARSING


def test_half_a_million_faults_are_one_answer() -> None:
    bytes_ = b'{"userId":"u","decideOptions":[' + b"5," * 500_000 + b"5]}"
    assert parse_decide_request(bytes_, max_bytes=2 * MAX_BYTES).error == PARSING


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | documents_like(MESSAGE).map(orjson.dumps))
def test_no_bytes_raise_anything_but_rejected(raw: bytes) -> None:
    """And a request has an error exactly when the contract says so, a rejection exactly when it names no user."""
    try:
        request = parse_decide_request(raw, max_bytes=MAX_BYTES)
    except Rejected as why:
        assert why.reason in {"empty", "not_json", "not_an_object", "user_id_missing"}
        if why.reason == "user_id_missing":
            user_id = orjson.loads(raw).get("userId")
            assert not isinstance(user_id, str) or not user_id
        return
    given_document = orjson.loads(raw)
    acceptable = DECIDE_REQUEST.is_valid(given_document) and not too_deep(raw, given_document)
    assert (request.error is None) == acceptable
    assert (request.detail is not None) == (request.error == PARSING)
    assert request.user_id == given_document["userId"]
    assert request.options <= DECIDE_OPTIONS
    assert len(set(request.keys)) == len(request.keys)
    assert all(type(part) is str for forced in request.forced for part in forced)
    # Whatever was read can be written again.
    orjson.dumps({"decisions": [{"userContext": {"attributes": request.attributes}}], "error": request.error})


def _outcome(raw: bytes) -> str:
    """All of it, types included: 1, 1.0 and true are different here."""
    try:
        return repr(parse_decide_request(raw, max_bytes=MAX_BYTES))
    except Rejected as why:
        return why.reason


ODD_VALUES = (
    "18446744073709551616", "9223372036854775808", "9223372036854775807", "-9223372036854775809", "-0", "-0.0", "1E5",
    "1e400", "0.1e-400", "5.0", "01", "1.", "NaN", "2.2250738585072011e-308", "1" * 400, '"\\ud800"', '"\\u0000"',
    '"\\ud83d\\ude00"', '"\x01"', "[1]", "[[]]", "{}", "tru", "null",
)  # fmt: skip


@pytest.mark.parametrize("text", ODD_VALUES)
@pytest.mark.parametrize("name", ["userAttributes", "ttlMs", "sdkKey", "requestId", "keys", "more"])
def test_the_short_way_reads_an_odd_value_as_the_schema_does(name: str, text: str) -> None:
    shown = f'{{"x":{text}}}' if name == "userAttributes" else text
    raw = f'{{"userId":"u","{name}":{shown}}}'.encode()
    assert _outcome(raw) == _outcome(raw[:-1] + b',"unknown":0}')


@settings(max_examples=400, deadline=None)
@given(documents_like(MESSAGE).map(orjson.dumps).filter(lambda raw: raw[:1] == b"{" and raw != b"{}"), st.data())
def test_the_short_way_reads_every_request_as_the_schema_does(raw: bytes, data: st.DataObject) -> None:
    """A property that nobody knows of takes a request the long way, and must make no difference; nor to broken ones."""
    if data.draw(st.booleans(), "broken"):
        at = data.draw(st.integers(1, len(raw) - 2), "at")
        raw = (
            raw[:at] + data.draw(st.sampled_from([b"", b"\xff", b'"', b"0", b"\xed\xa0\x80"]), "bytes") + raw[at + 1 :]
        )
    assert _outcome(raw) == _outcome(raw[:-1] + b',"unknown":0}')
