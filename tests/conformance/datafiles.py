"""Generated datafiles: every field the SDK reads, what real ones hold besides, and entries that repeat others.

Some point at experiments or rollouts that are not there: the SDK refuses those, and they are counted and left out.
"""

from __future__ import annotations

from typing import Any

from tests.conformance.audiences import audiences
from tests.conformance.dice import ATTRIBUTES, Dice, Json
from tests.conformance.rules import (
    allocation,
    cmab,
    delivery_rule,
    experiment,
    holdout,
    local_holdout,
    variables,
    variation,
)


class _Parts:
    """What grows flag by flag."""

    def __init__(self, dice: Dice, users: list[str], audience_ids: list[str], attribute_ids: list[str]) -> None:
        self._dice = dice
        self._users = users
        self._audience_ids = audience_ids
        self._attribute_ids = attribute_ids
        self.flags: list[Json] = []
        self.experiments: list[Json] = []
        self.rollouts: list[Json] = []
        self.groups: list[Json] = []

    def add_flag(self, number: int) -> None:
        dice = self._dice
        own = variables(dice)
        pool = [variation(dice, own) for _ in range(dice.of(0, 2, 3))]
        given = [self._experiment(own, pool) for _ in range(dice.of(0, 1, 1, 2, 3))]
        for one in given if dice.chance(0.3) else []:
            if dice.chance(0.7):
                one["cmab"] = cmab(dice, self._attribute_ids, self._users, one["id"])
        self.experiments += given
        ids = [one["id"] for one in given]
        rollout_id = self._rollout(number, own, pool)
        self.flags.append(
            {"id": dice.id(), "key": f"flag_{number}", "rolloutId": rollout_id, "variables": own,
             "experimentIds": [*ids, *(ids[:1] if dice.chance(0.03) else [])], **dice.maybe(0.1, groupId=dice.id())}
        )  # fmt: skip

    def _experiment(self, own: list[Json], pool: list[Json]) -> Json:
        return experiment(self._dice, self._audience_ids, own, pool, self._users)

    def _rollout(self, number: int, own: list[Json], pool: list[Json]) -> str:
        dice = self._dice
        if dice.chance(0.12):
            return ""
        if self.rollouts and dice.chance(0.05):
            return str(dice.choice(self.rollouts)["id"])  # one rollout may serve two flags
        rules = [
            delivery_rule(dice, self._audience_ids, own, pool, self._users, last=False)
            for _ in range(dice.of(0, 1, 2, 3))
        ]
        if rules and dice.chance(0.05):
            rules.insert(1, rules[0] | {"trafficAllocation": [], "layerId": dice.id()})  # of two the later counts
        rules.append(delivery_rule(dice, self._audience_ids, own, pool, self._users, last=True))
        others = [rule["id"] for rollout in self.rollouts for rule in rollout["experiments"]]
        if others and dice.chance(0.04):
            rules[0]["id"] = dice.choice(others)  # of all rollouts the later counts, and keeps its name in each
        self.rollouts.append({"id": f"rollout-{number}", "experiments": rules if dice.chance(0.96) else []})
        return f"rollout-{number}"

    def repeat(self) -> None:
        """Entries that repeat others: the later one counts."""
        dice = self._dice
        if self.experiments and dice.chance(0.1):
            # One experiment may serve two flags.
            dice.choice(self.flags)["experimentIds"].append(dice.choice(self.experiments)["id"])
        if self.experiments and dice.chance(0.1):
            self.experiments.append(self._experiment([], []) | {"id": dice.choice(self.experiments)["id"]})
        if dice.chance(0.04):
            self.flags.append(dice.choice(self.flags) | {"variables": variables(dice), "experimentIds": []})

    def dangle(self) -> None:
        """A reference to what is not there: the SDK refuses the datafile."""
        flag = self._dice.choice(self.flags)
        if self._dice.chance(0.01):
            flag["experimentIds"] = [*flag["experimentIds"], "gone"]
        if self._dice.chance(0.01):
            flag["rolloutId"] = "gone"

    def group(self) -> None:
        """Move some experiments into groups; one may stay where it was, too."""
        dice = self._dice
        for _ in range(2):
            if len(self.experiments) < 2 or dice.chance(0.6):
                continue
            members = dice.sample(self.experiments, k=2)
            if dice.chance(0.95):
                self.experiments = [one for one in self.experiments if one not in members]
            group_id = dice.id()
            members = [{**one, **dice.maybe(0.2, groupId="other", groupPolicy="random")} for one in members]
            traffic = allocation(dice, [one["id"] for one in members], self._users, group_id)
            policy = dice.of("random", "random", "random", "overlapping", "")
            self.groups.append({"id": group_id, "policy": policy, "experiments": members, "trafficAllocation": traffic})


