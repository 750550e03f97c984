"""Seeded chance, and the words that generated projects and requests are made of: dense in the corners."""

from __future__ import annotations

import random
from typing import Any

from optimizely.bucketer import Bucketer

Json = dict[str, Any]

SEGMENTS = ("seg_a", "seg_b", "seg_c", "")
TEXTS = ("DE", "SI", "", "gold", "a DE b", "ž", "1.0", "😀")
NUMBERS = (0, 1, 18, 18.0, -3, 2.5, -0.0, 19, 2**53, 2**53 + 2, -(2**53), 1e300, 10**18, 10**30)
VERSIONS = (
    "2",
    "2.1",
    "2.1.0",
    "3.7.1",
    "3.7.1-beta",
    "3.7.1-rc",
    "3.7.1+42",
    "3.7.1+a",
    "10.0.0",
    "2.1.0-2",
    "2.1.0-10",
)
BAD_VERSIONS = ("", "x", "2.", ".2", "1.2.3.4", "2 .1", "-", "+", "1.x", "+build-pre")
ODD: tuple[Any, ...] = (None, True, ["list"], [], {"an": "object"}, {"deep": {"er": [None, 1.5]}}, 10**25, "")
"""Values of attributes that few conditions can be told of."""

NATURAL: dict[str, tuple[Any, ...]] = {
    "text": TEXTS,
    "number": NUMBERS,
    "boolean": (True, False),
    "version": VERSIONS,
}
ATTRIBUTES: dict[str, str] = {
    "country": "text",
    "plan": "text",
    "nick": "text",
    "age": "number",
    "score": "number",
    "beta": "boolean",
    "app": "version",
    "os": "version",
    "$opt_user_agent": "text",
    "odd key ž": "text",
}
"""Attribute keys and what their values mostly are."""


class Dice(random.Random):
    """One seed makes the same project and the same requests again."""

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self._last = 1000

    def id(self) -> str:
        """One that this project does not have yet."""
        self._last += 1
        return str(self._last)

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def maybe(self, probability: float, **members: Any) -> Json:
        """These members of an object, or none."""
        return members if self.chance(probability) else {}

    def of(self, *options: Any) -> Any:
        return options[self.randrange(len(options))]


_BUCKETER = Bucketer()


def edge(dice: Dice, users: list[str], parent_id: str) -> int:
    """An end of a range that just lets a user in, or just does not."""
    bucket = _BUCKETER._generate_bucket_value(dice.choice(users) + parent_id)
    return bucket + dice.randint(0, 1)


def user_ids(dice: Dice, count: int) -> list[str]:
    return [dice.of("user", "ž", "u ", "😀", '"') + str(dice.randrange(10**6)) for _ in range(count)]
