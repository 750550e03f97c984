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
_BLANK = b" \t\r\n"


class Document:
    """What `orjson.loads` gives, in `root`; it raises orjson.JSONDecodeError for the same bytes, in the same words.

    One that is no JSON is read in one step, to tell what is wrong and where. A part may be as deep as orjson reads.
    """

    __slots__ = ("_cut", "root")

    def __init__(self, raw: bytes) -> None:
        self._cut: list[list[Any] | dict[str, Any]] = []
        """What was read part by part, the inner before the outer."""
        if not self._read_in_parts(raw):
            self.root = orjson.loads(raw)

    def free(self) -> None:
        """Empty what is large. Nobody else may want it any more."""
        for container in self._cut:
            if isinstance(container, list):
                while container:
                    container.pop()
            else:
                while container:
                    container.popitem()

    def _read_in_parts(self, raw: bytes) -> bool:
        try:
            # A member that a later one of its name hides is skipped, and skipping looks neither at the encoding nor,
            # which does not matter, at the size of numbers.
            if not raw.isascii():
                raw.decode()
            self.root = self._read(raw.lstrip(_BLANK), _LEVELS)
        except (ValueError, RecursionError):  # the errors of both libraries are ValueErrors
            return False
        return True

    def _read(self, raw: bytes | msgspec.Raw, levels: int) -> Any:
        text = memoryview(raw)
        if levels and len(text) > _LARGE:
            if text[0] == ord("["):
                parts = [self._read(part, levels - 1) for part in _LIST.decode(raw)]
                self._cut.append(parts)
                return parts
            if text[0] == ord("{"):
                members = {name: self._read(part, levels - 1) for name, part in _OBJECT.decode(raw).items()}
                self._cut.append(members)
                return members
        return orjson.loads(text)
