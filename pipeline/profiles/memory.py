"""Profiles in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from pipeline.metrics import Metrics
from pipeline.profiles.profile import NEW, Profile
from pipeline.settings import ProfilesSettings


class MemoryProfiles:
    """For a single worker, and only until it ends: at most `max_users`, the one asked for longest ago leaves first."""

    def __init__(self, settings: ProfilesSettings, metrics: Metrics) -> None:
        self.upstream = None
        self._most = settings.max_users
        self._known: OrderedDict[str, Profile] = OrderedDict()
        self._lookups = {name: metrics.profile_lookups.labels(name) for name in ("found", "none")}
        self._saves = metrics.profile_saves.labels("ok")

    async def lookup(self, user_ids: Sequence[str]) -> Sequence[Profile]:
        found = [self._known.get(user_id) for user_id in user_ids]
        for user_id, profile in zip(user_ids, found, strict=True):
            if profile is not None:
                self._known.move_to_end(user_id)
        new = found.count(None)
        self._lookups["none"].inc(new)
        self._lookups["found"].inc(len(found) - new)
        return [NEW if profile is None else profile for profile in found]

    async def save(self, profiles: Sequence[tuple[str, Profile]]) -> None:
        for user_id, profile in profiles:
            self._known[user_id] = profile
            self._known.move_to_end(user_id)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        self._saves.inc(len(profiles))

    async def close(self) -> None:
        self._known.clear()
