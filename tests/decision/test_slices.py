"""A large answer made in steps is the same document, and one that is too large is never put together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.decision import Answer, Facts, LargeAnswer, Prediction, answer, is_large
from pipeline.errors import Rejected
from pipeline.messages.decide import DECIDE_OPTIONS, DecideRequest
from pipeline.project import ProjectConfig
from tests.decision.projects import NO_TRAFFIC, flag, project, request, rule, variation

FLAGS = 50
ON, OFF = variation("101", "on"), variation("102", "off", enabled=False)
EXPERIMENTS = [rule(str(number), f"e{number}", OFF if number % 3 else ON) for number in range(FLAGS)]
BANDIT = rule("900", "bandit", ON, cmab={"attributeIds": [], "trafficAllocation": 10000}, **NO_TRAFFIC)
PROJECT = project(
    experiments=[*EXPERIMENTS, BANDIT], attributes=[{"id": "41", "key": "country"}],
    featureFlags=[flag("bandit", BANDIT), *(flag(f"f{number}", one) for number, one in enumerate(EXPERIMENTS))],
)  # fmt: skip
KEYS = [*PROJECT.flags, *(f"unknown {number}" for number in range(20))]
WHERE: Any = {"source": "t-0-1", "timestamp": 1}
PREDICTED = {"900": Prediction("101", "uuid-1")}


def in_steps(asked: DecideRequest, facts: Facts, *, max_bytes: int = 10**9) -> tuple[Answer, int]:
    large = LargeAnswer(PROJECT, asked, facts, **WHERE, max_bytes=max_bytes)
    steps = 1
    while (found := large.step()) is None:
        steps += 1
    return found, steps


@given(
    st.lists(st.sampled_from(KEYS), unique=True), st.sets(st.sampled_from(sorted(DECIDE_OPTIONS))),
    st.sampled_from([None, {}, {"1": "102", "900": "gone"}]), st.sampled_from([None, PREDICTED]),
)  # fmt: skip
def test_the_answer_is_the_one_made_at_once(
    keys: list[str], options: set[str], profile: dict[str, str] | None, predictions: dict[str, Prediction] | None
) -> None:
    asked = request(*keys, options=tuple(options), attributes={"country": "SI", "odd": {"a": [None]}})
    facts = Facts(None, profile, dict(predictions or {}))
    found, steps = in_steps(asked, facts)
    assert found == answer(PROJECT, asked, facts, **WHERE)
    # A step decides a bounded number of flags, the last one none.
    assert steps == -(-(len(keys) or len(PROJECT.flags)) // 16) + 1


def test_an_answer_is_refused_as_soon_as_it_is_too_large_and_not_one_byte_earlier() -> None:
    asked = request(*KEYS[1:], attributes={"text": "x" * 1000})
    whole, steps = in_steps(asked, Facts())
    assert steps == 6
    assert in_steps(asked, Facts(), max_bytes=len(whole.value))[0] == whole
    large = LargeAnswer(PROJECT, asked, Facts(), **WHERE, max_bytes=30_000)
    assert large.step() is None
    with pytest.raises(Rejected, match="its result has more than 30000 bytes") as refused:
        large.step()
    assert refused.value.reason == "result_too_large"


def test_impressions_count_also_of_flags_that_are_left_out() -> None:
    asked = request(options=("ENABLED_FLAGS_ONLY",))
    whole, _ = in_steps(asked, Facts(predictions={"900": None}))
    with pytest.raises(Rejected):
        in_steps(asked, Facts(predictions={"900": None}), max_bytes=len(whole.value) // 2)


def test_what_depends_on_a_prediction_is_not_called_too_large_before_it_is_known() -> None:
    found, steps = in_steps(request(attributes={"text": "x" * 1000}), Facts(), max_bytes=1)
    assert (found.value, list(found.wanted or ()), steps) == (b"", ["900"], 5)


def _sized(flags: int) -> ProjectConfig:
    return project(featureFlags=[flag(f"f{number}") for number in range(flags)])


@pytest.mark.parametrize(
    ("keys", "flags", "size", "large"),
    [
        (1, 2000, 10**6, False), (250, 1, 4000, False), (251, 1, 100, True), (0, 250, 4000, False), (0, 251, 100, True),
        (2, 1, 600_000, True), (0, 100, 11_000, True), (100, 2000, 10_000, False),
    ],
)  # fmt: skip
def test_large_is_many_flags_or_much_that_each_repeats(keys: int, flags: int, size: int, large: bool) -> None:
    assert is_large(_sized(flags), request(*(f"k{number}" for number in range(keys))), size) is large
