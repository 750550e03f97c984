"""Decisions: a pure function of a project, a request, and facts about its user. No network, clock, log or task."""

from pipeline.decision.answers import Answer, answer, failure
from pipeline.decision.slices import LargeAnswer, is_large
from pipeline.decision.visitor import IGNORE_PROFILE, Facts, Prediction, Wanted

__all__ = [
    "IGNORE_PROFILE", "Answer", "Facts", "LargeAnswer", "Prediction", "Wanted", "answer", "failure", "is_large",
]  # fmt: skip
