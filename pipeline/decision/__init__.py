"""Decisions: a pure function of a project, a request, and facts about its user. No network, clock, log or task."""

from pipeline.decision.answers import Answer, answer, failure
from pipeline.decision.visitor import Facts, Prediction, Wanted

__all__ = ["Answer", "Facts", "Prediction", "Wanted", "answer", "failure"]
