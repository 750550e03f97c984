"""A datafile's bytes become a JSON document, piece by piece, and the document is let go of in the same way.

Nothing else runs in the process while orjson reads, nor while what it made is freed: each is one step of the
interpreter, of 50 ms and 13 ms for 5 MB. A worker compiles in a thread while its event loop decides. So a large
document is cut into sections, these into entries, and each is read, and freed, in a step of its own; it takes a tenth
longer. Called by `compile_datafile` only.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_LARGE = 50_000
"""Bytes. Up to here a step takes half a millisecond."""
_LEVELS = 4
"""Down to the single rule of a rollout. Each level is gone through once more to find where its parts end."""


def read_document(raw: bytes) -> object:
    """As `orjson.loads`, whose JSONDecodeError it raises. A member hidden by a later one of its name is not read."""
    try:
        return _read(raw, _LEVELS)
    except (msgspec.DecodeError, ValueError, RecursionError):
        # No JSON, or not for both: what it is, and where, only the whole tells.
        return orjson.loads(raw)


def free(document: object) -> None:
    """Empty a document that only the caller refers to."""
    if isinstance(document, dict):
        while document:
            _free(document.popitem()[1])


def _read(raw: bytes | msgspec.Raw, levels: int) -> Any:
    text = memoryview(raw)
    if levels and len(text) > _LARGE:
        if text[0] == ord("["):
            return [_read(part, levels - 1) for part in _LIST.decode(raw)]
        if text[0] == ord("{"):
            return {name: _read(part, levels - 1) for name, part in _OBJECT.decode(raw).items()}
    return orjson.loads(text)


def _free(section: object) -> None:
    if isinstance(section, list):
        while section:
            section.pop()
