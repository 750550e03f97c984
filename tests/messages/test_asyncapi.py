"""asyncapi.yaml: it refers to the very files the worker compiles, and says of the topics what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import pytest
import yaml

from pipeline.messages import words
from pipeline.messages.dead_letters import REASONS
from pipeline.messages.decide import PARSING_FAILED, SDK_KEY_MALFORMED
from pipeline.messages.delivery import RESULT_SOURCE_HEADER
from pipeline.settings import ROLES, Settings
from tests.messages.examples import SCHEMAS, closed
from tests.messages.reasons import TOPICS, reasons

DOCUMENT: dict[str, Any] = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text("utf-8"))
MESSAGES: dict[str, Any] = DOCUMENT["components"]["messages"]
PAYLOADS = {
    "decideRequest": "./decide-request.schema.json",
    "decideResult": "./decide-result.schema.json",
    "trackEvent": "./track-event.schema.json",
    "odpEvent": "./odp-event.schema.json",
}
TOPIC_FIELDS = ("decide_requests", "decide_results", "track_events", "odp_events", "dead_letters")


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for inner in node.values():
            yield from references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from references(inner)


def resolved(reference: str) -> Any:
    file, _, pointer = reference.partition("#")
    node: Any = orjson.loads((SCHEMAS / file).read_bytes()) if file else DOCUMENT
    for part in pointer.split("/")[1:]:
        node = node[part]
    return node


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with its references replaced by what they name."""
    if "$ref" in schema:
        return inlined(resolved(schema["$ref"]))
    properties = {name: inlined(inner) for name, inner in schema.get("properties", {}).items()}
    return {**schema, "properties": properties} if properties else schema


@pytest.mark.parametrize("reference", sorted(set(references(DOCUMENT))))
def test_every_reference_leads_somewhere(reference: str) -> None:
    assert isinstance(resolved(reference), dict)


def test_the_payloads_are_the_compiled_schemas() -> None:
    assert {name: message["payload"].get("$ref") for name, message in MESSAGES.items()} == {
        **PAYLOADS,
        "deadLetter": None,
    }
    assert MESSAGES["deadLetter"]["headers"] == {"$ref": "./dead-letter.schema.json"}
    referred = {Path(reference.partition("#")[0]).name for reference in references(DOCUMENT)} - {""}
    assert referred == {path.name for path in SCHEMAS.glob("*.schema.json")}


@pytest.mark.parametrize("name", MESSAGES)
def test_the_examples_of_a_message_are_valid(name: str) -> None:
    message = MESSAGES[name]
    payload, headers = inlined(message["payload"]), inlined(message["headers"])
    assert message["examples"]
    for example in message["examples"]:
        # Nothing in them is undescribed: a property that the worker would ignore helps nobody.
        assert jsonschema_rs.is_valid(closed(payload), example["payload"]), example["name"]
        # Only the headers of a result and of a dead letter are required.
        if "headers" in example or "required" in headers:
            assert jsonschema_rs.is_valid(closed(headers), example["headers"]), example["name"]


def test_every_result_has_the_header_that_a_reader_tells_it_by() -> None:
    assert MESSAGES["decideResult"]["headers"]["required"] == [RESULT_SOURCE_HEADER]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_described_with_its_headers_and_its_key(name: str) -> None:
    message = MESSAGES[name]
    assert message["name"] == name
    assert all(message[part] for part in ("title", "summary", "description", "contentType"))
    assert message["bindings"]["kafka"]["key"]["description"]
    assert all(header["description"] for header in inlined(message["headers"])["properties"].values())


def test_the_channels_are_the_topics_as_they_are_made() -> None:
    topics = Settings().topics
    channels = {channel["address"]: channel for channel in DOCUMENT["channels"].values()}
    assert set(channels) == {getattr(topics, field) for field in TOPIC_FIELDS}
    for address, channel in channels.items():
        binding = channel["bindings"]["kafka"]
        retention = topics.dead_letters_retention if address == topics.dead_letters else topics.retention
        assert (binding["topic"], binding["partitions"], binding["replicas"]) == (
            address,
            topics.partitions,
            topics.replication_factor,
        )
        assert binding["topicConfiguration"]["retention.ms"] == retention * 1000
        (message,) = channel["messages"]
        assert channel["messages"][message]["$ref"] == f"#/components/messages/{message}"


def test_each_role_reads_with_its_own_group() -> None:
    groups = {
        operation["bindings"]["kafka"]["groupId"]["const"]
        for operation in DOCUMENT["operations"].values()
        if operation["action"] == "receive"
    }
    assert groups == {f"{Settings().kafka.group_id}.{role}" for role in ROLES}


def spans(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", " ".join(text.split())))


def strings(node: object) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from strings(inner)


ANY_RECORD = {"undecodable", "crashed_worker"}


@pytest.mark.parametrize(("name", "topic"), list(zip(PAYLOADS, TOPICS, strict=True)))
def test_a_message_names_the_dead_letters_it_may_become(name: str, topic: str) -> None:
    possible = {reason for reason, topics in reasons().items() if topic in topics}
    assert possible >= ANY_RECORD
    named = {span for span in spans(MESSAGES[name]["description"]) if re.fullmatch(r"[a-z]+(_[a-z]+)*", span)}
    assert named - {RESULT_SOURCE_HEADER} == possible - ANY_RECORD


def test_the_dead_letters_that_any_record_may_become_are_named_once_for_all() -> None:
    assert spans(DOCUMENT["info"]["description"]) & set(REASONS) == ANY_RECORD


def test_the_errors_a_sender_may_meet_are_named() -> None:
    named = {span for span in spans(MESSAGES["decideRequest"]["description"]) if " " in span}
    assert named == {
        PARSING_FAILED, SDK_KEY_MALFORMED, "invalid option: X", words.EXPIRED, words.FETCH_FAILED,
        words.SDK_KEY_MISSING, words.UNKNOWN_KEY,
    }  # fmt: skip


def test_an_error_that_is_quoted_is_one_that_is_given() -> None:
    texts = [*strings(DOCUMENT), *strings([orjson.loads(path.read_bytes()) for path in SCHEMAS.glob("*.schema.json")])]
    # More than one word in lower case, without a property or a header in it: an error.
    quoted = {span for text in texts for span in spans(text) if re.fullmatch(r"[a-z]+ [a-z: <>A-Z]+", span)}
    given = {PARSING_FAILED, SDK_KEY_MALFORMED, words.EXPIRED, words.FETCH_FAILED, words.UNKNOWN_KEY}
    assert quoted <= given | {"invalid option: X", "invalid option: <option>", "everyone else"}
    assert len(quoted) > 4
