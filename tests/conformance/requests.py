"""Generated requests on a datafile, and the facts about their users: segments, sticky profile, predictions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tests.conformance.dice import ATTRIBUTES, BAD_VERSIONS, NATURAL, ODD, SEGMENTS, Dice, Json

OPTIONS = (
    "DISABLE_DECISION_EVENT", "ENABLED_FLAGS_ONLY", "IGNORE_USER_PROFILE_SERVICE", "EXCLUDE_VARIABLES",
    "INCLUDE_REASONS", "IGNORE_CMAB_CACHE", "RESET_CMAB_CACHE", "INVALIDATE_USER_CMAB_CACHE",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One comparison, all of it JSON.

    `profile`: experiment id to variation id; None where no profiles are kept. `predictions`: rule id to
    `{"variationId", "uuid"}`, or to None where it could not be had, as is one that is not there.
    """

    datafile: Json
    request: Json
    segments: list[str] | None = None
    profile: dict[str, str] | None = None
    predictions: Json | None = None

    def as_json(self) -> Json:
        return dict(vars(self))

    def on(self, datafile: Json) -> Case:
        return replace(self, datafile=datafile)


def experiments_of(datafile: Json) -> list[Json]:
    """The experiments of a datafile, also those in groups, as far as they are not replaced by a later one."""
    groups = (one for group in datafile.get("groups", []) for one in group["experiments"])
    by_id = {one["id"]: one for one in (*datafile.get("experiments", []), *groups)}
    return list(by_id.values())


def rules_of(datafile: Json, flag: Json) -> list[Json]:
    by_id = {one["id"]: one for one in experiments_of(datafile)}
    rollouts: dict[str, list[Json]] = {
        rollout["id"]: rollout["experiments"] for rollout in datafile.get("rollouts", [])
    }
    return [by_id[rule] for rule in flag["experimentIds"] if rule in by_id] + rollouts.get(flag["rolloutId"], [])


class Requests:
    """Requests of some users on one datafile."""

    def __init__(self, dice: Dice, datafile: Json, users: list[str]) -> None:
        self._dice = dice
        self._datafile = datafile
        self._users = users
        self._experiments = experiments_of(datafile)
        self._cmabs = [one for one in self._experiments if one.get("cmab")]
        self._flags: list[Json] = datafile["featureFlags"]
        self._rules = [rules_of(datafile, flag) for flag in self._flags]

    def case(self) -> Case:
        dice = self._dice
        return Case(
            self._datafile,
            self._request(),
            None if dice.chance(0.3) else dice.sample(SEGMENTS, k=dice.randint(0, 3)),
            self._profile() if dice.chance(0.6) else None,
            {one["id"]: self._prediction(one) for one in self._cmabs if dice.chance(0.95)},
        )

    def _request(self) -> Json:
        dice = self._dice
        keys = [flag["key"] for flag in self._flags]
        return {
            "userId": dice.choice(self._users),
            "userAttributes": self._attributes() if dice.chance(0.97) else None,
            "keys": self._keys(keys),
            "decideOptions": [option for option in OPTIONS if dice.chance(0.12)],
            "forcedDecisions": self._forced() if dice.chance(0.3) else [],
        }

    def _keys(self, keys: list[str]) -> list[str]:
        """None, one, one twice, or several of which some may be the same."""
        dice = self._dice
        one, several = dice.of(*keys, *keys, "no flag"), [dice.of(*keys, "no flag") for _ in range(4)]
        if dice.chance(0.05):
            return [one, one]
        return dice.choice([[], [], [one], several])

    def _attributes(self) -> Json:
        dice = self._dice
        found: Json = {}
        for key, kind in ATTRIBUTES.items():
            if dice.chance(0.8):
                natural = dice.chance(0.85)
                found[key] = dice.choice(NATURAL[kind]) if natural else dice.of(*ODD, *BAD_VERSIONS)
        for key in ("not in the datafile", "$opt_other", "$opt_bot_filtering", ""):
            if dice.chance(0.1):
                found[key] = dice.of(True, "x", 5, 2.5, *ODD)
        if dice.chance(0.2):
            found["$opt_bucketing_id"] = dice.of("other", "ž", "", 5, None, True, ["x"], {}, 1e300, 2.5)
        return found

    def _forced(self) -> list[Any]:
        dice = self._dice
        forced: list[Any] = []
        for _ in range(dice.randint(1, 4)):
            number = dice.randrange(len(self._flags))
            rules = self._rules[number]
            variations = [variation["key"] for rule in rules for variation in rule["variations"]]
            forced.append(
                {"flagKey": self._flags[number]["key"],
                 "ruleKey": dice.of("", *(rule["key"] for rule in rules), *(rule["key"] for rule in rules), "gone"),
                 "variationKey": dice.of(*variations, *variations, "gone", None)}
            )  # fmt: skip
        return [*forced, *([None, {"flagKey": "no flag"}] if dice.chance(0.1) else [])]

    def _profile(self) -> dict[str, str]:
        """What earlier decisions left, also of experiments that are gone, and variations of others."""
        dice = self._dice
        everywhere = [variation["id"] for one in self._experiments for variation in one["variations"]]
        stored = {"gone": "gone"} if dice.chance(0.1) else {}
        for one in self._experiments:
            if dice.chance(0.3):
                own = [variation["id"] for variation in one["variations"]]
                stored[one["id"]] = dice.of(*own, *own, dice.choice(everywhere), "gone", "")
        return stored

    def _prediction(self, rule: Json) -> Json | None:
        dice = self._dice
        if dice.chance(0.3):
            return None
        own = [variation["id"] for variation in rule["variations"]]
        return {"variationId": dice.of(*own, *own, "gone", "gone", ""), "uuid": f"{dice.getrandbits(64):x}"}
