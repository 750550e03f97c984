"""One request's user, as the steps of a decision see it, and what has been fetched about them beforehand.

`Facts` is the seam to the network: everything a decision needs from elsewhere is fetched first and handed in, so that
the same facts always give the same decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pipeline.messages.decide import ForcedDecision
from pipeline.project.outcomes import Outcome

BUCKETING_ID = "$opt_bucketing_id"


class Facts(msgspec.Struct, frozen=True, gc=False):
    """What was fetched about the user. `segments` None: never fetched; empty: known to be in none."""

    segments: frozenset[str] | None = None


class Visitor(msgspec.Struct, gc=False):
    """The user under decision. `infos` and `bypassed` belong to the flag in hand; all else is the request's.

    `infos` collects reasons, None where nobody asked for them. `bypassed` is the outcome of a holdout the user is in
    that lets targeted deliveries through: it still owes its impression.
    """

    user_id: str
    attributes: Mapping[str, Any]
    segments: frozenset[str] | None
    bucketing: bytes
    """What is hashed for the user."""
    forced: Mapping[tuple[str, str], str] | None
    """Flag and rule to variation, by key; None where there are none."""
    infos: list[str] | None = None
    bypassed: Outcome | None = None


def visitor_of(
    user_id: str,
    attributes: Mapping[str, Any],
    segments: frozenset[str] | None,
    forced: Sequence[ForcedDecision],
) -> Visitor:
    bucketing_id = attributes.get(BUCKETING_ID)
    return Visitor(
        user_id,
        attributes,
        segments,
        (bucketing_id if isinstance(bucketing_id, str) else user_id).encode(),
        # Of two for one place the later counts.
        {(item.flag_key, item.rule_key): item.variation_key for item in forced} if forced else None,
    )
