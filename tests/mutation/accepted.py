"""Survivors that no test can or should kill, each with its reason. They count as survivors all the same."""

from __future__ import annotations

from typing import NamedTuple

from tests.mutation.finding import Mutant


class Accepted(NamedTuple):
    """`change` as the report shows it: before => after."""

    file: str
    function: str
    change: str
    reason: str


ACCEPTED: tuple[Accepted, ...] = ()


def reason_for(mutant: Mutant) -> str:
    """Empty if the survivor is not accepted."""
    place = (mutant.file, mutant.function, mutant.change)
    return next((one.reason for one in ACCEPTED if one[:3] == place), "")
