"""One request's user, as the steps of a decision see it, and what has been fetched about them beforehand.

`Facts` is the seam to the network: everything a decision needs from elsewhere is fetched first and handed in, so that
the same facts always give the same decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from pipeline.messages.decide import DecideRequest
from pipeline.project.flags import Holdout
from pipeline.project.outcomes import Choice, Outcome

BUCKETING_ID = "$opt_bucketing_id"
IGNORE_PROFILE = "IGNORE_USER_PROFILE_SERVICE"


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """The variation that the prediction service chose for a user in one rule, and the id of that choice."""

    variation_id: str
    uuid: str


class Wanted(msgspec.Struct, frozen=True, gc=False):
    """A prediction that a decision depends on: of this rule, for the user's attributes by attribute id."""

    rule_id: str
    attributes: dict[str, Any]


class Facts(msgspec.Struct, frozen=True, gc=False):
    """What was fetched about the user.

    `segments` None: never fetched; empty: known to be in none. `profile` is the sticky profile, experiment id to
    variation id; None where there is none to be kept. `predictions` are by rule id; one that is None could not be had.
    """

    segments: frozenset[str] | None = None
    profile: Mapping[str, str] | None = None
    predictions: Mapping[str, Prediction | None] | None = None


class Visitor(msgspec.Struct, gc=False):
    """The user under decision. `infos` and `bypassed` belong to the flag in hand; all else is the request's.

    `infos` collects reasons, None where nobody asked for them. `bypassed` is the outcome of a holdout the user is in
    that lets targeted deliveries through: it still owes its impression. `profile` grows by what is `learned`, `wanted`
    by the predictions that would be needed to decide in earnest. `held` is the global holdout the user is in, empty for
    none, None until it was looked for.
    """

    user_id: str
    attributes: Mapping[str, Any]
    segments: frozenset[str] | None
    bucketing: bytes
    """What is hashed for the user."""
    forced: Mapping[tuple[str, str], str] | None
    """Flag and rule to variation, by key; None where there are none."""
    profile: dict[str, str] | None = None
    predictions: Mapping[str, Prediction | None] | None = None
    held: tuple[Holdout, Choice] | tuple[()] | None = None
    infos: list[str] | None = None
    bypassed: Outcome | None = None
    learned: dict[str, str] | None = None
    wanted: dict[str, Wanted] | None = None

    def learn(self, experiment_id: str, variation_id: str) -> None:
        """The experiment gives this variation from now on, whatever becomes of its traffic."""
        if self.profile is not None:
            self.profile[experiment_id] = variation_id
            if self.learned is None:
                self.learned = {}
            self.learned[experiment_id] = variation_id

    def want(self, rule_id: str, attributes: dict[str, Any]) -> None:
        """This rule cannot be decided without its prediction."""
        if self.wanted is None:
            self.wanted = {}
        self.wanted[rule_id] = Wanted(rule_id, attributes)


def visitor_of(request: DecideRequest, facts: Facts) -> Visitor:
    attributes = request.attributes
    profile: dict[str, str] | None = None
    if facts.profile is not None and IGNORE_PROFILE not in request.options:
        # A copy: what is learned is the caller's to keep, or to forget where the decision comes to nothing.
        profile = dict(facts.profile)
    bucketing_id = attributes.get(BUCKETING_ID)
    return Visitor(
        request.user_id,
        attributes,
        facts.segments,
        (bucketing_id if isinstance(bucketing_id, str) else request.user_id).encode(),
        # Of two for one place the later counts.
        {(item.flag_key, item.rule_key): item.variation_key for item in request.forced} if request.forced else None,
        profile,
        facts.predictions,
    )
