"""Generated projects and requests decided by us and by the Python SDK: decisions, impressions, what is learned, what
predictions are asked for.

`make conformance N=1000000 SEED=7` compares more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optimizely.helpers.condition import CustomAttributeConditionEvaluator
from optimizely.logger import NoOpLogger
from optimizely.optimizely_user_context import OptimizelyUserContext

from pipeline.decision import Facts
from pipeline.messages.contracts import DECIDE_RESULT
from pipeline.project import compile_datafile
from pipeline.project.semver import order
from tests.conformance.comparison import request_of
from tests.conformance.observed import Tally
from tests.conformance.running import Part, cases, run
from tests.decision.deciding import settled

SEEDS = range(1, 6)
DECISIONS_OF_A_SEED = 10_000


def _silent(_tally: Tally) -> None:
    pass


@cache
def compared(seed: int) -> Part:
    return run(seed, DECISIONS_OF_A_SEED, 1, _silent)


@pytest.mark.parametrize("seed", SEEDS)
def test_decides_as_the_sdk(seed: int) -> None:
    found = compared(seed)
    assert found.failure is None, json.dumps(found.failure.as_json())
    assert found.tally.decisions >= DECISIONS_OF_A_SEED


def test_everything_is_met_often_enough() -> None:
    """Every source of a decision, and every result of every match type, in what the tests compare."""
    whole = Tally()
    for seed in SEEDS:
        whole.add(compared(seed).tally)
    assert whole.too_rare() == []
    assert whole.decisions >= 50_000
    assert 0 < whole.refused < whole.datafiles / 20
    for fact in ("a profile, and nothing learned", "a profile, and something learned", "predictions wanted once"):
        assert whole.facts[fact] > whole.requests / 50, fact
    for fact in ("one key sent twice, answered", "one key sent twice, left out"):
        assert whole.facts[fact] > 5, fact
    assert whole.facts["predictions wanted again"] > whole.requests / 500


def test_rare_things_are_told() -> None:
    tally = Tally(decisions=1000)
    tally.sources["nothing"] = 996
    tally.sources["whitelist"] = 4
    tally.leaves["gt", True] = 99
    tally.leaves["gt", None] = 1
    rare = tally.too_rare()
    assert "whitelist: 4 of 1000 decisions" in rare
    assert "sticky profile: 0 of 1000 decisions" in rare
    assert "gt false: 0 of 100 leaves" in rare
    assert not [one for one in rare if one.startswith(("nothing", "gt true", "gt unknown"))]


_ANYONE: Any = OptimizelyUserContext(cast(Any, None), NoOpLogger(), "user", identify=False)
_VERSIONS = st.one_of(
    st.from_regex(r"[0-9]{1,2}(\.[0-9]{1,2}){0,3}([-+][ab0-9.+-]{0,4})?", fullmatch=True),
    st.text("0129ab.-+ ", max_size=8),
)


@given(_VERSIONS, _VERSIONS)
def test_compares_versions_as_the_sdk(user: str, target: str) -> None:
    evaluator = CustomAttributeConditionEvaluator([], _ANYONE, NoOpLogger())
    try:
        expected = evaluator.compare_user_version_with_target_version(target, user)
    except ValueError:
        # The SDK does not survive a number compared with text; a number comes first.
        expected = -1
    assert order(user, target) == expected


def _answers() -> Iterator[tuple[bytes, bytes]]:
    """With the predictions asked for and without, a few hundred results."""
    for document, requests in cases("contract"):
        project = compile_datafile(json.dumps(document).encode())
        for _ in range(20):
            case = requests.case()
            facts = Facts(None if case.segments is None else frozenset(case.segments), case.profile)
            request = request_of(case)
            yield settled(project, request, facts).value, settled(project, request, facts).value


def test_answers_keep_their_contract_and_are_the_same_again() -> None:
    for once, again in _answers():
        result = json.loads(once)
        assert DECIDE_RESULT.is_valid(result), DECIDE_RESULT.first_fault(result)
        assert once == again
