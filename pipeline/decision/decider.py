"""The order in which a flag's decision is sought. A pure function of flag and visitor.

Called for each flag of a request by `answer`.
"""

from __future__ import annotations

from pipeline.decision.experiments import experiments
from pipeline.decision.forced import forced_flag
from pipeline.decision.holdouts import global_holdouts
from pipeline.decision.rollouts import rollout
from pipeline.decision.visitor import Visitor
from pipeline.project.flags import Flag
from pipeline.project.outcomes import Outcome


def decide(flag: Flag, visitor: Visitor) -> Outcome:
    """The first outcome in the order of precedence, else that of a flag nothing has decided."""
    outcome = forced_flag(flag, visitor) if visitor.forced is not None else None
    if outcome is None and flag.holdouts:
        outcome = global_holdouts(flag, visitor)
    if outcome is None:
        outcome = experiments(flag, visitor)
    if outcome is None:
        outcome = rollout(flag, visitor)
    return flag.nothing if outcome is None else outcome
