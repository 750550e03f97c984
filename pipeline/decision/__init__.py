"""Decisions: a pure function of a project, a request, and facts about its user. No network, clock, log or task."""

from pipeline.decision.answers import answer, failure
from pipeline.decision.visitor import Facts

__all__ = ["Facts", "answer", "failure"]
