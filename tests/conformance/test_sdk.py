"""Generated projects and requests decided by us and by the Python SDK: decisions and impressions must be the same.

`python -m tests.conformance COUNT SEED` compares more.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optimizely.helpers.condition import CustomAttributeConditionEvaluator
from optimizely.logger import NoOpLogger
from optimizely.optimizely_user_context import OptimizelyUserContext

from pipeline.project.semver import order
from tests.conformance.comparison import compare


@pytest.mark.parametrize("seed", range(1, 7))
def test_decides_as_the_sdk(seed: int) -> None:
    compared, found = compare(seed, 600)
    assert found == []
    assert compared >= 600


_VERSIONS = st.one_of(
    st.from_regex(r"[0-9]{1,2}(\.[0-9]{1,2}){0,3}([-+][ab0-9.+-]{0,4})?", fullmatch=True),
    st.text("0129ab.-+ ", max_size=8),
)


@given(_VERSIONS, _VERSIONS)
def test_compares_versions_as_the_sdk(user: str, target: str) -> None:
    context = OptimizelyUserContext(None, NoOpLogger(), "user", {}, identify=False)
    evaluator = CustomAttributeConditionEvaluator([], context, NoOpLogger())
    try:
        expected = evaluator.compare_user_version_with_target_version(target, user)
    except ValueError:
        # The SDK does not survive a number compared with text; a number comes first.
        expected = -1
    assert order(user, target) == expected
