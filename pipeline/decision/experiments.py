"""The experiments of a flag, in its order: the first that gives a variation decides.

Within one: forced decision, local holdouts, status, whitelist, audience, group and traffic. A CMAB experiment whose
prediction is not at hand ends the decision with an error; it does not fall through to the next.
"""

from __future__ import annotations

from pipeline.decision import reasons
from pipeline.decision.forced import forced_rule
from pipeline.decision.holdouts import holdouts_of_experiment
from pipeline.decision.visitor import Visitor
from pipeline.project.flags import Experiment, Flag
from pipeline.project.outcomes import Outcome


def experiments(flag: Flag, visitor: Visitor) -> Outcome | None:
    unasked = visitor.infos is None and visitor.forced is None
    for experiment in flag.experiments:
        if visitor.bypassed is not None and not experiment.targeted_delivery:
            continue
        if experiment.plain and unasked:
            # Most there are: what follows comes down to this.
            passed = experiment.audience is None or experiment.audience(visitor.attributes, visitor.segments) is True
            outcome = experiment.pick(visitor.bucketing) if passed else None
        else:
            outcome = _first(flag, experiment, visitor)
        if outcome is not None:
            return outcome
    return None


def _first(flag: Flag, experiment: Experiment, visitor: Visitor) -> Outcome | None:
    if visitor.forced is not None and (outcome := forced_rule(flag, experiment, visitor)) is not None:
        return outcome
    if experiment.holdouts and (outcome := holdouts_of_experiment(experiment, visitor)) is not None:
        return outcome
    return _variation(experiment, visitor)


def _variation(experiment: Experiment, visitor: Visitor) -> Outcome | None:
    why = visitor.infos
    if not experiment.running:
        if why is not None:
            why.append(f'Experiment "{experiment.key}" is not running.')
        return None
    if experiment.whitelist and (listed := _whitelisted(experiment, visitor)) is not None:
        return listed
    passed = experiment.audience is None or experiment.audience(visitor.attributes, visitor.segments) is True
    if why is not None:
        reasons.audience(why, experiment, visitor)
        reasons.verdict(why, "experiment", experiment, passed)
    if experiment.cmab is not None:
        return _predicted(experiment, visitor, passed)
    if not passed:
        if why is not None:
            why.append(f'User "{visitor.user_id}" does not meet conditions to be in experiment "{experiment.key}".')
        return None
    if why is not None:
        reasons.bucketing(why, f'experiment "{experiment.key}"', visitor)
    if experiment.group is not None and not _in_group(experiment, visitor):
        return None
    return experiment.pick(visitor.bucketing)


def _whitelisted(experiment: Experiment, visitor: Visitor) -> Outcome | None:
    listed = experiment.whitelist.get(visitor.user_id)
    if listed is None:
        return None
    if visitor.infos is not None:
        key = listed if isinstance(listed, str) else listed.variation_key
        place = ", which is not in the datafile." if isinstance(listed, str) else f' of experiment "{experiment.key}".'
        visitor.infos.append(f'User "{visitor.user_id}" is whitelisted into variation "{key}"{place}')
    return None if isinstance(listed, str) else listed


def _in_group(experiment: Experiment, visitor: Visitor) -> bool:
    return experiment.group is None or experiment.group.pick(visitor.bucketing) == experiment.id


def _predicted(experiment: Experiment, visitor: Visitor, passed: bool) -> Outcome | None:
    """What a CMAB experiment gives; `passed` says whether the user is in its audience."""
    why, cmab = visitor.infos, experiment.cmab
    assert cmab is not None
    if not passed:
        if why is not None:
            why.append(f"User {visitor.user_id} not in audience for CMAB experiment {experiment.key}")
        return None
    if why is not None:
        reasons.cmab_bucketing(why, experiment.key, visitor)
    if _in_group(experiment, visitor) and cmab.pick(visitor.bucketing):
        return cmab.failure
    if why is not None:
        why.append(f"User {visitor.user_id} not in CMAB experiment {experiment.key} due to traffic allocation")
    return None
