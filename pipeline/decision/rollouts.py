"""The delivery rules of a flag's rollout: the first whose audience the user is in decides.

A user in a rule's audience but not in its traffic goes straight to the last rule, Everyone Else.
"""

from __future__ import annotations

from pipeline.decision import reasons
from pipeline.decision.forced import forced_rule
from pipeline.decision.holdouts import holdouts_of_delivery_rule
from pipeline.decision.visitor import Visitor
from pipeline.project.flags import DeliveryRule, Flag
from pipeline.project.outcomes import Outcome


def rollout(flag: Flag, visitor: Visitor) -> Outcome | None:
    why = visitor.infos
    if why is not None and visitor.bypassed is not None:
        key = visitor.bypassed.rule_key
        why.append(f'Holdout "{key}" has excludeTargetedDeliveries enabled, continuing to rollout evaluation.')
    if flag.rollout is None:
        if why is not None:
            why.append('Rollout with ID "" is not in the datafile.')
        return None
    for rule in flag.rollout.targeted:
        outcome = _before_audience(flag, rule, visitor)
        if outcome is not None:
            return outcome
        if _passes(rule, visitor):
            outcome = rule.pick(visitor.bucketing)
            if outcome is not None:
                return outcome
            break
        if why is not None:
            why.append(f'User "{visitor.user_id}" does not meet conditions for targeting rule {rule.number}.')
    return None if flag.rollout.everyone_else is None else _last(flag, flag.rollout.everyone_else, visitor)


def _last(flag: Flag, rule: DeliveryRule, visitor: Visitor) -> Outcome | None:
    outcome = _before_audience(flag, rule, visitor)
    if outcome is not None or not _passes(rule, visitor):
        return outcome
    if visitor.infos is not None:
        visitor.infos.append(f'User "{visitor.user_id}" meets conditions for targeting rule "Everyone Else".')
    return rule.pick(visitor.bucketing)


def _before_audience(flag: Flag, rule: DeliveryRule, visitor: Visitor) -> Outcome | None:
    outcome = forced_rule(flag, rule, visitor) if visitor.forced is not None else None
    return holdouts_of_delivery_rule(flag, rule, visitor) if outcome is None and rule.holdouts else outcome


def _passes(rule: DeliveryRule, visitor: Visitor) -> bool:
    passed = rule.audience is None or rule.audience(visitor.attributes, visitor.segments) is True
    why = visitor.infos
    if why is not None:
        reasons.audience(why, rule, visitor)
        if passed:
            # The Agent evaluates a passing rule once more, and says it all again.
            reasons.audience(why, rule, visitor)
            reasons.verdict(why, "experiment", rule, passed)
            reasons.bucketing(why, f'experiment "{rule.key}"', visitor)
    return passed
