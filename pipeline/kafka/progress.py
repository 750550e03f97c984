"""Which offsets of a partition may be committed, and the floor that makes its results final through crashes. Pure.

Chunks are taken in order and finish in any order. What may be committed is the contiguous end: the end of the last
chunk before the first unfinished one.

The floor goes into each commit's metadata. It promises: every published result of a source that is not covered by
this commit lies at or after this offset of the results partition. Whoever takes the partition over reads the results
from there and does not decide again what it finds. A pair (position, floor) once true stays true, because results
are only ever appended; so an old commit that arrives late does no harm.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(slots=True)
class Span:
    """The offsets [first, end) of one chunk. `low`: the least offset any of its results can have, once one is known."""

    first: int
    end: int
    finished: bool = False
    low: int | None = None

    def published(self, offset: int) -> None:
        if self.low is None or offset < self.low:
            self.low = offset


class Progress:
    """The offsets of one owned partition, from `position` on."""

    __slots__ = ("_recovered_end", "_scan_floor", "_spans", "_taken", "position")

    def __init__(self, position: int, *, scan_floor: int = 0, recovered_end: int = 0) -> None:
        """`scan_floor` is where the scan at takeover began, `recovered_end` the offset after the last source it found.

        Until that source is committed the scan's own floor stays in force: the results found by the scan are not
        ours, no acknowledgement of ours would ever name their offsets, and a second crash would forget them.
        """
        self.position = position
        self._taken = position
        self._spans: deque[Span] = deque()
        self._scan_floor = scan_floor
        self._recovered_end = recovered_end

    @property
    def window(self) -> int:
        """Records (offsets, to be exact) taken and not yet committable."""
        return self._taken - self.position

    def take(self, first: int, end: int) -> Span:
        """A chunk begins. Offsets may have gaps (aborted transactions, compaction), but never go back."""
        if first < self._taken or end <= first:
            raise ValueError(f"offsets [{first}, {end}) after {self._taken}")
        span = Span(first, end)
        self._spans.append(span)
        self._taken = end
        return span

    def pass_over(self, position: int) -> None:
        """Nothing is under way, and nothing before `position` will come: only markers of transactions lie there."""
        if not self._spans and position > self.position:
            self.position = self._taken = position

    def finish(self, span: Span) -> bool:
        """A chunk is settled. True if the position moved."""
        span.finished = True
        spans = self._spans
        if spans[0] is not span:
            return False
        while spans and spans[0].finished:
            self.position = spans.popleft().end
        return True

    def floor(self, acknowledged_end: int) -> int:
        """The floor that goes with `position`; `acknowledged_end` is the offset after our last acknowledged result.

        A result not yet acknowledged will lie at or after that end: a partition of results has one sender, and its
        batches are appended in order.
        """
        floor = acknowledged_end
        if self.position < self._recovered_end:
            floor = min(floor, self._scan_floor)
        for span in self._spans:
            if span.low is not None and span.low < floor:
                floor = span.low
        return floor
