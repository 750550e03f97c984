"""Experiments, delivery rules and holdouts as read from a datafile, before they are compiled for a flag.

Where two entries disagree, of one id or key, the later counts, as in the Python SDK. Called by the compiler only.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.project.conditions import Node
from pipeline.project.flags import Group
from pipeline.project.matchers import Test
from pipeline.project.outcomes import Variation
from pipeline.project.reader import Entry
from pipeline.project.variables import Variable

RUNNING = "Running"


@dataclass(slots=True)
class Draft:
    """`ranges` and `variations` of a feature rollout grow by the variation that everyone else gets."""

    id: str
    key: str
    layer_id: str
    status: str | None
    """Empty where the datafile has null; None where it says nothing of it."""
    kind: str
    conditions: object
    variations: dict[str, Variation]
    """By id; of two of one key the later."""
    listed: list[Variation]
    """As they stand there."""
    ranges: list[tuple[int, str]]
    whitelist: dict[str, str]
    cmab_traffic: int | None
    cmab_attributes: list[str]
    """Ids of the attributes that a prediction depends on."""
    excludes_targeted_deliveries: bool
    included_rules: list[str]
    where: str
    group: Group | None = None
    compiled: tuple[Test | None, Node | None] | None = None
    """Test and tree of `conditions`, once for all flags that use this."""


def read_draft(entry: Entry) -> Draft:
    conditions = entry.fields.get("audienceConditions")
    cmab = entry.entry("cmab")
    forced = entry.entry("forcedVariations")
    listed = [_read_variation(variation) for variation in entry.entries("variations")]
    by_key = {variation.key: variation for variation in listed}
    return Draft(
        id=entry.required("id"),
        key=entry.required("key"),
        layer_id=entry.text("layerId"),
        status=entry.text("status") if "status" in entry.fields else None,
        kind=entry.text("type"),
        conditions=entry.texts("audienceIds") if conditions is None else conditions,
        variations={variation.id: variation for variation in by_key.values()},
        listed=listed,
        ranges=read_ranges(entry),
        whitelist={user: forced.text(user) for user in forced.fields} if forced else {},
        cmab_traffic=(cmab.number("trafficAllocation") or 0) if cmab and cmab.fields else None,
        cmab_attributes=cmab.texts("attributeIds") if cmab else [],
        excludes_targeted_deliveries=bool(entry.boolean("excludeTargetedDeliveries")),
        included_rules=entry.texts("includedRules"),
        where=entry.where,
    )


def read_ranges(entry: Entry) -> list[tuple[int, str]]:
    """A traffic allocation: end of range, entity id. A range without an end is never reached."""
    return [(part.number("endOfRange") or 0, part.text("entityId")) for part in entry.entries("trafficAllocation")]


def read_variables(entry: Entry) -> tuple[Variable, ...]:
    by_key = {variable.key: variable for variable in map(_read_variable, entry.entries("variables"))}
    return tuple(by_key.values())


def _read_variable(entry: Entry) -> Variable:
    kind = entry.text("type")
    # Datafiles carry JSON variables as strings with a sub-type.
    if kind == "string" and entry.text("subType") == "json":
        kind = "json"
    return Variable(entry.required("id"), entry.required("key"), kind, entry.nullable("defaultValue"))


def _read_variation(entry: Entry) -> Variation:
    values = {given.required("id"): given.nullable("value") for given in entry.entries("variables")}
    return Variation(entry.required("id"), entry.required("key"), bool(entry.boolean("featureEnabled")), values)
