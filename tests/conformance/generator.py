"""Seeded projects and requests, dense in the corners: every match type, every kind of rule, odd values everywhere.

What the SDK cannot survive is left out: references to experiments or rollouts that do not exist (it refuses the
datafile), empty nested conditions, lists of audiences without an operator, and a target version that is text where
the user's is a number (it raises).
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

from pipeline.messages.decide import DecideRequest, ForcedDecision

Json = dict[str, Any]

ATTRIBUTES = ("country", "plan", "age", "beta", "app", "nick", "$opt_user_agent", "odd key ž")
SEGMENTS = ("seg_a", "seg_b", "seg_c")
TEXTS = ("DE", "SI", "", "gold", "a DE b", "ž", "1.0")
NUMBERS = (0, 1, 18, 18.0, -3, 2.5, 2**53, 2**53 + 2, -(2**53), 1e300, 10**18)
VERSIONS = ("2", "2.1", "2.1.0", "3.7.1", "3.7.1-beta", "3.7.1-rc", "3.7.1+42", "10.0.0", "2.1.0-2", "2.1.0-10")
BAD_VERSIONS = ("", "x", "2.", ".2", "1.2.3.4", "2 .1", "-", "+", "1.x", "+build-pre")
NUMERIC_TARGETS = ("2", "2.1", "2.1.0", "3.7.1", "10.0.0", "1.x", "", "2.1.0-2")
VALUES: dict[str, tuple[str, ...]] = {
    "boolean": ("true", "false", "True", "1", "", "maybe"),
    "integer": ("0", "-7", "42", "abc", "", "1.5", " 5", "+5", "1_000", "9007199254740993", "123456789012345678901"),
    "double": ("0.25", "3", "1e3", "x", "", "inf", "nan", "-0.0"),
    "json": ('{"a":[1,2.5,null]}', "[1]", "5", "null", "{bad", "", '{\n "k": "ž\\u2028" }'),
    "string": ("", "hello", 'quote " and \\', "ž\n"),
    "color": ("#fff",),
}
OPTIONS = ("DISABLE_DECISION_EVENT", "ENABLED_FLAGS_ONLY", "EXCLUDE_VARIABLES", "INCLUDE_REASONS")


@dataclass
class Case:
    request: DecideRequest
    segments: frozenset[str] | None


@dataclass
class Generator:
    """One generator makes one project after another; the same seed makes the same ones."""

    seed: int
    rng: random.Random = field(init=False)
    _next_id: int = 1000

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def _id(self) -> str:
        self._next_id += 1
        return str(self._next_id)

    def _chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    # Audiences

    def _leaf(self) -> Json:
        rng = self.rng
        match = rng.choice(
            ("exact", "exact", "exists", "substring", "gt", "ge", "lt", "le", "qualified", "semver_eq", "semver_gt",
             "semver_ge", "semver_lt", "semver_le", "regex", None)
        )  # fmt: skip
        value: Any = rng.choice((*TEXTS, *NUMBERS, True, False, None))
        if match == "qualified":
            value = rng.choice((*SEGMENTS, 5))
        elif match in ("gt", "ge", "lt", "le"):
            value = rng.choice((*NUMBERS, "18", True))
        elif match == "substring":
            value = rng.choice((*TEXTS, 1))
        elif match is not None and match.startswith("semver"):
            value = rng.choice((*NUMERIC_TARGETS, 2))
        leaf: Json = {"name": rng.choice((*ATTRIBUTES, "never")), "type": "custom_attribute", "value": value}
        if match is not None or self._chance(0.5):
            leaf["match"] = match
        if self._chance(0.08):
            leaf["type"] = rng.choice(("third_party_dimension", "browser", None))
        return leaf

    def _conditions(self, depth: int = 0) -> Any:
        if depth > 3 or (depth and self._chance(0.45)):
            return self._leaf()
        operands = [self._conditions(depth + 1) for _ in range(self.rng.randint(1, 3))]
        operator = self.rng.choice(("and", "or", "not", "and", "or", None))
        return operands if operator is None else [operator, *operands]

    def _audience_conditions(self, ids: list[str], depth: int = 0) -> Any:
        if depth > 2 or (depth and self._chance(0.5)):
            return self.rng.choice((*ids, "missing"))
        operands = [self._audience_conditions(ids, depth + 1) for _ in range(self.rng.randint(1, 3))]
        return [self.rng.choice(("and", "or", "not", "or")), *operands]

    def _targeting(self, ids: list[str]) -> Json:
        kind = self.rng.random()
        if kind < 0.35:
            return {"audienceIds": []}
        if kind < 0.55:
            return {"audienceIds": self.rng.sample(ids, k=self.rng.randint(1, 2))}
        conditions: Any = self.rng.choice(([], None, self.rng.choice(ids), self._audience_conditions(ids)))
        return {"audienceIds": [], "audienceConditions": conditions}

    # Rules

    def _variation(self, variables: list[Json]) -> Json:
        values = [
            {"id": variable["id"], "value": self.rng.choice(VALUES[self._kind(variable)])}
            for variable in variables
            if self._chance(0.6)
        ]
        variation_id = self._id()
        if self._chance(0.05):
            variation_id = f"$opt_{variation_id}"
        variation: Json = {"id": variation_id, "key": self.rng.choice(("on", "off", "v")) + self._id()[-2:]}
        if self._chance(0.9):
            variation["featureEnabled"] = self._chance(0.7)
        if values or self._chance(0.5):
            variation["variables"] = values
        return variation

    @staticmethod
    def _kind(variable: Json) -> str:
        return "json" if variable.get("subType") == "json" else str(variable["type"])

    def _allocation(self, entities: list[str]) -> list[Json]:
        ranges = []
        end = 0
        for _ in range(self.rng.randint(1, 4)):
            end = self.rng.choice((end, 10000, self.rng.randint(0, 10000), min(10000, end + 3000)))
            ranges.append({"entityId": self.rng.choice((*entities, *entities, "", "gone")), "endOfRange": end})
        return ranges

    def _experiment(self, ids: list[str], variables: list[Json], users: list[str]) -> Json:
        variations = [self._variation(variables) for _ in range(self.rng.randint(1, 3))]
        experiment_id = self._id()
        experiment = {
            "id": experiment_id,
            "key": f"exp_{experiment_id}",
            "layerId": self.rng.choice(("", self._id(), f"default-{experiment_id}")),
            "status": "Running" if self._chance(0.9) else "Paused",
            "variations": variations,
            "trafficAllocation": self._allocation([variation["id"] for variation in variations]),
            "forcedVariations": {},
            **self._targeting(ids),
        }
        if self._chance(0.7):
            experiment["type"] = self.rng.choice(("ab", "mab", "td", "fr", "td"))
        if self._chance(0.2):
            keys = [*(variation["key"] for variation in variations), "gone"]
            experiment["forcedVariations"] = {self.rng.choice(users): self.rng.choice(keys) for _ in range(5)}
        if self._chance(0.08):
            experiment["cmab"] = {"attributeIds": [], "trafficAllocation": self.rng.choice((0, 5000, 10000))}
        return experiment

    def _rule(self, ids: list[str], variables: list[Json], last: bool) -> Json:
        rule = self._experiment(ids, variables, ["nobody"])
        rule.pop("cmab", None)
        rule["type"] = "td"
        if last:
            rule["id"] = rule["key"] = f"default-{rule['id']}"
            if self._chance(0.85):
                rule |= {"audienceIds": [], "audienceConditions": None}
            if self._chance(0.7):
                rule["trafficAllocation"] = [{"entityId": rule["variations"][0]["id"], "endOfRange": 10000}]
        return rule

    def _holdout(self, ids: list[str]) -> Json:
        holdout_id = self._id()
        variation: Json = {"id": "$opt_dummy_variation_id", "key": "off", "featureEnabled": False, "variables": []}
        if self._chance(0.15):
            variation = self._variation([])
        return {
            "id": holdout_id,
            "key": f"holdout_{holdout_id}",
            "status": "Running" if self._chance(0.9) else "Draft",
            "variations": [variation],
            "trafficAllocation": [{"entityId": variation["id"], "endOfRange": self.rng.choice((500, 2000, 6000))}],
            "excludeTargetedDeliveries": self._chance(0.5),
            **self._targeting(ids),
        }

    # The project

    def _variables(self) -> list[Json]:
        found = []
        for number in range(self.rng.randint(0, 4)):
            kind = self.rng.choice(tuple(VALUES))
            variable = {"id": self._id(), "key": f"var_{number}", "defaultValue": self.rng.choice(VALUES[kind])}
            variable |= {"type": "string", "subType": "json"} if kind == "json" else {"type": kind}
            found.append(variable)
        return found

    def _audiences(self) -> tuple[list[Json], list[Json]]:
        typed, plain = [], []
        for _ in range(self.rng.randint(3, 6)):
            audience_id = self._id()
            # Conditions of plain audiences are JSON in a text.
            plain.append({"id": audience_id, "name": "n", "conditions": json.dumps(self._conditions())})
            if self._chance(0.7):
                typed.append({"id": audience_id, "name": "n", "conditions": self._conditions()})
        return plain, typed

    def project(self, users: list[str]) -> Json:
        rng = self.rng
        plain, typed = self._audiences()
        ids = [audience["id"] for audience in plain]
        flags: list[Json] = []
        experiments: list[Json] = []
        rollouts: list[Json] = []
        groups: list[Json] = []
        for number in range(rng.randint(2, 5)):
            variables = self._variables()
            own = [self._experiment(ids, variables, users) for _ in range(rng.randint(0, 3))]
            experiments += own
            rules = [self._rule(ids, variables, last=False) for _ in range(rng.randint(0, 3))]
            rules.append(self._rule(ids, variables, last=True))
            rollout_id = f"rollout-{number}" if self._chance(0.85) else ""
            if rollout_id:
                rollouts.append({"id": rollout_id, "experiments": rules if self._chance(0.95) else []})
            flags.append(
                {"id": self._id(), "key": f"flag_{number}", "rolloutId": rollout_id, "variables": variables,
                 "experimentIds": [experiment["id"] for experiment in own]}
            )  # fmt: skip
        if experiments and self._chance(0.1):
            rng.choice(flags)["experimentIds"].append(rng.choice(experiments)["id"])
        for _ in range(2):
            if len(experiments) >= 2 and self._chance(0.4):
                members = [experiments.pop(rng.randrange(len(experiments))) for _ in range(2)]
                groups.append(
                    {"id": self._id(), "policy": rng.choice(("random", "random", "overlapping")),
                     "experiments": members, "trafficAllocation": self._allocation([one["id"] for one in members])}
                )  # fmt: skip
        rule_ids = [rule["id"] for rollout in rollouts for rule in rollout["experiments"]]
        rule_ids += [one["id"] for one in experiments]
        return {
            "version": "4",
            "revision": self._id(),
            "accountId": "111",
            "projectId": "222",
            "sdkKey": "key",
            "sendFlagDecisions": self._chance(0.5),
            "anonymizeIP": self._chance(0.5),
            **({"botFiltering": self._chance(0.5)} if self._chance(0.5) else {}),
            **({"region": rng.choice(("US", "EU", ""))} if self._chance(0.5) else {}),
            "attributes": [{"id": self._id(), "key": key} for key in ATTRIBUTES if self._chance(0.8)],
            "audiences": plain,
            "typedAudiences": typed,
            "events": [],
            "experiments": experiments,
            "groups": groups,
            "featureFlags": flags,
            "rollouts": rollouts,
            "holdouts": [self._holdout(ids) for _ in range(rng.choice((0, 0, 1, 2)))],
            "localHoldouts": [
                self._holdout(ids)
                | {"includedRules": rng.sample(rule_ids, k=min(len(rule_ids), 2)), "excludeTargetedDeliveries": False}
                for _ in range(rng.choice((0, 0, 1, 2)))
            ],
        }

    # Requests

    def _attributes(self) -> Json:
        rng = self.rng
        attributes: Json = {}
        for key in (*ATTRIBUTES, "not in the datafile", "$opt_other"):
            if self._chance(0.6):
                kinds: tuple[Any, ...] = (
                    rng.choice(TEXTS), rng.choice(TEXTS), rng.choice(NUMBERS), rng.choice(NUMBERS), True, False, None,
                    ["list"], {"an": "object"}, rng.choice(VERSIONS), rng.choice(BAD_VERSIONS),
                )  # fmt: skip
                attributes[key] = rng.choice(kinds)
        if self._chance(0.7):
            attributes["app"] = rng.choice(VERSIONS)
        if self._chance(0.2):
            attributes["$opt_bucketing_id"] = rng.choice(("other", "ž", "", 5, None, True, ["x"]))
        return attributes

    def _forced(self, project: Json) -> tuple[ForcedDecision, ...]:
        rng = self.rng
        if self._chance(0.6):
            return ()
        rollouts = {rollout["id"]: rollout["experiments"] for rollout in project["rollouts"]}
        by_id = {one["id"]: one for one in project["experiments"]}
        by_id |= {one["id"]: one for group in project["groups"] for one in group["experiments"]}
        forced = []
        for _ in range(rng.randint(1, 3)):
            flag = rng.choice(project["featureFlags"])
            rules = [by_id[rule] for rule in flag["experimentIds"]] + rollouts.get(flag["rolloutId"], [])
            variations = [variation["key"] for rule in rules for variation in rule["variations"]]
            rule_key = rng.choice(("", *(rule["key"] for rule in rules), *(rule["key"] for rule in rules), "gone"))
            forced.append(ForcedDecision(flag["key"], rule_key, rng.choice((*variations, *variations, "gone"))))
        return tuple(forced)

    def case(self, project: Json, users: list[str]) -> Case:
        rng = self.rng
        keys = [flag["key"] for flag in project["featureFlags"]]
        chosen: list[str] = rng.choice(([], [rng.choice(keys)], rng.sample([*keys, "no flag"], k=2)))
        request = DecideRequest(
            user_id=rng.choice(users),
            request_id=None,
            sdk_key="key",
            attributes=self._attributes(),
            keys=tuple(chosen),
            options=frozenset(option for option in OPTIONS if self._chance(0.15)),
            forced=self._forced(project),
            fetch_segments=False,
            ignore_cache=False,
            reset_cache=False,
            ttl_ms=None,
            error=None,
        )
        segments = None if self._chance(0.3) else frozenset(rng.sample(SEGMENTS, k=rng.randint(0, 3)))
        return Case(request, segments)


def user_ids(rng: random.Random, count: int) -> list[str]:
    return [rng.choice(("user", "ž", "u ", "😀")) + str(rng.randrange(10**6)) for _ in range(count)]
