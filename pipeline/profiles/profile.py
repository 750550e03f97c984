"""What a profile is, and what keeping profiles means, wherever they are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from pipeline.outage import Upstream

Profile = Mapping[str, str]
"""Experiment id to variation id."""

NEW: Profile = {}
"""Of a user who has none yet."""


class Profiles(Protocol):
    """Where profiles are kept."""

    @property
    def upstream(self) -> Upstream | None:
        """The service that keeps them; None where there is none."""

    async def lookup(self, user_ids: Sequence[str]) -> Sequence[Profile | None]:
        """The users' profiles in their order, empty for a new user.

        None if one cannot be told; then nothing may be saved for the user.
        """

    async def save(self, profiles: Sequence[tuple[str, Profile]]) -> None:
        """Keep these profiles by user id in place of those before; of two for one user the later.

        A failure is counted, not raised: the decision stands.
        """

    async def close(self) -> None: ...
