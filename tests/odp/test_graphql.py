"""The query is one a real schema takes; of an answer each user gets exactly its own part."""

from __future__ import annotations

import orjson
import pytest
from graphql import parse, validate
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SegmentsUnavailable, Unavailable
from pipeline.odp.graphql import Outcome, QueryTooLarge, parse_answer, query_text, request_body
from tests.odp.stand_in import SCHEMA

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def told(outcome: Outcome) -> str | frozenset[str]:
    return outcome.reason if isinstance(outcome, SegmentsUnavailable) else outcome


def answered(document: object, users: int) -> list[str | frozenset[str]]:
    return [told(outcome) for outcome in parse_answer(orjson.dumps(document), users)]


def customer(*nodes: tuple[str, str]) -> dict[str, object]:
    return {"audiences": {"edges": [{"node": {"name": name, "state": state}} for name, state in nodes]}}


A = customer(("a", "qualified"))


@pytest.mark.parametrize("users", [1, 2, 50])
def test_query_is_valid_and_the_same_for_the_same_number(users: int) -> None:
    text = query_text(users)
    assert not validate(SCHEMA, parse(text))
    assert text is query_text(users)
    assert text.count("customer(") == users


@given(users=st.lists(texts, min_size=1, max_size=5), segments=st.lists(texts, max_size=4))
def test_values_are_variables_only(users: list[str], segments: list[str]) -> None:
    document = orjson.loads(request_body(users, segments))
    assert document["query"] == query_text(len(users))
    variables = document["variables"]
    assert variables.pop("a") == segments
    assert [variables[f"u{number}"] for number in range(len(users))] == users
    assert len(variables) == len(users)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param({"data": {"u0": A}}, frozenset("a"), id="qualified"),
        pytest.param({"data": {"u0": customer()}}, frozenset(), id="no edges"),
        pytest.param({"data": {"u0": customer(("a", "unqualified"))}}, frozenset(), id="unqualified"),
        pytest.param({"data": {"u0": customer(("a", "QUALIFIED"))}}, frozenset(), id="state is case-sensitive"),
        pytest.param({"data": {"u0": A}, "errors": None}, frozenset("a"), id="errors null"),
        pytest.param({"data": {"u0": A}, "errors": []}, "decode_error", id="errors empty"),
        pytest.param({"data": {"u0": A}, "errors": [{"message": "x"}]}, "decode_error", id="error beside data"),
        pytest.param({"data": {"u0": None}}, "decode_error", id="customer null"),
        pytest.param({"data": {}}, "decode_error", id="no customer"),
        pytest.param({"data": None}, "decode_error", id="data null"),
        pytest.param({"data": {"u0": {"audiences": {"edges": None}}}}, "decode_error", id="edges null"),
        pytest.param({"data": {"u0": {"audiences": {"edges": {}}}}}, "decode_error", id="edges an object"),
        pytest.param({"data": {"u0": {"audiences": []}}}, "decode_error", id="audiences a list"),
        pytest.param([], "decode_error", id="a list"),
        pytest.param(
            {"data": {"u0": {"audiences": {"edges": [
                {"node": None}, "junk", None, {}, {"node": {"name": 5, "state": "qualified"}},
                {"node": {"name": "not asked", "state": "qualified"}},
            ]}}}},
            frozenset({"not asked"}), id="odd edges skipped, unasked segment taken",
        ),
    ],
)  # fmt: skip
def test_answer_for_one_user(answer: object, expected: str | frozenset[str]) -> None:
    assert answered(answer, 1) == [expected]


@pytest.mark.parametrize("body", [b"", b"not json", b"\xff", b'{"data":'])
def test_not_json(body: bytes) -> None:
    assert [told(outcome) for outcome in parse_answer(body, 2)] == ["decode_error"] * 2


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        ({"code": "INVALID_IDENTIFIER_EXCEPTION", "classification": "DataFetchingException"}, "invalid_identifier"),
        ({"classification": "InvalidIdentifierException"}, "invalid_identifier"),
        ({"code": "INTERNAL_EXCEPTION", "classification": "DataFetchingException"}, "query_error"),
        ({"code": "X"}, "decode_error"),
        (None, "decode_error"),
    ],
)
def test_error_with_a_path_fails_that_user_only(extensions: object, expected: str) -> None:
    errors = [{"message": "could not resolve", "path": ["u1"], "extensions": extensions}]
    assert answered({"data": {"u0": A, "u1": None, "u2": customer()}, "errors": errors}, 3) == [
        frozenset("a"), expected, frozenset(),
    ]  # fmt: skip


