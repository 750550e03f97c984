"""The part of the data platform's GraphQL schema that segments are read by, and how its fields are resolved.

The root value has `known_segments(name, value)` of an identifier. Used by the stand-in for ODP.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from graphql import GraphQLError, GraphQLResolveInfo, build_schema

from pipeline.sandbox.odp_fast import unknown_identifier

_TEXT = """
type Query {
  customer(fs_user_id: String, vuid: String, email: String, phone: String): Customer
}
type Customer { audiences(subset: [String]): Audiences }
type Audiences { edges: [Edge] }
type Edge { node: Audience }
type Audience { name: String, state: String }
"""


class Customer(NamedTuple):
    segments: tuple[str, ...]


def _customer(root: Any, info: GraphQLResolveInfo[Any], **identifiers: str | None) -> Customer:
    given = {name: value for name, value in identifiers.items() if value is not None}
    if len(given) != 1:
        raise GraphQLError("exactly one identifier is needed", extensions={"classification": "ValidationError"})
    ((name, value),) = given.items()
    segments = root.known_segments(name, value)
    if segments is None:
        error = unknown_identifier(str(info.path.key), name, value)
        raise GraphQLError(error["message"], extensions=error["extensions"])
    return Customer(segments)


def _audiences(customer: Customer, info: GraphQLResolveInfo[Any], subset: list[str] | None = None) -> dict[str, Any]:
    names = customer.segments if subset is None else subset
    return {
        "edges": [
            {"node": {"name": name, "state": "qualified" if name in customer.segments else "unqualified"}}
            for name in names
        ]
    }


def _member(value: dict[str, Any], info: GraphQLResolveInfo[Any]) -> Any:
    """graphql-core's own resolver looks for attributes and callables first."""
    return value[info.field_name]


SCHEMA = build_schema(_TEXT)
SCHEMA.query_type.fields["customer"].resolve = _customer  # type: ignore[union-attr]
SCHEMA.type_map["Customer"].fields["audiences"].resolve = _audiences  # type: ignore[attr-defined]
for _type, _field in (("Audiences", "edges"), ("Edge", "node"), ("Audience", "name"), ("Audience", "state")):
    SCHEMA.type_map[_type].fields[_field].resolve = _member  # type: ignore[attr-defined]
