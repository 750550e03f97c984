"""How long a test waits for what has to come, and how long something may take that has to be quick."""

from __future__ import annotations

import os

PATIENCE = 60.0
"""Seconds. Costs nothing when it comes early, so it is long enough for a machine that does much else; shorter than
pytest's time-out, which does not know the awaited condition. A test of a shorter or longer wait names its own."""


def stretched(seconds: float) -> float:
    """The seconds themselves while each process has a core; the more processes share one, the longer."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
