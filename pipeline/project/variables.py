"""Feature variables: a datafile's text becomes a typed value, written out as JSON once.

Values are cast as the Python SDK casts them. One that cannot be is null, and the reason the Agent gives stands beside
it. Called while a datafile is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import orjson

from pipeline.messages.contracts import too_deep


class Variable(NamedTuple):
    """A variable of a flag. `kind` is boolean, integer, double, json or string; any other is taken as string."""

    id: str
    key: str
    kind: str
    default: str | None


class Values(NamedTuple):
    """The variables of one decision.

    `member` is the member `variables` of the decision with its comma in front, empty without variables; `errors` says
    what could not be cast.
    """

    member: bytes
    errors: tuple[str, ...]


def write_values(variables: Sequence[Variable], given: Mapping[str, str | None]) -> Values:
    """`given` holds a variation's own values by variable id; a variable that is not there has its default.

    None is no value at all: null in the datafile, or what the SDK finds for a variation no experiment or rule lists.
    """
    members: list[bytes] = []
    errors: list[str] = []
    for variable in variables:
        written = _written(variable.kind, given.get(variable.id, variable.default))
        if written is None:
            errors.append(f'Variable value for key "{variable.key}" is invalid or wrong type.')
            written = b"false" if variable.kind == "boolean" else b"null"
        members.append(orjson.dumps(variable.key) + b":" + written)
    return Values(b',"variables":{' + b",".join(members) + b"}" if members else b"", tuple(errors))


def _written(kind: str, text: str | None) -> bytes | None:
    """The value in JSON; None if the text is no value of its kind."""
    if text is None:
        return None
    try:
        match kind:
            case "boolean":
                return text.encode() if text in ("true", "false") else None
            case "integer":
                return _readable(str(int(text)).encode())
            case "double":
                number = orjson.dumps(float(text))
                return None if number == b"null" else number  # NaN and infinity have no JSON
            case "json":
                # Written anew: a line break of the original would end a line of `pipeline decide`.
                value = json.loads(text)
                if too_deep(text.encode(), value):
                    return None  # whoever reads the result could not
                return _readable(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode())
    except (ValueError, RecursionError):
        return None
    return orjson.dumps(text)


def _readable(written: bytes) -> bytes:
    """The JSON itself. Raises ValueError if readers cannot take it: a number of 309 digits is infinite to most."""
    orjson.loads(written)
    return written
