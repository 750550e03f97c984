"""Deciding as every caller does: what a decision turns out to depend on is handed in, until it can be made."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from pipeline.decision import Answer, Facts, Prediction, answer
from pipeline.messages.decide import DecideRequest
from pipeline.project import ProjectConfig

_NONE: Mapping[str, Prediction] = {}


def settled(
    project: ProjectConfig, request: DecideRequest, facts: Facts, predictions: Mapping[str, Prediction] = _NONE,
    *, source: str = "t-0-1", timestamp: int = 1,
) -> Answer:  # fmt: skip
    """The answer when each prediction asked for is one of `predictions` (by rule id), or cannot be had."""
    found = answer(project, request, facts, source=source, timestamp=timestamp)
    while found.wanted:
        facts = replace(
            facts, predictions={**(facts.predictions or {}), **{one: predictions.get(one) for one in found.wanted}}
        )
        found = answer(project, request, facts, source=source, timestamp=timestamp)
    return found
