"""asyncapi.yaml: it refers to the very files the worker compiles, and says of the topics what the code does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import pytest
import yaml

from pipeline.messages.decide import PARSING_FAILED, SDK_KEY_MALFORMED
from pipeline.settings import ROLES, Settings
from tests.messages.examples import SCHEMAS

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
        assert jsonschema_rs.is_valid(payload, example["payload"]), example["name"]
        # Only the headers of a result and of a dead letter are required.
        if "headers" in example or "required" in headers:
            assert jsonschema_rs.is_valid(headers, example["headers"]), example["name"]


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


def test_the_errors_a_sender_may_meet_are_named() -> None:
    description = MESSAGES["decideRequest"]["description"].replace("\n", " ")
    for error in (PARSING_FAILED, SDK_KEY_MALFORMED, "invalid option: X"):
        assert f"`{error}`" in description
