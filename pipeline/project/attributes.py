"""The visitor attributes that events carry: which ones, under which entity id, and written out for a result.

The rule is the Python SDK's: texts, booleans and numbers within 2^53 whose key the datafile knows; a key that begins
with `$opt_` and is not in the datafile stands for itself. Bot filtering comes last, and only where the datafile has
a boolean for it. Read by the decider (`tracking` of a result) and by the event roles.
"""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from pipeline.project.matchers import is_exact_number

_RESERVED_PREFIX = "$opt_"
_BOT_FILTERING = "$opt_bot_filtering"

# Some 6 MiB for a revision, if all are of the longest kind.
MOST_REMEMBERED = 4096
_LONGEST_REMEMBERED = 512


class EventAttributes:
    """The attributes a project knows, by key."""

    __slots__ = ("_bot_filtering", "_bot_filtering_text", "_ids", "_openings", "_remembered")

    def __init__(self, ids: Mapping[str, str], bot_filtering: bool | None) -> None:
        self._ids = dict(ids)
        self._remembered: dict[bytes, bytes] = {}
        self._openings = {key: _opening(key, entity_id) for key, entity_id in ids.items() if entity_id}
        self._bot_filtering = bot_filtering
        self._bot_filtering_text = b""
        if bot_filtering is not None:
            self._bot_filtering_text = _opening(_BOT_FILTERING, _BOT_FILTERING) + orjson.dumps(bot_filtering) + b"}"

    def chosen(self, attributes: Mapping[str, object]) -> list[dict[str, object]]:
        """In the user's order, each `{"entity_id", "key", "type": "custom", "value"}`."""
        found: list[dict[str, object]] = []
        for key, value in attributes.items():
            entity_id = self._ids.get(key, key if key.startswith(_RESERVED_PREFIX) else "")
            if entity_id and (type(value) is str or _sendable(value)):
                found.append({"entity_id": entity_id, "key": key, "type": "custom", "value": value})
        if self._bot_filtering is not None:
            value = self._bot_filtering
            found.append({"entity_id": _BOT_FILTERING, "key": _BOT_FILTERING, "type": "custom", "value": value})
        return found

    def written(self, attributes: Mapping[str, object], as_json: bytes) -> bytes:
        """The same as JSON, without `type`, which is always `custom`, and without the brackets of the list.

        `as_json` are the attributes once more. Choosing and writing them is the largest cost of a decision, and many
        users have the same ones, so those of the last few thousand are remembered.
        """
        found = self._remembered.get(as_json)
        if found is None:
            found = self._write(attributes)
            if len(as_json) <= _LONGEST_REMEMBERED:
                if len(self._remembered) >= MOST_REMEMBERED:
                    self._remembered.clear()
                self._remembered[as_json] = found
        return found

    def _write(self, attributes: Mapping[str, object]) -> bytes:
        parts: list[bytes] = []
        for key, value in attributes.items():
            opening = self._openings.get(key)
            if opening is None:
                if not key.startswith(_RESERVED_PREFIX) or key in self._ids:
                    continue
                opening = _opening(key, key)
            if type(value) is str or _sendable(value):
                parts.append(opening + orjson.dumps(value) + b"}")
        if self._bot_filtering_text:
            parts.append(self._bot_filtering_text)
        return b",".join(parts)


def _sendable(value: object) -> bool:
    return type(value) is bool or is_exact_number(value)


def _opening(key: str, entity_id: str) -> bytes:
    return orjson.dumps({"entity_id": entity_id, "key": key})[:-1] + b',"value":'
