"""The experiments of a flag, in its order: the first that gives a variation decides.

Within one: forced decision, local holdouts, status, whitelist, sticky profile, audience, group and traffic. In a CMAB
experiment a prediction chooses among the users in its traffic: nothing of it is kept in the profile, and where it could
not be had the decision ends with an error; it does not fall through to the next experiment.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.decision import reasons
from pipeline.decision.forced import forced_rule
from pipeline.decision.holdouts import holdouts_of_experiment
from pipeline.decision.visitor import Visitor
from pipeline.project.flags import Cmab, Experiment, Flag
from pipeline.project.outcomes import Outcome


def experiments(flag: Flag, visitor: Visitor) -> Outcome | None:
    unasked = visitor.infos is None and visitor.forced is None and visitor.profile is None
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
    if experiment.holdouts and (outcome := holdouts_of_experiment(flag, experiment, visitor)) is not None:
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
    if visitor.profile and (kept := _kept(experiment, visitor, visitor.profile)) is not None:
        return kept
    passed = experiment.audience is None or experiment.audience(visitor.attributes, visitor.segments) is True
    if why is not None:
        reasons.audience(why, experiment, visitor)
        reasons.verdict(why, "experiment", experiment, passed)
    if experiment.cmab is not None:
        return _in_cmab(experiment, experiment.cmab, visitor, passed)
    if not passed:
        if why is not None:
            why.append(f'User "{visitor.user_id}" does not meet conditions to be in experiment "{experiment.key}".')
        return None
    if why is not None:
        reasons.bucketing(why, f'experiment "{experiment.key}"', visitor)
    if experiment.group is not None and not _in_group(experiment, visitor):
        return None
    outcome = experiment.pick(visitor.bucketing)
    if outcome is not None and visitor.profile is not None:
        visitor.learn(experiment.id, outcome.variation_id)
    return outcome


def _whitelisted(experiment: Experiment, visitor: Visitor) -> Outcome | None:
    listed = experiment.whitelist.get(visitor.user_id)
    if listed is None:
        return None
    if visitor.infos is not None:
        key = listed if isinstance(listed, str) else listed.variation_key
        place = ", which is not in the datafile." if isinstance(listed, str) else f' of experiment "{experiment.key}".'
        visitor.infos.append(f'User "{visitor.user_id}" is whitelisted into variation "{key}"{place}')
    return None if isinstance(listed, str) else listed


def _kept(experiment: Experiment, visitor: Visitor, profile: Mapping[str, str]) -> Outcome | None:
    """What the experiment gave before. It beats the audience; a variation that is gone is chosen anew."""
    variation_id = profile.get(experiment.id)
    if not variation_id:
        return None
    outcome = experiment.outcomes.get(variation_id)
    if visitor.infos is not None:
        before = f'User "{visitor.user_id}" was previously bucketed into variation'
        if outcome is None:
            lost = f'with ID "{variation_id}" for experiment "{experiment.key}", but no matching variation was found.'
            visitor.infos.append(f"{before} {lost}")
        else:
            visitor.infos.append(f'{before} "{outcome.variation_key}" of experiment "{experiment.key}".')
    return outcome


def _in_group(experiment: Experiment, visitor: Visitor) -> bool:
    return experiment.group is None or experiment.group.pick(visitor.bucketing) == experiment.id


def _in_cmab(experiment: Experiment, cmab: Cmab, visitor: Visitor, passed: bool) -> Outcome | None:
    """What a CMAB experiment gives; `passed` says whether the user is in its audience."""
    why = visitor.infos
    if not passed:
        if why is not None:
            why.append(f"User {visitor.user_id} not in audience for CMAB experiment {experiment.key}")
        return None
    if why is not None:
        reasons.cmab_bucketing(why, experiment.key, visitor)
    if _in_group(experiment, visitor) and cmab.pick(visitor.bucketing):
        return _predicted(experiment, cmab, visitor)
    if why is not None:
        why.append(f"User {visitor.user_id} not in CMAB experiment {experiment.key} due to traffic allocation")
    return None


def _predicted(experiment: Experiment, cmab: Cmab, visitor: Visitor) -> Outcome | None:
    """What the prediction chose. One that was not asked for yet is wanted, and the decision an error until then."""
    known = visitor.predictions
    if known is None or experiment.id not in known:
        has = visitor.attributes
        visitor.want(experiment.id, {attribute_id: has[key] for attribute_id, key in cmab.attributes if key in has})
        return cmab.failure
    prediction = known[experiment.id]
    if prediction is None:
        return cmab.failure
    outcome = experiment.outcomes.get(prediction.variation_id)
    if visitor.infos is not None:
        visitor.infos.append(
            f"variation with ID {prediction.variation_id} not found in experiment {experiment.id}"
            if outcome is None
            else f"User bucketed into variation {outcome.variation_key} by CMAB service"
        )
    return None if outcome is None else outcome.predicted(prediction.uuid)
