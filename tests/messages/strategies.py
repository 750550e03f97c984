"""Documents that look like a message: an example with some of it replaced, or its properties with any JSON."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import strategies as st

from tests.messages.examples import CONTRACTS, files

# What JSON can hold and orjson writes: no lone surrogates, no integers beyond 64 bits.
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT
    | st.sampled_from([0, 1, 5000.0, 2**53 + 1, "IGNORE_CACHE", "INCLUDE_REASONS", "NOPE", "fs-user-id", ""])
)
ANY_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def documents_like(draw: st.DrawFn, message: str) -> Any:
    """A document like those of the message; most are faulty in a place or two."""
    names = sorted(CONTRACTS[message].schema["properties"])
    kinds = [orjson.loads(path.read_bytes()) for kind in ("valid", "invalid") for path in files(kind, message).values()]
    document = draw(st.sampled_from(kinds) | st.dictionaries(st.sampled_from(names) | _TEXT, ANY_JSON) | ANY_JSON)
    for _ in range(draw(st.integers(0, 2))):
        document = _replaced(draw, document, names)
    return document


def _replaced(draw: st.DrawFn, document: Any, names: list[str]) -> Any:
    if isinstance(document, dict) and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(document) or names))
        return {**document, name: _replaced(draw, document.get(name), names)}
    if isinstance(document, list) and document and draw(st.booleans()):
        place = draw(st.integers(0, len(document) - 1))
        return [*document[:place], _replaced(draw, document[place], names), *document[place + 1 :]]
    return draw(ANY_JSON)
