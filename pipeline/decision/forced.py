"""Forced decisions of the request: for a whole flag, or for one rule of it. First in their precedence."""

from __future__ import annotations

from pipeline.decision.visitor import Visitor
from pipeline.project.flags import DeliveryRule, Experiment, Flag
from pipeline.project.outcomes import EXPERIMENT, Origin, Outcome, write_choice

_WHOLE_FLAG = Origin(EXPERIMENT)


def forced_flag(flag: Flag, visitor: Visitor) -> Outcome | None:
    """The flag's forced decision; it beats every holdout."""
    return _forced(flag, _WHOLE_FLAG, visitor)


def forced_rule(flag: Flag, rule: Experiment | DeliveryRule, visitor: Visitor) -> Outcome | None:
    """The rule's forced decision, once the flag's evaluation has come to the rule."""
    return _forced(flag, rule.origin, visitor)


def _forced(flag: Flag, origin: Origin, visitor: Visitor) -> Outcome | None:
    variation_key = None if visitor.forced is None else visitor.forced.get((flag.key, origin.key))
    if variation_key is None:
        return None
    variation = flag.variations.get(variation_key)
    if visitor.infos is not None:
        place = f"flag ({flag.key}), rule ({origin.key})" if origin.key else f"flag ({flag.key})"
        subject = "Invalid variation" if variation is None else f"Variation ({variation_key})"
        visitor.infos.append(f"{subject} is mapped to {place} and user ({visitor.user_id}) in the forced decision map.")
    return None if variation is None else flag.outcomes.of(write_choice(origin, variation))
