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

PRECEDENCE = (forced_flag, global_holdouts, experiments, rollout)


def decide(flag: Flag, visitor: Visitor) -> Outcome:
    """The first outcome in the order of precedence, else that of a flag nothing has decided."""
    for step in PRECEDENCE:
        outcome = step(flag, visitor)
        if outcome is not None:
            return outcome
    return flag.nothing