def test_error_deep_in_a_users_share_fails_the_user() -> None:
    error = {"path": ["u0", "audiences", "edges", 0], "extensions": {"classification": "DataFetchingException"}}
    assert answered({"data": {"u0": A, "u1": A}, "errors": [error]}, 2) == ["query_error", frozenset("a")]


@pytest.mark.parametrize("path", [None, [], ["u9"], ["u00001"], ["customer"], [0], "u0"])
def test_error_that_names_no_user_fails_those_without_data(path: object) -> None:
    error = {"path": path, "extensions": {"classification": "ValidationError"}}
    assert answered({"data": {"u0": A, "u1": None}, "errors": [error]}, 2) == [frozenset("a"), "query_error"]


def test_error_that_explains_nothing_fails_all() -> None:
    assert answered({"data": {"u0": A, "u1": A}, "errors": [{"message": "partial"}]}, 2) == ["decode_error"] * 2


def test_users_own_error_is_kept_beside_a_general_one() -> None:
    errors = [
        {"path": ["u1"], "extensions": {"code": "INVALID_IDENTIFIER_EXCEPTION"}},
        {"message": "x", "extensions": {"classification": "ValidationError"}},
    ]
    assert answered({"data": {"u0": A, "u1": None}, "errors": errors}, 2) == [frozenset("a"), "invalid_identifier"]


def test_refusal_for_size_concerns_the_whole_query() -> None:
    refusal = {"errors": [{"message": "Query is too complex: 60 > 50"}]}
    with pytest.raises(QueryTooLarge):
        answered(refusal, 2)
    assert answered(refusal, 1) == ["decode_error"]
    assert answered({"errors": [{"message": "Field 'x' is undefined"}]}, 2) == ["decode_error"] * 2


@pytest.mark.parametrize(
    "message", ["Rate limit exceeded", "request rate exceeded", "Throttled", "Too many requests", "Quota exceeded"]
)
@pytest.mark.parametrize("users", [1, 2])
def test_refusal_of_so_many_requests_is_an_outage_and_not_a_query_too_large(message: str, users: int) -> None:
    with pytest.raises(Unavailable) as caught:
        answered({"data": None, "errors": [{"message": message}]}, users)
    assert caught.value.status == 429


def test_a_limit_told_beside_data_fails_only_those_without() -> None:
    error = {"message": "Rate limit exceeded", "extensions": {"classification": "Limit"}}
    assert answered({"data": {"u0": A, "u1": None}, "errors": [error]}, 2) == [frozenset("a"), "query_error"]


def test_complexity_is_no_rate() -> None:
    for message in ("Cost limit exceeded: separate your queries", "Too many aliases", "Query depth exceeded"):
        with pytest.raises(QueryTooLarge):
            answered({"errors": [{"message": message}]}, 2)


def test_detail_is_bounded_and_in_the_sdks_words() -> None:
    error = {"path": ["u0"], "extensions": {"classification": "X" * 500}}
    (outcome,) = parse_answer(orjson.dumps({"data": {"u0": None}, "errors": [error]}), 1)
    assert isinstance(outcome, SegmentsUnavailable)
    assert outcome.detail == f"audience segments fetch failed ({'X' * 64})"


@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["u0", "qualified", "audiences"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["data", "errors", "u0", "u1", "audiences", "edges", "node", "name", "state", "path",
                         "extensions", "message", "classification"]), inner, max_size=4),
    max_leaves=30,
).map(orjson.dumps))  # fmt: skip
def test_whatever_comes_there_is_one_outcome_for_each_user(body: bytes) -> None:
    outcomes = parse_answer(body, 2)
    assert len(outcomes) == 2
