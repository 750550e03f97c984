"""From drafts to compiled flags: names resolved, conditions closed, allocations cut, outcomes written.

An experiment or rollout that is not in the datafile is left out, as the Agent does; the Python SDK would refuse the
file. A whitelist names variations of its own experiment: the SDK looks them up by experiment key, and where two
experiments share one it finds the other's. Called by `compile_datafile` only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from pipeline.project.allocation import Pick, compile_allocation, nobody
from pipeline.project.conditions import Audience, Node, compile_tree, read_audiences
from pipeline.project.drafts import RUNNING, Draft, read_draft, read_ranges, read_variables
from pipeline.project.flags import Cmab, DeliveryRule, Experiment, Flag, Group, Holdout, Rollout
from pipeline.project.matchers import Test
from pipeline.project.outcomes import EXPERIMENT, HOLDOUT, ROLLOUT, Origin, Outcome, Outcomes, Variation, write_choice
from pipeline.project.reader import Entry

_WHOLE_TRAFFIC = 10_000

T = TypeVar("T")


class Compiler:
    """What the flags of a datafile refer to. Add everything, groups last, then take the flags."""

    def __init__(
        self, audiences: dict[str, Audience], attribute_keys: Mapping[str, str], *, send_flag_decisions: bool
    ) -> None:
        """`attribute_keys`: by id."""
        self._audiences = audiences
        self._attribute_keys = attribute_keys
        self._send_flag_decisions = send_flag_decisions
        self._drafts: dict[str, Draft] = {}
        self._rollouts: dict[str, list[Draft]] = {}
        self._everyone_else: dict[str, Variation | None] = {}
        self._global_holdouts: tuple[Holdout, ...] = ()
        self._local_holdouts: defaultdict[str, list[Draft]] = defaultdict(list)
        self._shared_holdouts: dict[int, Holdout] = {}

    def add_experiments(self, entries: Iterable[Entry]) -> None:
        self._drafts.update((draft.id, draft) for draft in map(read_draft, entries))

    def add_rollouts(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            listed = [read_draft(rule) for rule in entry.entries("experiments")]
            rules = {rule.id: rule for rule in listed}
            self._rollouts[entry.required("id")] = list(rules.values())
            # Of the rule that is listed last, also where one of its id stands before it.
            self._everyone_else[entry.required("id")] = next(iter(listed[-1].listed), None) if listed else None
            self._drafts.update(rules)

    def add_groups(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            group_id = entry.required("id")
            ranges = [(end, experiment_id or None) for end, experiment_id in read_ranges(entry)]
            group = Group(group_id, compile_allocation(group_id, ranges))
            # Any other policy lets the experiments overlap: no group step.
            exclusive = entry.text("policy") == "random"
            for draft in map(read_draft, entry.entries("experiments")):
                draft.group = group if exclusive else None
                self._drafts[draft.id] = draft

    def add_holdouts(self, everywhere: Iterable[Entry], local: Iterable[Entry]) -> None:
        """The section alone says whether a holdout is global; a local one that names no rules holds out nobody."""
        running = [draft for draft in map(read_draft, everywhere) if draft.status == RUNNING]
        self._global_holdouts = tuple(map(self._holdout, running))
        for draft in map(read_draft, local):
            for rule_id in draft.included_rules if draft.status == RUNNING else ():
                self._local_holdouts[rule_id].append(draft)

    def flags(self, entries: Sequence[Entry]) -> dict[str, Flag]:
        by_key = {entry.required("key"): entry for entry in entries}
        # For all flags before any is compiled: a feature rollout that two of them share is one experiment.
        variations = {key: self._variations(entry) for key, entry in by_key.items()}
        return {key: self._flag(entry, variations[key]) for key, entry in by_key.items()}

    def _experiments_of(self, entry: Entry) -> list[Draft]:
        return [self._drafts[rule] for rule in entry.texts("experimentIds") if rule in self._drafts]

    def _variations(self, entry: Entry) -> dict[str, Variation]:
        """What a forced decision of the flag may name, by key, the first of each id and key."""
        experiments = self._experiments_of(entry)
        rules = [self._drafts[rule.id] for rule in self._rollouts.get(entry.text("rolloutId"), ())]
        everyone_else = self._everyone_else.get(entry.text("rolloutId"))
        if everyone_else is not None:
            for experiment in experiments:
                if experiment.kind == "fr":
                    experiment.variations[everyone_else.id] = everyone_else
                    experiment.ranges.append((_WHOLE_TRAFFIC, everyone_else.id))
        by_id: dict[str, Variation] = {}
        for draft in (*experiments, *rules):
            for variation in draft.variations.values():
                by_id.setdefault(variation.id, variation)
        by_key: dict[str, Variation] = {}
        for variation in by_id.values():
            by_key.setdefault(variation.key, variation)
        return by_key

    def _flag(self, entry: Entry, variations: dict[str, Variation]) -> Flag:
        key = entry.required("key")
        outcomes = Outcomes(key, read_variables(entry), send_flag_decisions=self._send_flag_decisions)
        rules = self._rollouts.get(entry.text("rolloutId"))
        return Flag(
            id=entry.text("id"),
            key=key,
            holdouts=self._global_holdouts,
            experiments=tuple(self._experiment(draft, outcomes) for draft in self._experiments_of(entry)),
            rollout=None if rules is None else self._rollout(rules, outcomes),
            variations=MappingProxyType(variations),
            nothing=outcomes.nothing(),
            outcomes=outcomes,
        )

    def _holdout(self, draft: Draft) -> Holdout:
        audience, conditions = self._compiled(draft)
        # A holdout has no layer: its campaign is the holdout itself.
        origin = Origin(HOLDOUT, draft.id, draft.key)
        # All that are listed: what holdouts give is found by id, also where a key stands twice.
        held = {variation.id: write_choice(origin, variation) for variation in draft.listed}
        return Holdout(
            id=draft.id, key=draft.key, audience=audience, conditions=conditions, pick=_pick(draft, held),
            excludes_targeted_deliveries=draft.excludes_targeted_deliveries,
        )  # fmt: skip

    def _local(self, draft: Draft) -> tuple[Holdout, ...]:
        return tuple(map(self._shared, self._local_holdouts.get(draft.id, ())))

    def _shared(self, draft: Draft) -> Holdout:
        """For all rules that it is for; not before there is one."""
        if id(draft) not in self._shared_holdouts:
            self._shared_holdouts[id(draft)] = self._holdout(draft)
        return self._shared_holdouts[id(draft)]

    def _rollout(self, own: Sequence[Draft], outcomes: Outcomes) -> Rollout:
        rules = [self._delivery_rule(rule, number, outcomes) for number, rule in enumerate(own, 1)]
        return Rollout(tuple(rules[:-1]), rules[-1] if rules else None)

    def _delivery_rule(self, own: Draft, number: int, outcomes: Outcomes) -> DeliveryRule:
        # Of rules of one id the one that is read last says who gets what, as in the SDK; each has its own name.
        draft = self._drafts[own.id]
        audience, conditions = self._compiled(draft)
        origin = Origin(ROLLOUT, own.id, own.key, own.layer_id)
        return DeliveryRule(
            id=own.id, key=own.key, audience=audience, conditions=conditions,
            pick=_pick(draft, _written(origin, draft, outcomes)),
            origin=origin, number=number, holdouts=self._local(draft),
        )  # fmt: skip

    def _experiment(self, draft: Draft, outcomes: Outcomes) -> Experiment:
        audience, conditions = self._compiled(draft)
        origin = Origin(EXPERIMENT, draft.id, draft.key, draft.layer_id)
        written = _written(origin, draft, outcomes)
        # The Agent does not look at the status, the SDK insists on it: where nothing is said of it, it hinders nobody.
        running = draft.status in (RUNNING, None)
        holdouts, whitelist, cmab = (
            self._local(draft),
            _whitelist(draft, written),
            self._cmab(draft, outcomes),
        )
        return Experiment(
            id=draft.id, key=draft.key, audience=audience, conditions=conditions, pick=_pick(draft, written),
            origin=origin, running=running, targeted_delivery=draft.kind == "td", holdouts=holdouts,
            whitelist=MappingProxyType(whitelist), group=draft.group, cmab=cmab,
            outcomes=MappingProxyType(written),
            plain=running and not holdouts and not whitelist and draft.group is None and cmab is None,
        )  # fmt: skip

    def _cmab(self, draft: Draft, outcomes: Outcomes) -> Cmab | None:
        if draft.cmab_traffic is None:
            return None
        failure = outcomes.failure(f"Failed to fetch CMAB data for experiment {draft.key}.")
        keys = {attribute_id: self._attribute_keys.get(attribute_id) for attribute_id in draft.cmab_attributes}
        known = tuple((attribute_id, key) for attribute_id, key in keys.items() if key is not None)
        return Cmab(compile_allocation(draft.id, [(draft.cmab_traffic, True)]), failure, known)

    def _compiled(self, draft: Draft) -> tuple[Test | None, Node | None]:
        if draft.compiled is None:
            tree = read_audiences(draft.conditions, self._audiences, draft.where)
            draft.compiled = (None if tree is None else compile_tree(tree), tree)
        return draft.compiled


def _written(origin: Origin, draft: Draft, outcomes: Outcomes) -> dict[str, Outcome]:
    return {variation.id: outcomes.of(write_choice(origin, variation)) for variation in draft.variations.values()}


def _pick(draft: Draft, given: Mapping[str, T]) -> Pick[T]:
    if not draft.key.strip():
        return nobody  # the SDK buckets nobody into a rule without a key
    # An empty id is nobody's, also where a variation has none.
    return compile_allocation(
        draft.id, [(end, given.get(entity_id) if entity_id else None) for end, entity_id in draft.ranges]
    )


def _whitelist(draft: Draft, written: dict[str, Outcome]) -> dict[str, Outcome | str]:
    by_key: dict[str, Outcome] = {outcome.variation_key: outcome for outcome in written.values()}
    return {user_id: by_key.get(key, key) for user_id, key in draft.whitelist.items()}
