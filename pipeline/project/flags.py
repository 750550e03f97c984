"""The compiled entities of a datafile: flags with their holdouts, experiments and delivery rules.

Everything a decision needs is here in the order it is needed; each kind of rule maps a bucketing id straight to what it
gives. Immutable, shared by all decisions of a revision. Built by the compiler, read by the decider.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from pipeline.project.allocation import Pick
from pipeline.project.conditions import Node
from pipeline.project.matchers import Test
from pipeline.project.outcomes import Choice, Origin, Outcome, Outcomes, Variation


class Rule(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What holdouts, experiments and delivery rules have in common. Without `audience` everyone passes."""

    id: str
    key: str
    audience: Test | None
    conditions: Node | None


class Holdout(Rule, frozen=True, gc=False, kw_only=True):
    """A running holdout, of all flags if it is global, else of single rules."""

    pick: Pick[Choice]
    """What it gives, whatever the flag."""
    excludes_targeted_deliveries: bool
    """Users it holds out still get targeted deliveries; the holdout then only counts them."""


class DeliveryRule(Rule, frozen=True, gc=False, kw_only=True):
    pick: Pick[Outcome]
    origin: Origin
    number: int
    """Its place among the rules, counted from 1: how reasons name it."""
    holdouts: tuple[Holdout, ...]


class Group(msgspec.Struct, frozen=True, gc=False):
    """Experiments that exclude each other: `pick` gives the id of the one experiment open to a user."""

    id: str
    pick: Pick[str]


class Cmab(msgspec.Struct, frozen=True, gc=False):
    """A contextual bandit: a prediction chooses the variation. `pick` gives True for users in its traffic."""

    pick: Pick[bool]
    failure: Outcome
    attributes: tuple[tuple[str, str], ...]
    """Id and key of each attribute that the prediction depends on, as far as the datafile has them."""


class Experiment(Rule, frozen=True, gc=False, kw_only=True):
    pick: Pick[Outcome]
    """The outcome for a bucketing id, as if the experiment were in no group."""
    origin: Origin
    running: bool
    targeted_delivery: bool
    holdouts: tuple[Holdout, ...]
    whitelist: Mapping[str, Outcome | str]
    """User id to the outcome it is given, or to the key of a variation that the datafile does not have."""
    group: Group | None
    cmab: Cmab | None
    outcomes: Mapping[str, Outcome]
    """By variation id: what a sticky profile or a prediction names."""
    plain: bool
    """Running, and nothing but an audience and traffic: without holdouts, whitelist, group and prediction."""


class Rollout(msgspec.Struct, frozen=True, gc=False):
    """The delivery rules of a flag. Its last one, for everyone else, is None only where there is no rule at all."""

    targeted: tuple[DeliveryRule, ...]
    everyone_else: DeliveryRule | None


class Flag(msgspec.Struct, frozen=True, gc=False):
    """A feature flag. `rollout` is None where the datafile has no such rollout."""

    id: str
    key: str
    holdouts: tuple[Holdout, ...]
    """The global ones: all flags of a project have the same."""
    experiments: tuple[Experiment, ...]
    rollout: Rollout | None
    variations: Mapping[str, Variation]
    """Those a forced decision may name, by key."""
    nothing: Outcome
    outcomes: Outcomes
