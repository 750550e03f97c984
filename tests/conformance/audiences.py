"""Generated audiences: every match type, typed and plain, nested operators, operands that cannot be told.

Left out is what the SDK does not survive: it raises for `[]` and for texts inside an audience's own conditions, and for
an object among the audience ids of a rule; it refuses a datafile that asks for a segment by a list.
"""

from __future__ import annotations

import json
from typing import Any

from tests.conformance.dice import ATTRIBUTES, BAD_VERSIONS, NATURAL, SEGMENTS, TEXTS, VERSIONS, Dice, Json

MATCHES: dict[str, tuple[str, ...]] = {
    "exact": ("text", "number", "boolean"),
    "exists": ("text", "number", "boolean", "version"),
    "substring": ("text",),
    "gt": ("number",),
    "ge": ("number",),
    "lt": ("number",),
    "le": ("number",),
    "qualified": ("text",),
    "semver_eq": ("version",),
    "semver_gt": ("version",),
    "semver_ge": ("version",),
    "semver_lt": ("version",),
    "semver_le": ("version",),
}
"""Match types and the kinds of attribute they are made for."""


def leaf(dice: Dice) -> Json:
    match = dice.choice(tuple(MATCHES))
    kind = dice.choice(MATCHES[match])
    natural = tuple(key for key, of in ATTRIBUTES.items() if of == kind)
    found: Json = {
        "name": dice.choice(natural) if dice.chance(0.9) else dice.of(*ATTRIBUTES, "never", "", None, 5),
        "type": "custom_attribute" if dice.chance(0.85) else dice.of("third_party_dimension", "browser", None, 5, ""),
        "value": _value(dice, match, kind),
        "match": match,
    }
    if match == "exact" and dice.chance(0.4):
        found["match"] = None
        if dice.chance(0.5):
            del found["match"]
    elif dice.chance(0.03):
        found["match"] = dice.of("regex", "", "EXACT", 5, False)
    for name in ("name", "type", "value"):
        if dice.chance(0.01):
            del found[name]
    return found


def _value(dice: Dice, match: str, kind: str) -> Any:
    if match == "qualified":
        return dice.of(*SEGMENTS, *SEGMENTS, 5, None)
    if dice.chance(0.06):
        return dice.of(None, True, 1, "18", 2**53 + 2, ["a", 1], [])
    if kind == "version":
        return dice.of(*VERSIONS, *BAD_VERSIONS[:4])
    if match == "substring":
        return dice.choice(TEXTS)
    return dice.choice(NATURAL[kind])


def conditions(dice: Dice, depth: int = 0) -> Any:
    """An audience's own conditions: a leaf, or operators over others."""
    if depth > 3 or dice.chance(0.15 if depth == 0 else 0.5):
        return leaf(dice)
    operands = [conditions(dice, depth + 1) for _ in range(dice.of(1, 2, 2, 3))]
    if dice.chance(0.15):
        return operands  # without an operator: any of them
    return [dice.of("and", "and", "or", "or", "not"), *(operands if dice.chance(0.98) else [])]


def audiences(dice: Dice) -> tuple[list[Json], list[Json]]:
    """Plain and typed ones. Some stand in both sections or twice in one: then the typed one counts, and the last."""
    plain: list[Json] = []
    typed: list[Json] = []
    for _ in range(dice.randint(3, 6)):
        audience_id = dice.id()
        for section, probability in ((plain, 0.8), (plain, 0.05), (typed, 0.7), (typed, 0.05)):
            if dice.chance(probability) or (section is typed and not plain):
                section.append({"id": audience_id, "name": "n", "conditions": conditions(dice), **_computed(dice)})
    for audience in plain:
        # Conditions of plain audiences are JSON in a text.
        audience["conditions"] = json.dumps(audience["conditions"], ensure_ascii=dice.chance(0.5))
    return plain, typed


def _computed(dice: Dice) -> Json:
    """Parameters of the SDK's Audience that it sets itself, whatever a datafile says."""
    return dice.maybe(0.02, conditionStructure=["or", 0], conditionList=[])


def targeting(dice: Dice, ids: list[str]) -> Json:
    """Which audiences a rule is for."""
    kind = dice.random()
    if kind < 0.4:
        return {"audienceIds": []}
    if kind < 0.6:
        return {"audienceIds": [dice.of(*ids, "missing", "or", "not") for _ in range(dice.of(1, 1, 2, 3))]}
    told: Any = dice.of([], None, dice.choice(ids), dice.of("missing", "", False, 5))
    if dice.chance(0.7):
        told = _of_ids(dice, ids)
    return {"audienceIds": dice.of([], [dice.choice(ids)]), "audienceConditions": told}


def _of_ids(dice: Dice, ids: list[str], depth: int = 0) -> Any:
    if depth > 2 or (depth and dice.chance(0.5)):
        return dice.of(*ids, *ids, "missing", 5, None)
    operands = [_of_ids(dice, ids, depth + 1) for _ in range(dice.of(1, 2, 3))]
    operator = dice.of("and", "or", "or", "not", "AND", None)
    return operands if operator is None else [operator, *operands]
