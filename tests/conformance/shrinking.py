"""From a case that differs to the smallest one found that still does: what is not needed is taken out, bit by bit.

The SDK must still take the datafile, the difference must be of the same kind, and nothing may come in that is not
compared at all (`deviations`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from typing import Any

from tests.conformance.comparison import Comparison, Difference
from tests.conformance.deviations import deviation
from tests.conformance.requests import Case

Accepts = Callable[[Any], bool]
_LONG_TEXT = 12


def differences(comparison: Comparison, case: Case) -> list[Difference]:
    """Of one case with its own datafile. Raises Refused if the SDK does not take that."""
    return comparison.take(case.datafile) or comparison.differences(case)


def shrunk(comparison: Comparison, case: Case, kinds: Collection[str]) -> Case:
    """`kinds`: of the differences in the case; one of them must stay."""

    def still(document: Any) -> bool:
        try:
            candidate = Case(**document)
            if deviation(candidate) is not None:
                return False
            return any(found.what in kinds for found in differences(comparison, candidate))
        except Exception:  # noqa: BLE001 - refused by the SDK, or no case at all any more
            return False

    document: Any = json.loads(json.dumps(case.as_json()))
    size = 0
    while size != (size := len(json.dumps(document))):
        for name in document:
            accepts = _inside(document, name, still)
            document[name] = None if accepts(None) else _smaller(document[name], accepts)
    return Case(**document)


def _smaller(value: Any, accepts: Accepts) -> Any:
    """A smaller value that is still accepted, or the value itself."""
    if isinstance(value, list):
        value = _fewer(value, accepts, list)
        value = next((item for item in value if isinstance(item, list | dict) and accepts(item)), value)
    elif isinstance(value, dict):
        value = _fewer(list(value.items()), accepts, dict)
    if not isinstance(value, list | dict):
        return next((simple for simple in _simpler(value, accepts) if accepts(simple)), value)
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        value[key] = _smaller(value[key], _inside(value, key, accepts))
    return value


def _inside(whole: Any, key: Any, accepts: Accepts) -> Accepts:
    """Whether the whole is accepted with this in the place of one of its items."""

    def accepts_item(item: Any) -> bool:
        changed = whole.copy()
        changed[key] = item
        return accepts(changed)

    return accepts_item


def _fewer(items: list[Any], accepts: Accepts, made: Callable[[list[Any]], Any]) -> Any:
    """Without halves, quarters, ... and single items, as long as the rest is accepted."""
    size = len(items)
    while size:
        start = 0
        while start < len(items):
            rest = items[:start] + items[start + size :]
            if accepts(made(rest)):
                items = rest
            else:
                start += size
        size //= 2
    return made(items)


def _simpler(value: Any, accepts: Accepts) -> Iterator[Any]:
    if isinstance(value, str):
        if value.startswith(("[", "{")):
            yield _embedded(value, accepts)
        if len(value) > _LONG_TEXT:
            yield value[:4]
    elif value is True:
        yield False
    elif isinstance(value, int | float) and value not in (0, 1):
        yield from (0, 1)


def _embedded(text: str, accepts: Accepts) -> str:
    """Conditions of plain audiences are JSON in a text."""
    try:
        document = json.loads(text)
    except ValueError:
        return text
    return json.dumps(_smaller(document, lambda value: accepts(json.dumps(value))))
