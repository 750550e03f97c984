"""Every field of a datafile that the SDK reads is generated. What it reads is taken from its own source."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import optimizely
import pytest

from tests.conformance.running import cases

_SDK = Path(optimizely.__file__).parent
# Where datafile objects are read. The rest of the SDK sees entities, or is another way in (OptimizelyConfig, ODP).
_READERS = (
    "project_config.py", "bucketer.py", "decision_service.py", "optimizely.py", "helpers/condition.py",
    "helpers/audience.py", "helpers/experiment.py", "cmab/cmab_service.py", "event/event_factory.py",
    "event/user_event_factory.py",
)  # fmt: skip
_DATAFILES = 60

_EXPERIMENTS = ("experiments", "groups.experiments", "rollouts.experiments")
_HOLDOUTS = ("holdouts", "localHoldouts")
_VARIATIONS = tuple(f"{place}.variations" for place in (*_EXPERIMENTS, *_HOLDOUTS))
PLACES: dict[str, tuple[str, ...]] = {
    "BaseEntity": (),
    "Attribute": ("attributes",),
    "Audience": ("audiences", "typedAudiences"),
    "Event": ("events",),
    "Experiment": _EXPERIMENTS,
    "FeatureFlag": ("featureFlags",),
    "Group": ("groups",),
    "Holdout": _HOLDOUTS,
    "Integration": ("integrations",),
    "Layer": ("rollouts",),
    "Variable": ("featureFlags.variables",),
    "Variation": _VARIATIONS,
    "VariableUsage": tuple(f"{place}.variables" for place in _VARIATIONS),
}
"""Classes of the SDK's `entities`, and where in a datafile their members stand."""

OWN = "a result of the SDK's own"
ELSEWHERE: dict[str, str] = {
    **dict.fromkeys(("decision", "error", "holdout_decision", "reasons", "result", "variation", "cmab_uuid"), OWN),
    "variation_id": f"{OWN}, and a member of what the prediction service answers",
    "attributes_hash": "an entry of the SDK's cache of predictions",
    "odp": "the key of an integration, not a member",
    "US": "a region, looked up among the endpoints",
    "stop": "a method of event processors",
    " ": "looked for in a version",
}
"""Names that the readers look up in something else than a datafile, each with what it is."""


def _tree(name: str) -> ast.Module:
    return ast.parse((_SDK / name).read_text("utf-8"))


def _looked_up(node: ast.AST) -> Iterator[ast.expr]:
    """The keys of `x.get(k)`, `x.pop(k)`, `getattr(x, k)`, `_generate_key_map(x, k, ...)`, `x[k]`, `k in x`."""
    match node:
        case ast.Call(func=ast.Attribute(attr="get" | "pop"), args=[key, *_]):
            yield key
        case ast.Call(func=ast.Name(id="getattr"), args=[_, key, *_]):
            yield key
        case ast.Call(func=ast.Attribute(attr="_generate_key_map"), args=[_, key, *_]):
            yield key
        case ast.Subscript(slice=key, ctx=ast.Load()):
            yield key
        case ast.Compare(left=key, ops=[ast.In() | ast.NotIn()]):
            yield key


@cache
def names_looked_up(reader: str) -> frozenset[str]:
    return frozenset(
        key.value
        for node in ast.walk(_tree(reader))
        for key in _looked_up(node)
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    )


def sections_read() -> set[str]:
    """`config.get(...)` of the SDK's ProjectConfig."""
    return {
        key.value
        for node in ast.walk(_tree("project_config.py"))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
        if node.func.value.id == "config"
        for key in node.args[:1]
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    }


def parameters() -> Iterator[tuple[str, str]]:
    """Class and parameter of the constructors of entities; an object of the datafile is handed to them whole."""
    for node in ast.walk(_tree("entities.py")):
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    every = (*method.args.posonlyargs, *method.args.args, *method.args.kwonlyargs)
                    yield from ((node.name, argument.arg) for argument in every if argument.arg != "self")


@cache
def generated() -> dict[str, set[str]]:
    """Names of members by the place of their object, in some generated datafiles."""
    seen: dict[str, set[str]] = defaultdict(set)

    def walk(value: Any, place: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                seen[place].add(name)
                walk(inner, f"{place}.{name}" if place else name)
        elif isinstance(value, list):
            for inner in value:
                walk(inner, place)

    for number in range(-(-_DATAFILES // 8)):
        for document, _ in cases(f"fields {number}"):
            walk(document, "")
    return seen


def test_every_section_is_generated() -> None:
    read = sections_read()
    assert {"featureFlags", "localHoldouts", "sendFlagDecisions"} <= read, "the test does not see what the SDK reads"
    assert read - generated()[""] == set()


def test_every_member_of_an_entity_is_generated() -> None:
    found = list(parameters())
    assert {("Holdout", "excludeTargetedDeliveries"), ("VariableUsage", "value")} <= set(found)
    missing = [
        f"{name}.{parameter}"
        for name, parameter in found
        if not any(parameter in generated()[place] for place in PLACES[name])
    ]
    assert missing == []


def test_every_entity_has_its_place() -> None:
    classes = {node.name for node in ast.walk(_tree("entities.py")) if isinstance(node, ast.ClassDef)}
    # Constants, not entities.
    assert classes - {"Type", "Status"} == set(PLACES)


@pytest.mark.parametrize("reader", _READERS)
def test_every_name_looked_up_is_generated(reader: str) -> None:
    everywhere = set().union(*generated().values())
    assert names_looked_up(reader) - everywhere - set(ELSEWHERE) == set()


def test_what_is_explained_is_looked_up() -> None:
    """The list of explanations holds nothing that the SDK no longer does, and nothing that is generated."""
    looked_up = frozenset().union(*map(names_looked_up, _READERS))
    assert {"endOfRange", "subType", "trafficAllocation", "attributeIds", "match"} <= looked_up
    assert set(ELSEWHERE) - looked_up == set()


def test_a_new_field_would_be_noticed() -> None:
    source = "rule.get('newField'); rule['other']; 'third' in rule; getattr(rule, 'fourth', None)"
    keys = [key for node in ast.walk(ast.parse(source)) for key in _looked_up(node)]
    named = {key.value for key in keys if isinstance(key, ast.Constant)}
    assert named == {"newField", "other", "third", "fourth"}
    assert named.isdisjoint(set().union(*generated().values()))
