"""Audience conditions: a datafile's nested lists become a tree, the tree becomes one closure.

Three-valued as in the Python SDK: in `and` a False decides, in `or` a True; what cannot be told else makes the whole
unknown; `not` looks at its first operand only. `narrate` walks the same tree in the Agent's order, for its reasons.
Trees deeper than MAX_DEPTH are refused, so that nothing here can exhaust the stack.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from pipeline.errors import DatafileRefused
from pipeline.project.matchers import MATCHERS, Attributes, Segments, Test, unknown

MAX_DEPTH = 64
_LEAF_TYPES = ("custom_attribute", "third_party_dimension")


class Leaf(msgspec.Struct, frozen=True, gc=False):
    """One condition. `complaint` is what the Agent says of a leaf it cannot read."""

    test: Test
    complaint: str | None = None


class Operation(msgspec.Struct, frozen=True, gc=False):
    operator: str
    operands: tuple[Node, ...]


class Audience(msgspec.Struct, frozen=True, gc=False):
    """An audience of the datafile, compiled once however many rules use it."""

    id: str
    tree: Node
    test: Test


class MissingAudience(msgspec.Struct, frozen=True, gc=False):
    id: str


Node = Leaf | Operation | Audience | MissingAudience
_UNREADABLE = Leaf(unknown)


def read_conditions(document: object, where: str, segments: list[str]) -> Node:
    """The tree of an audience's own conditions. Names of segments asked for are added to `segments`."""

    def leaf(item: object) -> Node:
        return _read_leaf(item, segments) if isinstance(item, dict) else _UNREADABLE

    return _read(document, leaf, where, 0)


def read_audiences(document: object, audiences: Mapping[str, Audience], where: str) -> Node | None:
    """The tree of audience ids of a rule. None: everyone passes."""
    if document is None or document == []:
        return None

    def leaf(item: object) -> Node:
        return audiences.get(item) or MissingAudience(item) if isinstance(item, str) else _UNREADABLE

    return _read(document, leaf, where, 0)


def _read(item: object, leaf: Any, where: str, depth: int) -> Node:
    if depth > MAX_DEPTH:
        raise DatafileRefused(f"{where}: conditions are nested more than {MAX_DEPTH} levels deep")
    if not isinstance(item, list):
        return leaf(item)  # type: ignore[no-any-return]
    if not item:
        return _UNREADABLE
    # A list that does not begin with an operator is an `or` of all it holds, the first included.
    operator, operands = (item[0], item[1:]) if item[0] in ("and", "or", "not") else ("or", item)
    return Operation(operator, tuple([_read(operand, leaf, where, depth + 1) for operand in operands]))


def _read_leaf(fields: dict[str, Any], segments: list[str]) -> Node:
    name, kind, match, value = fields.get("name"), fields.get("type"), fields.get("match"), fields.get("value")
    if match == "qualified" and isinstance(value, str) and value:
        segments.append(value)
    if kind not in _LEAF_TYPES:
        return Leaf(unknown, f'unable to evaluate condition of type "{_shown(kind)}"')
    matcher = MATCHERS.get("exact" if match is None else match) if match is None or isinstance(match, str) else None
    if matcher is None:
        return Leaf(unknown, f'invalid Condition matcher "{_shown(match)}"')
    # A leaf without a name asks for an attribute nobody can have.
    return Leaf(matcher(name if isinstance(name, str) else None, value))


def _shown(value: object) -> str:
    return value if isinstance(value, str) else ""


def compile_tree(node: Node) -> Test:
    """One closure for the whole tree. An `and` or `or` of one operand is that operand."""
    if isinstance(node, (Leaf, Audience)):
        return node.test
    if isinstance(node, MissingAudience):
        return unknown
    tests = tuple([compile_tree(operand) for operand in node.operands])
    if node.operator == "not":
        return _negated(tests[0]) if tests else unknown
    if len(tests) == 1:
        return tests[0]
    # In an `and` a False decides, in an `or` a True: the same loop with the sides changed.
    return _joined(tests, node.operator == "or")


def _negated(operand: Test) -> Test:
    def test(attributes: Attributes, segments: Segments) -> bool | None:
        result = operand(attributes, segments)
        return None if result is None else not result

    return test


def _joined(operands: tuple[Test, ...], decisive: bool) -> Test:
    otherwise = not decisive

    def test(attributes: Attributes, segments: Segments) -> bool | None:
        outcome: bool | None = otherwise
        for operand in operands:
            result = operand(attributes, segments)
            if result is decisive:
                return decisive
            if result is None:
                outcome = None
        return outcome

    return test


def narrate(node: Node, attributes: Attributes, segments: Segments, why: list[str]) -> bool | None:
    """Add the Agent's remarks about a tree to `why`, in its order.

    The Agent ends an `and` at the first unknown operand, so what follows is not remarked on. The result tells only
    where a walk ends; decisions come from `compile_tree`.
    """
    match node:
        case Leaf():
            if node.complaint is not None:
                why.append(node.complaint)
            return node.test(attributes, segments)
        case MissingAudience():
            why.append(f'unable to evaluate nested tree for audience ID "{node.id}"')
            return None
        case Audience():
            result = narrate(node.tree, attributes, segments, why)
            if result is None:
                why.append(f'an error occurred while evaluating nested tree for audience ID "{node.id}"')
            return result
    return _narrate_operation(node, attributes, segments, why)


def _narrate_operation(node: Operation, attributes: Attributes, segments: Segments, why: list[str]) -> bool | None:
    if node.operator == "not":
        result = narrate(node.operands[0], attributes, segments, why) if node.operands else None
        return None if result is None else not result
    outcome: bool | None = node.operator == "and"
    for operand in node.operands:
        result = narrate(operand, attributes, segments, why)
        if result is None and node.operator == "and":
            return None
        if result is (node.operator == "or"):
            return result
        if result is None:
            outcome = None
    return outcome
