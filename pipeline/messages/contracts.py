"""The contracts of the topics: `schemas/*.schema.json`, compiled at import, and how a record's bytes become a document.

A record that is no JSON object is Rejected here, whatever its topic; what a fault inside the object means is for the
parser of the topic to say. Nothing but Rejected leaves this module, whatever the bytes are.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson

from pipeline.errors import Rejected

# orjson reads 1,024 levels and writes 254; a result nests what it repeats from a request five levels deeper.
MAX_NESTING = 200

_LONGEST_NAME = 64
_KINDS = {
    list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false", type(None): "null",
}  # fmt: skip


def schemas_directory() -> Path:
    """Where the schemas are: inside the package once installed from a wheel, beside it in a checkout."""
    packaged = Path(__file__).parents[1] / "schemas"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "schemas"


class Contract:
    """One schema, compiled. `is_valid(document)` is the check of the hot path: half a microsecond, no explanation."""

    def __init__(self, name: str) -> None:
        """`name` is the file's, without `.schema.json`."""
        self.name = name
        self.schema: dict[str, Any] = orjson.loads((schemas_directory() / f"{name}.schema.json").read_bytes())
        self._validator = jsonschema_rs.Draft7Validator(self.schema)
        self.is_valid = self._validator.is_valid

    def first_fault(self, document: object) -> str:
        """The first fault as `path: keyword`, e.g. `eventTags: type`; empty when there is none.

        The value itself is never quoted, nor a name that does not look like one: both may be personal.
        """
        try:
            # Only the first error is made: a document may hold half a million.
            self._validator.validate(document)
        except jsonschema_rs.ValidationError as error:
            path = ".".join(_shown(part) for part in error.instance_path)
            return f"{path or '$'}: {error.schema_path[-1]}"
        except ValueError:
            # Unlike `is_valid`, an explanation needs the document converted, which has a limit of some 255 levels.
            return "$: depth"
        return ""


def _shown(part: str | int) -> str:
    if isinstance(part, int):
        return str(part)
    plain = part.isascii() and part.replace("-", "_").replace("$", "_").isidentifier()
    return part if plain and len(part) <= _LONGEST_NAME else "*"


DECIDE_REQUEST = Contract("decide-request")
DECIDE_RESULT = Contract("decide-result")
TRACK_EVENT = Contract("track-event")
ODP_EVENT = Contract("odp-event")
DEAD_LETTER = Contract("dead-letter")


def read_object(value: bytes | None, *, max_bytes: int) -> dict[str, Any]:
    """The JSON object in a record's value. Raises Rejected: empty, too_large, not_json, not_an_object."""
    if not value:
        raise Rejected("empty", "the record has no value")
    if len(value) > max_bytes:
        raise Rejected("too_large", f"{len(value)} bytes; at most {max_bytes} are read")
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise Rejected("not_json", fault_of(value, error)) from None
    if type(document) is not dict:
        raise Rejected("not_an_object", f"{_KINDS[type(document)]} in place of an object")
    return document


def in_utf8(document: bytes) -> bytes:
    """The bytes of a JSON document from a file or a service in UTF-8, without a byte order mark.

    Read as Python's `json.loads`, and so the SDK, reads bytes: also UTF-16 and UTF-32, which the first bytes tell, with
    or without their mark. Raises UnicodeDecodeError.
    """
    if document.startswith(BOM_UTF8):
        return document[len(BOM_UTF8) :]
    encoding = json.detect_encoding(document)
    return document if encoding == "utf-8" else document.decode(encoding).encode()


def fault_of(value: bytes, error: orjson.JSONDecodeError) -> str:
    """Why orjson could not read `value`, and where. It says of bytes that are no UTF-8 only that there are some."""
    try:
        value.decode()
    except UnicodeDecodeError as fault:
        return f"not UTF-8 at byte {fault.start}"
    return f"{error.msg}, at character {error.pos}"


def too_deep(value: bytes, document: dict[str, Any]) -> bool:
    """Whether the document is nested deeper than MAX_NESTING, so that parts of it could not be written again."""
    # Every level costs two brackets, so an ordinary record is done after the first comparison or the second.
    if len(value) <= 2 * MAX_NESTING or value.count(b"[") + value.count(b"{") <= MAX_NESTING:
        return False
    level: list[Any] = [document]
    for _ in range(MAX_NESTING):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True
