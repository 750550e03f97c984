"""Generated experiments, delivery rules, holdouts and the variables they give values to."""

from __future__ import annotations

from typing import Any

from tests.conformance.audiences import targeting
from tests.conformance.dice import Dice, Json, edge

VALUES: dict[str, tuple[str, ...]] = {
    "boolean": ("true", "false", "True", "1", "", "maybe"),
    "integer": ("0", "-7", "42", "abc", "", "1.5", " 5", "+5", "1_000", "9007199254740993", "123456789012345678901"),
    "double": ("0.25", "3", "1e3", "x", "", "inf", "nan", "-0.0"),
    "json": (
        '{"a":[1,2.5,null]}',
        "[1]",
        "5",
        "null",
        "{bad",
        "",
        "NaN",
        '{"a":[1e400]}',
        '{\n "k": "ž\\u2028" }',
        "-0.0",
    ),
    "string": ("", "hello", 'quote " and \\', "ž\n"),
    "color": ("#fff",),
}
"""Values by kind of variable, also such as are none."""

OFF: Json = {"id": "$opt_dummy_variation_id", "key": "off", "featureEnabled": False, "variables": []}


def value(dice: Dice, kind: str) -> str | None:
    return dice.choice(VALUES[kind]) if dice.chance(0.98) else None


def variables(dice: Dice) -> list[Json]:
    found: list[Json] = []
    for number in range(dice.of(0, 1, 2, 3)):
        kind = dice.choice(tuple(VALUES))
        key = f"var_{number}" if number == 0 or dice.chance(0.95) else "var_0"  # of two of one key the later counts
        variable = {"id": dice.id(), "key": key, "defaultValue": value(dice, kind)}
        if kind == "json" and dice.chance(0.8):
            variable |= {"type": "string", "subType": "json"}
        else:
            variable |= {"type": kind, **dice.maybe(0.2, subType=dice.of("", None, "json" if kind != "string" else ""))}
        found.append(variable)
    return found


def kind_of(variable: Json) -> str:
    return "json" if variable.get("subType") == "json" and variable["type"] == "string" else str(variable["type"])


def variation(dice: Dice, own: list[Json]) -> Json:
    values = [
        {"id": one["id"], "value": value(dice, kind_of(one))}
        for one in [*own, *own[:1]]
        if dice.chance(0.6)
    ]  # fmt: skip
    found: Json = {
        "id": dice.id() if dice.chance(0.95) else f"$opt_{dice.id()}",
        "key": dice.of("on", "off", "v", "ž") + dice.of("", dice.id()[-2:]),
    }
    if dice.chance(0.95):
        found["featureEnabled"] = dice.of(True, True, True, False, False, None)
    if values or dice.chance(0.5):
        found["variables"] = values or dice.of([], None)
    return found


def variations(dice: Dice, own: list[Json], pool: list[Json]) -> list[Json]:
    """A rule's variations: its own, or some that other rules of the flag have too."""
    if pool and dice.chance(0.3):
        return dice.sample(pool, k=dice.randint(1, len(pool)))
    return [variation(dice, own) for _ in range(dice.of(1, 2, 2, 3))]


def allocation(dice: Dice, entities: list[str], users: list[str], parent_id: str) -> list[Json]:
    if dice.chance(0.35):
        return [{"entityId": dice.choice(entities), "endOfRange": 10000}]
    ranges, end = [], 0
    for _ in range(dice.randint(0, 4)):
        end = dice.of(end, 10000, dice.randint(0, 10000), min(10000, end + 3000), edge(dice, users, parent_id))
        entity = dice.of(*entities, *entities, *entities, "", "gone", None)
        ranges.append({"entityId": entity, "endOfRange": end if dice.chance(0.98) else None})
    return ranges


def experiment(dice: Dice, ids: list[str], own: list[Json], pool: list[Json], users: list[str]) -> Json:
    given = variations(dice, own, pool)
    experiment_id = dice.id()
    found: Json = {
        "id": experiment_id,
        # Two experiments may share a key; a rule with a blank one gives nobody anything.
        "key": f"exp_{experiment_id}" if dice.chance(0.97) else dice.of("shared", " "),
        "layerId": dice.of("", dice.id(), f"default-{experiment_id}", None),
        "status": "Running" if dice.chance(0.93) else dice.of("Paused", "Not started", "running", "", None),
        "variations": given,
        "trafficAllocation": allocation(dice, [one["id"] for one in given], users, experiment_id),
        "forcedVariations": dice.of({}, {}, {}, None),
        **targeting(dice, ids),
        **dice.maybe(0.7, type=dice.of("ab", "mab", "td", "fr", "td", None)),
    }
    if dice.chance(0.2):
        keys = [*(one["key"] for one in given), *(one["key"] for one in given), "gone", None]
        found["forcedVariations"] = {dice.choice(users): dice.choice(keys) for _ in range(6)}
    return found


def cmab(dice: Dice, attribute_ids: list[str], users: list[str], experiment_id: str) -> Json:
    known = dice.sample(attribute_ids, k=dice.randint(0, min(4, len(attribute_ids))))
    return {
        "attributeIds": [*known, *known[: dice.of(0, 0, 1)], *(["gone"] if dice.chance(0.3) else [])],
        "trafficAllocation": dice.of(0, 10000, 10000, 10000, None, edge(dice, users, experiment_id)),
    }


def delivery_rule(
    dice: Dice, ids: list[str], own: list[Json], pool: list[Json], users: list[str], *, last: bool
) -> Json:
    """Like an experiment, with a whitelist that nobody looks at."""
    rule = experiment(dice, ids, own, pool, users)
    rule["type"] = "td"
    if last:
        rule["id"] = rule["key"] = f"default-{rule['id']}"
        if dice.chance(0.8):
            rule |= {"audienceIds": [], "audienceConditions": None}
        if dice.chance(0.7):
            rule["trafficAllocation"] = [{"entityId": rule["variations"][0]["id"], "endOfRange": 10000}]
    return rule


def holdout(dice: Dice, ids: list[str], users: list[str]) -> Json:
    holdout_id = dice.id()
    given: list[Any] = [OFF] if dice.chance(0.8) else [variation(dice, []) for _ in range(dice.of(1, 1, 2, 3))]
    first, *others = given
    return {
        "id": holdout_id,
        "key": f"holdout_{holdout_id}" if dice.chance(0.97) else "",
        "status": "Running" if dice.chance(0.9) else dice.of("Draft", "Concluded", "Archived", None),
        "variations": given,
        "trafficAllocation": [
            {
                "entityId": first["id"] if dice.chance(0.95) else "gone",
                "endOfRange": dice.of(500, 1500, 3000, 6000, edge(dice, users, holdout_id)),
            },
            *({"entityId": one["id"], "endOfRange": dice.randint(0, 10000)} for one in others),
        ],
        **targeting(dice, ids),
        **dice.maybe(0.1, layerId=dice.id()),
        **dice.maybe(0.7, excludeTargetedDeliveries=dice.of(True, True, False, None)),
    }


def local_holdout(dice: Dice, ids: list[str], users: list[str], rule_ids: list[str]) -> Json:
    """One that names no rules at all holds out nobody."""
    found = holdout(dice, ids, users)
    if dice.chance(0.95):
        included = dice.sample(rule_ids, k=min(len(rule_ids), dice.of(1, 2, 4)))
        found["includedRules"] = dice.of(*([[*included, "gone"]] * 9), [], None)
    return found
