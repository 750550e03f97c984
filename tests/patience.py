"""How long a test waits for what has to come."""

from __future__ import annotations

PATIENCE = 60.0
"""Seconds. Costs nothing when it comes early, so it is long enough for a machine that does much else; shorter than
pytest's time-out, which does not know the awaited condition. A test of a shorter or longer wait names its own."""
