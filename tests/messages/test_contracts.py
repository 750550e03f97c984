"""The schemas as contracts: complete, readable by others, and the same in both drafts that readers use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import pytest

from pipeline.decision import Facts, answer, failure
from pipeline.errors import Rejected
from pipeline.messages import contracts
from pipeline.messages.contracts import MAX_NESTING, read_object, too_deep
from pipeline.messages.decide import parse_decide_request
from pipeline.project import compile_datafile
from pipeline.sandbox.project_data import PRODUCTION, datafiles, segments_of, user_id
from pipeline.settings import SDK_KEY_PATTERN
from tests.messages.examples import CONTRACTS, MAX_BYTES, SCHEMAS, closed, document, faults, files, nested
from tests.messages.faults import FAULTS

NAMES = sorted(CONTRACTS)
EXAMPLES = [
    pytest.param(message, kind, path, id=f"{message}-{kind}-{name}")
    for message in NAMES
    for kind in ("valid", "invalid")
    for name, path in files(kind, message).items()
]
IGNORED = "unknown-property-is-ignored"
# Written in every result, and still not promised: a reader must do without.
NOT_PROMISED = {"$: sdkKey", "$: revision", "impressions: cmabUuid", "attributes: type"}
LATER_DRAFT = "https://json-schema.org/draft/2020-12/schema"
# Keywords that mean the same in draft-07, which AsyncAPI speaks, and in 2020-12.
COMMON = {
    "$schema", "title", "description", "type", "required", "properties", "additionalProperties", "items", "enum",
    "pattern", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems", "maxProperties",
    "not", "if", "then",
}  # fmt: skip


def subschemas(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema inside a schema, with where it stands."""
    yield path or "$", schema
    for name, inner in schema.get("properties", {}).items():
        yield from subschemas(inner, f"{path}/{name}")
    for keyword in ("items", "additionalProperties", "not", "if", "then"):
        if keyword in schema:
            yield from subschemas(schema[keyword], f"{path}/{keyword}")


def test_every_contract_has_its_schema_and_its_examples() -> None:
    assert {path.name.removesuffix(".schema.json") for path in SCHEMAS.glob("*.schema.json")} == set(NAMES)
    for kind in ("valid", "invalid"):
        folders = [path.name for path in (SCHEMAS / "examples" / kind).iterdir()]
        assert sorted(folders) == NAMES
        assert [name for name in NAMES if len(files(kind, name)) < 4] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_describes_everything_in_words_both_drafts_share(name: str) -> None:
    schema = CONTRACTS[name].schema
    assert schema["title"]
    jsonschema_rs.meta.validate(schema)
    for where, inner in subschemas(schema):
        assert set(inner) <= COMMON, where
        if "/if" not in where and "/then" not in where and not where.endswith("/not") and "/not/" not in where:
            assert inner.get("description", "").endswith("."), where


@pytest.mark.parametrize(("message", "kind", "path"), EXAMPLES)
def test_an_example_is_what_its_folder_says(message: str, kind: str, path: Path) -> None:
    contract = CONTRACTS[message]
    example = orjson.loads(path.read_bytes())
    later_draft = jsonschema_rs.Draft202012Validator({**contract.schema, "$schema": LATER_DRAFT})
    assert contract.is_valid(example) == (kind == "valid"), contract.first_fault(example)
    assert later_draft.is_valid(example) == (kind == "valid")
    assert bool(contract.first_fault(example)) == (kind == "invalid")


@pytest.mark.parametrize("message", NAMES)
def test_an_invalid_example_has_the_fault_that_its_name_says_and_no_other(message: str) -> None:
    contract = CONTRACTS[message]
    assert {name: faults(contract, document("invalid", message, name)) for name in files("invalid", message)} == FAULTS[
        message
    ]


@pytest.mark.parametrize("message", ["decide-request", "track-event", "odp-event"])
def test_only_the_example_of_an_unknown_property_has_one(message: str) -> None:
    whole = jsonschema_rs.Draft7Validator(closed(CONTRACTS[message].schema))
    assert [name for name in files("valid", message) if not whole.is_valid(document("valid", message, name))] == [
        IGNORED
    ]


def real_results() -> Iterator[dict[str, Any]]:
    """What the worker answers: decisions of many kinds, and errors."""
    project = compile_datafile(datafiles("https://odp.example")[PRODUCTION])
    for number in range(1, 200):
        user = user_id(number)
        attributes = {"plan": ("free", "pro")[number % 2], "country": ("SI", "DE", "US")[number % 3], "age": number}
        options = [["EXCLUDE_VARIABLES"], ["INCLUDE_REASONS"], ["DISABLE_DECISION_EVENT"], []][number % 4]
        request = parse_decide_request(
            orjson.dumps({"userId": user, "userAttributes": attributes, "decideOptions": options}), max_bytes=MAX_BYTES
        )
        facts = Facts(segments=frozenset(segments_of(user) or ()))
        yield orjson.loads(answer(project, request, facts, source=f"t-0-{number}", timestamp=number).value)
        yield orjson.loads(failure(request, "request expired", source=f"t-0-{number}", timestamp=-1, revision=None))


