"""The example files, which are documentation for others and test data here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson

from pipeline.messages import contracts
from pipeline.messages.contracts import Contract

CONTRACTS: dict[str, Contract] = {
    contract.name: contract
    for contract in (
        contracts.DECIDE_REQUEST,
        contracts.DECIDE_RESULT,
        contracts.TRACK_EVENT,
        contracts.ODP_EVENT,
        contracts.DEAD_LETTER,
    )
}
SCHEMAS = Path(__file__).parents[2] / "schemas"
MAX_BYTES = 1024**2


def files(kind: str, message: str) -> dict[str, Path]:
    """Examples of a message, `valid` or `invalid`, by their name."""
    return {path.stem: path for path in sorted((SCHEMAS / "examples" / kind / message).glob("*.json"))}


def document(kind: str, message: str, name: str) -> Any:
    return orjson.loads(files(kind, message)[name].read_bytes())


def value(kind: str, message: str, name: str) -> bytes:
    return files(kind, message)[name].read_bytes()


def faults(contract: Contract, document: object) -> str:
    """All faults as `path: keyword`, that of a property that is required with its name; empty when there are none."""
    found = []
    for error in jsonschema_rs.Draft7Validator(contract.schema).iter_errors(document):
        path, keyword = ".".join(map(str, error.instance_path)) or "$", error.schema_path[-1]
        missing = error.message.split()[0].strip('"') if keyword == "required" else ""
        found.append(f"{path}: {keyword} {missing}".strip())
    return ", ".join(found)


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without the freedom to add properties: a misspelled name in an example is a fault."""
    kept = dict(schema)
    if "properties" in schema:
        kept |= {
            "properties": {name: closed(inner) for name, inner in schema["properties"].items()},
            "additionalProperties": schema.get("additionalProperties", False),
        }
    if "items" in schema:
        kept["items"] = closed(schema["items"])
    return kept


def nested(levels: int) -> dict[str, Any]:
    """An object with so many levels, itself included."""
    inner: dict[str, Any] = {}
    for _ in range(levels - 1):
        inner = {"a": inner}
    return inner
