"""What the Agent says about each step, in its words; where only the SDK knows a step, in the SDK's.

Called by the steps, and only when the request asked for reasons.
"""

from __future__ import annotations

import json

from pipeline.decision.visitor import BUCKETING_ID, Visitor
from pipeline.project.conditions import narrate
from pipeline.project.flags import Rule


def audience(why: list[str], rule: Rule, visitor: Visitor) -> None:
    """What there is to say about a rule's audiences one by one."""
    if rule.conditions is not None:
        narrate(rule.conditions, visitor.attributes, visitor.segments, why)


def verdict(why: list[str], kind: str, rule: Rule, passed: bool) -> None:
    """`kind` is `experiment` (the Agent says so of delivery rules too) or `holdout`."""
    why.append(f"Audiences for {kind} {rule.key} collectively evaluated to {str(passed).lower()}.")


def bucketing(why: list[str], subject: str, visitor: Visitor) -> None:
    """That the bucketing id cannot be used, if so. `subject` is for example `experiment "key"`."""
    value = _bad_bucketing_id(visitor)
    if value is not None:
        inner = json.dumps(f'invalid bucketing ID provided: "{value}"', ensure_ascii=False)
        why.append(f"Error computing bucketing ID for {subject}: {inner}")


def cmab_bucketing(why: list[str], key: str, visitor: Visitor) -> None:
    value = _bad_bucketing_id(visitor)
    if value is not None:
        why.append(f'Error computing bucketing ID for CMAB experiment {key}: invalid bucketing ID provided: "{value}"')


def _bad_bucketing_id(visitor: Visitor) -> str | None:
    value = visitor.attributes.get(BUCKETING_ID, "")
    if isinstance(value, str):
        return None
    if value is None:
        return "<nil>"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
