"""Holdouts: users kept out of everything (global), or out of single rules (local), to measure by."""

from __future__ import annotations

from pipeline.decision import reasons
from pipeline.decision.visitor import Visitor
from pipeline.project.flags import DeliveryRule, Experiment, Flag, Holdout
from pipeline.project.outcomes import Choice, Outcome


def global_holdouts(flag: Flag, visitor: Visitor) -> Outcome | None:
    """The first running holdout the user is in, in the datafile's order.

    One that excludes targeted deliveries ends the search too, yet decides nothing: the flag goes on with targeted
    deliveries and its rollout, and the holdout is remembered in `visitor.bypassed`.
    """
    found = _global(flag, visitor)
    if found is None:
        return None
    holdout, held = found
    if not holdout.excludes_targeted_deliveries:
        return flag.outcomes.of(held)
    visitor.bypassed = flag.outcomes.of(held)
    if visitor.infos is not None:
        visitor.infos.append(
            f"Holdout '{holdout.key}' excludes targeted deliveries. Targeted delivery rules will be evaluated."
        )
    return None


def holdouts_of_experiment(flag: Flag, rule: Experiment, visitor: Visitor) -> Outcome | None:
    return _local(flag, rule, visitor, visitor.infos)


def holdouts_of_delivery_rule(flag: Flag, rule: DeliveryRule, visitor: Visitor) -> Outcome | None:
    """As of an experiment, but the Agent says nothing of those the user is not in."""
    why: list[str] | None = None if visitor.infos is None else []
    outcome = _local(flag, rule, visitor, why)
    if outcome is not None and why and visitor.infos is not None:
        visitor.infos.extend(why)
    return outcome


def _global(flag: Flag, visitor: Visitor) -> tuple[Holdout, Choice] | None:
    # All flags have the same holdouts: a user is in the same one for each. Reasons are each flag's own.
    if visitor.held is None or visitor.infos is not None:
        visitor.held = ()
        for holdout in flag.holdouts:
            held = _held(holdout, visitor, "holdout", visitor.infos)
            if held is not None:
                visitor.held = (holdout, held)
                break
    return visitor.held or None


def _local(flag: Flag, rule: Experiment | DeliveryRule, visitor: Visitor, why: list[str] | None) -> Outcome | None:
    for holdout in rule.holdouts:
        held = _held(holdout, visitor, "local holdout", why, rule.id)
        if held is not None:
            return flag.outcomes.of(held)
    return None


def _held(holdout: Holdout, visitor: Visitor, scope: str, why: list[str] | None, rule_id: str = "") -> Choice | None:
    passed = holdout.audience is None or holdout.audience(visitor.attributes, visitor.segments) is True
    held = holdout.pick(visitor.bucketing) if passed else None
    if why is not None:
        _explain(why, holdout, visitor, scope, rule_id, passed, held)
    return held


def _explain(
    why: list[str], holdout: Holdout, visitor: Visitor, scope: str, rule_id: str, passed: bool, held: Choice | None
) -> None:
    user = visitor.user_id
    reasons.audience(why, holdout, visitor)
    reasons.verdict(why, "holdout", holdout, passed)
    if not passed:
        why.append(f"User {user} does not meet conditions for {scope} {holdout.key}.")
        return
    why.append(f"User {user} meets conditions for {scope} {holdout.key}.")
    reasons.bucketing(why, f'{scope} "{holdout.key}"', visitor)
    if held is not None and held.variation is not None:
        of_rule = f" for rule {rule_id}" if rule_id else ""
        why.append(f"User {user} is in variation {held.variation.key} of {scope} {holdout.key}{of_rule}.")
    elif rule_id:
        why.append(f"User {user} is not bucketed into local holdout {holdout.key} for rule {rule_id}.")
    else:
        why.append(f"User {user} is in no holdout variation.")
