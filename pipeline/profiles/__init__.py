"""Sticky profiles: which variation each experiment once gave a user, so that it stays when traffic changes.

They are looked up before a decision and saved before its result is sent: in Redis (`shared.py`), or in memory
(`memory.py`), which only a single worker can do. `handlers/facts.py` is the only user.
"""

from __future__ import annotations

from pipeline.metrics import Metrics
from pipeline.profiles.memory import MemoryProfiles
from pipeline.profiles.profile import Profile, Profiles
from pipeline.settings import ProfilesSettings

__all__ = ["Profile", "Profiles", "make_profiles"]


def make_profiles(settings: ProfilesSettings, metrics: Metrics) -> Profiles | None:
    """As configured; None where decisions are not sticky."""
    if settings.redis_url is not None:
        # Only where it is wanted: the client takes eight megabytes and a tenth of a second.
        from pipeline.profiles.shared import RedisProfiles

        return RedisProfiles(settings, metrics)
    return MemoryProfiles(settings, metrics) if settings.single_worker else None