def test_what_every_result_holds_is_promised_and_nothing_else() -> None:
    seen: dict[str, list[dict[str, Any]]] = {"$": []}
    for result in real_results():
        assert contracts.DECIDE_RESULT.is_valid(result)
        assert jsonschema_rs.is_valid(closed(contracts.DECIDE_RESULT.schema), result)
        tracking = result.get("tracking")
        for name, objects in {
            "$": [result],
            "decisions": result["decisions"],
            "userContext": [decision["userContext"] for decision in result["decisions"]],
            "tracking": [tracking] if tracking else [],
            "impressions": tracking["impressions"] if tracking else [],
            "attributes": tracking["attributes"] if tracking else [],
        }.items():
            seen.setdefault(name, []).extend(objects)
    always = {f"{name}: {key}" for name, all_of in seen.items() for key in set.intersection(*map(set, all_of))}
    required = {
        f"{where.removesuffix('/items').rpartition('/')[2] or '$'}: {key}"
        for where, inner in subschemas(contracts.DECIDE_RESULT.schema)
        if not where.startswith(("/if", "/then"))
        for key in inner.get("required", ())
    }
    assert required == always - NOT_PROMISED


@pytest.mark.parametrize("name", NAMES)
def test_every_property_is_shown_by_a_valid_example(name: str) -> None:
    described = {
        f"{where}/{key}"
        for where, inner in subschemas(CONTRACTS[name].schema, "")
        for key in inner.get("properties", {})
        if "/then" not in where
    }
    shown: set[str] = set()
    for path in files("valid", name).values():
        shown |= _paths(orjson.loads(path.read_bytes()), "$")
    assert {where.replace("$/", "/") for where in described} - {where.removeprefix("$") for where in shown} == set()


def _paths(document: object, path: str) -> set[str]:
    if isinstance(document, list):
        return set().union(*(_paths(entry, f"{path}/items") for entry in document))
    if not isinstance(document, dict):
        return set()
    here = {f"{path}/{name}" for name in document}
    return here.union(*(_paths(inner, f"{path}/{name}") for name, inner in document.items()))


@pytest.mark.parametrize("name", ["decide-result", "dead-letter"])
def test_our_own_messages_show_nothing_undescribed(name: str) -> None:
    open_objects = re.compile(r"/(attributes|variables)/(?!items)|^/(traceparent|expires-at)$")
    described = {
        f"{where}/{key}".replace("$/", "/")
        for where, inner in subschemas(CONTRACTS[name].schema, "")
        for key in inner.get("properties", {})
    }
    for path in files("valid", name).values():
        shown = {where.removeprefix("$") for where in _paths(orjson.loads(path.read_bytes()), "$")}
        assert {where for where in shown if not open_objects.search(where)} <= described, path.name


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ({"userId": "u", "eventKey": "e"}, ""),
        ({"eventKey": "e"}, "$: required"),
        ([], "$: type"),
        ({"userId": "u", "eventKey": "e", "eventTags": ["jo@example.org"]}, "eventTags: type"),
        ({"userId": "jo@example.org", "eventKey": "e", "timestamp": 12345}, "timestamp: minimum"),
    ],
)
def test_the_first_fault_is_a_place_and_a_keyword(document: object, fault: str) -> None:
    assert contracts.TRACK_EVENT.first_fault(document) == fault


def test_a_fault_quotes_neither_values_nor_names_that_may_be_personal() -> None:
    def fault(name: str) -> str:
        return contracts.ODP_EVENT.first_fault({"action": "a", "identifiers": {"v": "1"}, "data": {name: ["secret"]}})

    assert fault("price_eur") == "data.price_eur: type"
    assert fault("utm-source") == "data.utm-source: type"
    for name in ("jo@example.org", "Jo Smith", "ž", "41 555 010", "x" * 65):
        assert fault(name) == "data.*: type"
    listed = {"userId": "u", "forcedDecisions": [None, {"flagKey": ["secret"]}]}
    assert contracts.DECIDE_REQUEST.first_fault(listed) == "forcedDecisions.1.flagKey: type"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dead-letter"])
def test_a_fault_is_told_however_deep_the_document_is(name: str) -> None:
    contract = CONTRACTS[name]
    example = orjson.loads(next(iter(files("valid", name).values())).read_bytes())
    for key in contract.schema["properties"]:
        for deep in (nested(300), [[nested(300)]]):
            whole = example | {key: deep}
            assert bool(contract.first_fault(whole)) != contract.is_valid(whole), key
            # One that lacks everything else has a fault for certain.
            assert contract.first_fault({key: deep}) == "$: depth"


