"""What is not compared, each with its reason: where we differ from the SDK on purpose, or the SDK from itself.

Where the SDK raises (an `and` over `[]`, a text among conditions) or refuses the datafile (a reference to what is not
there) there is nothing to compare with. Two more are settled in the oracle: numbers compared with text in versions, and
a flag key that stands twice in the datafile. Never generated are values of a wrong JSON type and conditions deeper than
64 levels, which are refused here; numbers of more than 63 digits in versions and 308 in variables; holdouts of one id
that differ; a variation whose id is empty, of which the SDK sends an impression without its key.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from tests.conformance.dice import Json
from tests.conformance.requests import Case, experiments_of


def rules_of_all(datafile: Json) -> list[Json]:
    """Experiments and delivery rules, of each id the one that counts."""
    by_id = {one["id"]: one for one in datafile.get("experiments", [])}
    by_id |= {rule["id"]: rule for rollout in datafile.get("rollouts", []) for rule in rollout["experiments"]}
    by_id |= {one["id"]: one for group in datafile.get("groups", []) for one in group["experiments"]}
    return list(by_id.values())


def delivery_rules(datafile: Json) -> Iterator[Json]:
    return (rule for rollout in datafile.get("rollouts", []) for rule in rollout["experiments"])


def holdouts(datafile: Json) -> list[Json]:
    return [*datafile.get("holdouts", []), *datafile.get("localHoldouts", [])]


def shared_keys(datafile: Json) -> frozenset[str]:
    """Keys of several experiments, rules or holdouts."""
    ids: dict[str, set[str]] = defaultdict(set)
    for one in (*rules_of_all(datafile), *holdouts(datafile)):
        ids[one["key"]].add(one["id"])
    return frozenset(key for key, found in ids.items() if len(found) > 1)


def looks_up_by_a_shared_key(case: Case, shared: frozenset[str]) -> bool:
    """Whitelist, sticky profile and prediction are looked up by experiment key in the SDK."""
    user, profile = case.request.get("userId"), case.profile or {}
    return any(
        user in (one.get("forcedVariations") or {}) or one["id"] in profile or one.get("cmab")
        for one in experiments_of(case.datafile)
        if one["key"] in shared
    )


def shared_feature_rollouts(datafile: Json) -> frozenset[str]:
    """Ids of feature rollouts under several flags.

    What the later flag's rollout adds to one is not known to the SDK as a variation of the earlier flag: an impression
    of that flag goes out without it (`LOST`). Here it carries what was decided.
    """
    rollouts = {one["id"] for one in experiments_of(datafile) if one.get("type") == "fr"}
    flags = {flag["key"]: flag["experimentIds"] for flag in datafile.get("featureFlags", [])}
    found = Counter(rule_id for ids in flags.values() for rule_id in rollouts.intersection(ids))
    return frozenset(rule_id for rule_id, times in found.items() if times > 1)


def _variations_that_disagree(datafile: Json) -> bool:
    contents: dict[str, set[str]] = defaultdict(set)
    for rule in rules_of_all(datafile):
        for one in rule["variations"]:
            values = [(value["id"], value["value"]) for value in one.get("variables") or []]
            contents[one["id"]].add(repr((one["key"], bool(one.get("featureEnabled")), values)))
    held = {one["id"] for holdout in holdouts(datafile) for one in holdout["variations"]}
    return any(len(found) > 1 for found in contents.values()) or not held.isdisjoint(contents)


def _operands(item: Any) -> Iterator[Any]:
    if isinstance(item, list):
        for operand in item[1:] if item and item[0] in ("and", "or", "not") else item:
            yield from _operands(operand)
    else:
        yield item


def _odd_conditions(datafile: Json) -> bool:
    """Of plain audiences nothing odd is generated, and their text is not read for it."""
    found = [leaf for audience in datafile.get("typedAudiences", []) for leaf in _operands(audience["conditions"])]
    return any(not isinstance(leaf, dict) or any(isinstance(value, dict) for value in leaf.values()) for leaf in found)


def _half_a_cmab(datafile: Json) -> bool:
    bandits = [one["cmab"] for one in experiments_of(datafile) if one.get("cmab")]
    return any("attributeIds" not in one or "trafficAllocation" not in one for one in bandits)


def _group_by_name(datafile: Json) -> bool:
    return any(one.get("groupPolicy") for one in (*datafile.get("experiments", []), *delivery_rules(datafile)))


def _nameless(datafile: Json) -> bool:
    return not all(isinstance(datafile.get(name), str) for name in ("accountId", "projectId", "revision"))


DATAFILES: dict[str, Callable[[Json], bool]] = {
    "variations of one id that differ: the SDK takes now one, now another": _variations_that_disagree,
    "a condition that is a number, or holds an object: the SDK takes either for the number of a leaf": _odd_conditions,
    "a CMAB without its traffic or attributes: the SDK raises": _half_a_cmab,
    "a CMAB in a delivery rule: there is no such thing": lambda one: any(r.get("cmab") for r in delivery_rules(one)),
    "a datafile without account, project or revision: the SDK's schema demands them": _nameless,
    "a group policy outside of a group: the SDK believes it": _group_by_name,
}
LOST = {"variationKey": "", "variationId": None}
SHARED_KEY = "experiments that share a key: the SDK looks whitelist, profile and prediction up by it"


def deviation(case: Case) -> str | None:
    """Why a case is not to be compared; None if it is."""
    found = next((reason for reason, applies in DATAFILES.items() if applies(case.datafile)), None)
    if found is None and looks_up_by_a_shared_key(case, shared_keys(case.datafile)):
        found = SHARED_KEY
    return found
