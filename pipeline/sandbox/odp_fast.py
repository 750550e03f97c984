"""Segments for many users without executing GraphQL: what a benchmark asks for when the stand-in must not be its limit.

A query is recognised once by its text, after graphql-core has validated it: nothing but fields
`customer(fs_user_id: $x) {audiences(subset: $a) {edges {node {name state}}}}`. Any other query, and variables of other
types, are left to the exact form, whose answers these equal but for the `locations` of errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson
from graphql import DocumentNode, OperationDefinitionNode, print_ast

_FIELD = re.compile(
    r"(?:(\w+): )?customer\(fs_user_id: \$(\w+)\) \{\s+audiences\(subset: \$(\w+)\) \{"
    r"\s+edges \{\s+node \{\s+name\s+state\s+\}\s+\}\s+\}\s+\}"
)
_FRAGMENTS_KEPT = 10_000
UNKNOWN = "INVALID_IDENTIFIER_EXCEPTION"
"""The code of the error at an alias whose identifier nobody has."""

Segments = tuple[str, ...]


class Shape(NamedTuple):
    """What a recognised query asks: (alias, variable of the user id) for each user, the variable of the subset."""

    users: tuple[tuple[str, str], ...]
    subset: str


def shape_of(document: DocumentNode) -> Shape | None:
    """None if the query is of another kind."""
    operations = document.definitions
    if len(operations) != 1 or not isinstance(operations[0], OperationDefinitionNode):
        return None
    found = [_FIELD.fullmatch(print_ast(field)) for field in operations[0].selection_set.selections]
    if not all(found):
        return None
    fields = [match.groups() for match in found if match]
    subsets = {subset for _, _, subset in fields}
    users = tuple((alias or "customer", variable) for alias, variable, _ in fields)
    return Shape(users, subsets.pop()) if len(subsets) == 1 and len(dict(users)) == len(users) else None


class Answers:
    """Renders answers; the part of a user is remembered by subset and segments, of which there are few."""

    def __init__(self) -> None:
        self._fragments: dict[tuple[Segments, Segments], orjson.Fragment] = {}

    def answer(
        self, shape: Shape, variables: Any, known_segments: Callable[[str, str], Segments | None]
    ) -> tuple[dict[str, Any], int] | None:
        """The document to answer and how many users nobody knows; None if the exact form has to look at it."""
        values = _values(shape, variables)
        if values is None:
            return None
        subset, user_ids = values
        data: dict[str, Any] = {}
        errors = []
        for (alias, _), user_id in zip(shape.users, user_ids, strict=True):
            segments = known_segments("fs_user_id", user_id)
            if segments is None:
                errors.append(unknown_identifier(alias, "fs_user_id", user_id))
                data[alias] = None
            else:
                data[alias] = self._fragments.get((subset, segments)) or self._rendered(subset, segments)
        return ({"data": data, "errors": errors} if errors else {"data": data}), len(errors)

    def _rendered(self, subset: Segments, segments: Segments) -> orjson.Fragment:
        if len(self._fragments) >= _FRAGMENTS_KEPT:
            self._fragments.clear()
        states = {True: "qualified", False: "unqualified"}
        edges = [{"node": {"name": name, "state": states[name in segments]}} for name in subset]
        fragment = self._fragments[subset, segments] = orjson.Fragment(orjson.dumps({"audiences": {"edges": edges}}))
        return fragment


def unknown_identifier(alias: str, name: str, value: str) -> dict[str, Any]:
    """The error at an alias whose identifier nobody has."""
    return {
        "message": f"Exception while fetching data (/{alias}) : could not resolve _{name} = {value}",
        "path": [alias],
        "extensions": {"classification": "DataFetchingException", "code": UNKNOWN},
    }


def _values(shape: Shape, variables: Any) -> tuple[Segments, Sequence[str]] | None:
    if type(variables) is not dict:
        return None
    subset = variables.get(shape.subset)
    user_ids: list[Any] = [variables.get(variable) for _, variable in shape.users]
    if type(subset) is not list or any(type(text) is not str for text in (*subset, *user_ids)):
        return None
    return tuple(subset), user_ids