@pytest.mark.parametrize("key", ["k", "A+/=_-9", "k" * 128, "k" * 129, "a b", "a:b", "ž", "k\n"])
def test_contract_and_settings_agree_what_an_sdk_key_is(key: str) -> None:
    # Python's `$` would let a final line break pass; pydantic's and the schema's do not.
    accepted = re.fullmatch(SDK_KEY_PATTERN.strip("^$"), key) is not None
    for name, required in (
        ("decide-request", {"userId": "u"}),
        ("track-event", {"userId": "u", "eventKey": "e"}),
        ("odp-event", {"action": "a", "identifiers": {"vuid": "v"}}),
    ):
        assert CONTRACTS[name].is_valid({**required, "sdkKey": key}) == accepted


BROKEN = {
    "text": b"userId=u",
    "blank": b" \n",
    "cut": b'{"userId":"u"',
    "trailing comma": b'{"userId":"u",}',
    "text after": b'{"userId":"u"} extra',
    "two documents": b'{"userId":"u"}{"userId":"v"}',
    "single quotes": b"{'userId':'u'}",
    "comment": b'{"userId":"u"/*c*/}',
    "byte order mark": b'\xef\xbb\xbf{"userId":"u"}',
    "utf-16": '{"userId":"u"}'.encode("utf-16"),
    "invalid utf-8": b'{"userId":"\xff\xfe"}',
    "lone surrogate": b'{"userId":"\\ud83d"}',
    "lone surrogate as a name": b'{"\\udc00":1,"userId":"u"}',
    "line break in text": b'{"userId":"u\nv"}',
    "NaN": b'{"userId":"u","userAttributes":{"a":NaN}}',
    "Infinity": b'{"userId":"u","userAttributes":{"a":-Infinity}}',
    "beyond float": b'{"userId":"u","userAttributes":{"a":1e400}}',
    "number of ten thousand digits": b'{"userId":"u","userAttributes":{"a":' + b"9" * 10_000 + b"}}",
    "octal": b'{"userId":"u","userAttributes":{"a":012}}',
    "nested 100,000 levels": b'{"userId":"u","userAttributes":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    "opened 100,000 times": b'{"a":' * 100_000,
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
}


@pytest.mark.parametrize("value", BROKEN.values(), ids=BROKEN)
def test_what_is_no_json_is_rejected_without_a_quotation(value: bytes) -> None:
    with pytest.raises(Rejected) as rejection:
        read_object(value, max_bytes=MAX_BYTES)
    assert rejection.value.reason == "not_json"
    assert "userId" not in rejection.value.detail
    assert 0 < len(rejection.value.detail) < 200


@pytest.mark.parametrize("value", [b"null", b"[]", b'"x"', b"5", b"1.5", b"true", b'[{"userId":"u"}]'])
def test_json_that_is_no_object_is_rejected(value: bytes) -> None:
    with pytest.raises(Rejected) as rejection:
        read_object(value, max_bytes=MAX_BYTES)
    assert rejection.value.reason == "not_an_object"


@pytest.mark.parametrize("value", [None, b""])
def test_a_record_without_a_value_is_rejected(value: bytes | None) -> None:
    with pytest.raises(Rejected) as rejection:
        read_object(value, max_bytes=MAX_BYTES)
    assert rejection.value.reason == "empty"


def test_a_record_over_the_cap_is_rejected_unread() -> None:
    assert read_object(b"{}", max_bytes=2) == {}
    with pytest.raises(Rejected) as rejection:
        read_object(b"{ }", max_bytes=2)
    assert (rejection.value.reason, rejection.value.detail) == ("too_large", "3 bytes; at most 2 are read")


def test_the_last_of_equal_names_counts_and_large_numbers_are_rounded() -> None:
    assert read_object(b'{"a":1,"a":2}', max_bytes=99) == {"a": 2}
    assert read_object(b'{"a":18446744073709551616}', max_bytes=99) == {"a": float(2**64)}


@pytest.mark.parametrize(
    ("levels", "refused"), [(1, False), (MAX_NESTING, False), (MAX_NESTING + 1, True), (900, True)]
)
def test_depth_is_bounded_to_what_can_be_written_again(levels: int, refused: bool) -> None:
    value = b'{"a":' * (levels - 1) + b"{}" + b"}" * (levels - 1)
    # Further brackets beside it, so that counting them does not settle the question.
    value = b'{"b":[[],{},[]],' + value[1:] if levels > 1 else value
    document = orjson.loads(value)
    assert document.get("a", {}) == (nested(levels - 1) if levels > 1 else {})
    assert too_deep(value, document) == refused
    if not refused:
        # As deep as the decisions of a result repeat the attributes.
        orjson.dumps({"decisions": [{"userContext": {"attributes": document}}]})


@pytest.mark.parametrize(
    "document", [{"a": "[" * 500}, {"a": [{} for _ in range(500)]}, {"a": [[[]] for _ in range(500)]}]
)
def test_many_brackets_are_not_depth(document: dict[str, Any]) -> None:
    assert not too_deep(orjson.dumps(document), document)
