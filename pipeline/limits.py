"""How long to wait before asking again: exponential with jitter, and what the service asked for if it did."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays in seconds for a series of failures: at most `first * 2**n`, never over `cap`, jittered.

    Each is between half and all of that, so that a fleet does not come back as one.
    """

    first: float = 0.2
    cap: float = 30.0
    rng: random.Random = field(default_factory=random.Random)

    def delay(self, failures: int, retry_after: float | None = None) -> float:
        """Delay after the `failures`-th failure in a row, counted from 1; never less than a sane `retry_after`."""
        longest = min(self.cap, self.first * 2.0 ** min(failures - 1, 30))
        own = longest * (0.5 + self.rng.random() / 2)
        return own if retry_after is None else max(own, min(retry_after, 10 * self.cap))