def attributes(dice: Dice) -> list[Json]:
    """Some keys and some ids twice, some under an empty id."""
    found = [{"id": dice.id() if dice.chance(0.98) else "", "key": key} for key in ATTRIBUTES if dice.chance(0.85)]
    if found and dice.chance(0.1):
        found.append({"id": dice.id(), "key": dice.choice(found)["key"]})
    if found and dice.chance(0.1):
        found.append({"id": dice.choice(found)["id"], "key": dice.of("other", dice.choice(found)["key"])})
    return found


def datafile(dice: Dice, users: list[str]) -> Json:
    plain, typed = audiences(dice)
    known = attributes(dice)
    audience_ids = list(dict.fromkeys(one["id"] for one in (*plain, *typed)))
    parts = _Parts(dice, users, audience_ids, [one["id"] for one in known])
    for number in range(dice.randint(2, 5)):
        parts.add_flag(number)
    parts.repeat()
    parts.group()
    parts.dangle()
    rule_ids = [rule["id"] for rollout in parts.rollouts for rule in rollout["experiments"]]
    rule_ids += [rule_id for flag in parts.flags for rule_id in flag["experimentIds"]]
    everywhere = [holdout(dice, audience_ids, users) for _ in range(dice.of(0, 0, 0, 1, 2))]
    local = (
        [local_holdout(dice, audience_ids, users, rule_ids) for _ in range(dice.of(0, 0, 1, 2, 3))] if rule_ids else []
    )
    if local and dice.chance(0.05):
        everywhere.append(dice.choice(local))  # in both sections: its rules count in one of them only
    return {
        **_head(dice),
        "attributes": known,
        "audiences": plain,
        "typedAudiences": typed,
        "experiments": parts.experiments,
        "groups": parts.groups,
        "featureFlags": parts.flags,
        "rollouts": parts.rollouts,
        "holdouts": everywhere,
        "localHoldouts": local,
        **_nobody_reads(dice),
    }


def _head(dice: Dice) -> Json:
    event_key = f"event_{dice.id()}"
    # Of two of one key the later counts.
    events = [{"id": dice.id(), "key": event_key, "experimentIds": []} for _ in range(dice.of(0, 1, 2))]
    return {
        "version": "4",
        "revision": dice.id(),
        "accountId": dice.id(),
        "projectId": dice.id(),
        **dice.maybe(0.8, sdkKey=dice.of("key", None)),
        **dice.maybe(0.8, environmentKey=dice.of("production", None)),
        **dice.maybe(0.8, sendFlagDecisions=dice.of(True, True, False, None)),
        **dice.maybe(0.8, anonymizeIP=dice.of(True, False)),
        **dice.maybe(0.7, botFiltering=dice.of(True, False, None)),
        **dice.maybe(0.7, region=dice.of("US", "EU", "eu", "", None, "XX")),
        "events": events,
        **dice.maybe(0.6, integrations=_integrations(dice)),
    }


def _integrations(dice: Dice) -> list[Json]:
    """Of two of one key the first counts, here as in the SDK."""
    odp: Any = [
        {"key": "odp", "host": dice.of("https://odp", "", None), "publicKey": dice.of("k", "", None), "pixelUrl": "p"}
        for _ in range(dice.of(0, 1, 2))
    ]
    return [*odp, {"key": "other"}]


def _nobody_reads(dice: Dice) -> Json:
    """What real datafiles hold besides, without effect."""
    return dice.maybe(0.5, variables=[], plans=[{"id": "1"}], rolloutsOfOld={})
