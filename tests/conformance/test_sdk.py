"""Generated projects and requests decided by us and by the Python SDK: decisions and impressions must be the same.

`python -m tests.conformance COUNT SEED` compares more.
"""

from __future__ import annotations

import json
import random
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
from tests.conformance.comparison import compare
from tests.conformance.generator import Generator, user_ids
from tests.decision.deciding import settled


@pytest.mark.parametrize("seed", range(1, 7))
def test_decides_as_the_sdk(seed: int) -> None:
    compared, found = compare(seed, 500)
    assert found == []
    assert compared >= 500


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


def test_answers_keep_their_contract() -> None:
    generator = Generator(7)
    users = user_ids(random.Random(7), 20)
    for _ in range(10):
        document = generator.project(users)
        project = compile_datafile(json.dumps(document).encode())
        for _ in range(10):
            case = generator.case(document, users)
            result = json.loads(settled(project, case.request, Facts(case.segments)).value)
            assert DECIDE_RESULT.is_valid(result), DECIDE_RESULT.first_fault(result)
