"""What is remembered from one request to the next: as the SDK's own service remembers it. Real socket."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from optimizely.cmab.cmab_client import DefaultCmabClient
from optimizely.cmab.cmab_service import CmabCacheValue, DefaultCmabService
from optimizely.decision.optimizely_decide_option import OptimizelyDecideOption
from optimizely.odp.lru_cache import LRUCache
from optimizely.optimizely_user_context import OptimizelyUserContext
from optimizely.project_config import ProjectConfig

from pipeline.cmab.predictions import IGNORE, INVALIDATE, RESET
from pipeline.sandbox.processes import StandIns
from tests.cmab.test_predictions import opened

RULES, USERS = ("7001", "7002"), ("ann", "bob", "žiga")
VALUES = ("gold", "", True, 1, 1.0, 2**53)
SIZE = 5


class Sdk:
    """The SDK's service over a client that answers at once. Tells in which step an answer was made."""

    def __init__(self) -> None:
        cache: LRUCache[str, CmabCacheValue] = LRUCache(SIZE, 1000)
        self._service = DefaultCmabService(cache, cast(DefaultCmabClient, self))
        experiment = SimpleNamespace(cmab={"attributeIds": ["11"]})
        self._project = SimpleNamespace(
            experiment_id_map=dict.fromkeys(RULES, experiment),
            attribute_id_map={"11": SimpleNamespace(id="11", key="tier")},
        )
        self._step = 0

    def fetch_decision(self, *_: Any) -> str:
        return str(self._step)

    def ask(self, step: int, user: str, rule: str, attributes: dict[str, Any], options: frozenset[str]) -> int:
        self._step = step
        visitor = SimpleNamespace(user_id=user, get_user_attributes=lambda: attributes)
        decision, _ = self._service.get_decision(
            cast(ProjectConfig, self._project), cast(OptimizelyUserContext, visitor), rule, list(options)
        )
        return int(decision["variation_id"])


def test_the_options_have_the_sdks_names() -> None:
    known = OptimizelyDecideOption
    assert (IGNORE, RESET, INVALIDATE) == (
        known.IGNORE_CMAB_CACHE, known.RESET_CMAB_CACHE, known.INVALIDATE_USER_CMAB_CACHE,
    )  # fmt: skip


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(3))
async def test_each_answer_is_as_old_as_the_sdks(stand_ins: StandIns, seed: int) -> None:
    chance, sdk = random.Random(seed), Sdk()
    made_in: dict[str, int] = {}
    remembered = 0
    async with opened(stand_ins, cache_size=SIZE) as made:
        for step in range(400):
            user, rule = chance.choice(USERS), chance.choice(RULES)
            # Seldom another value than the usual one, so that hits are common.
            value = chance.choice(VALUES) if chance.random() < 0.15 else VALUES[0]
            options = frozenset(chance.sample((IGNORE, RESET, INVALIDATE), 1 if chance.random() < 0.1 else 0))
            if chance.random() < 0.03:
                options = frozenset(chance.sample((IGNORE, RESET, INVALIDATE), 2))
            found = (await made.ask(user, rule, options=options, **{"11": value}))[rule]
            ours = made_in.setdefault(found.uuid, step)
            assert ours == sdk.ask(step, user, rule, {"tier": value}, options), (step, user, rule, value, options)
            remembered += ours != step
    assert 100 < remembered < 300
