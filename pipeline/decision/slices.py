"""Large answers, made in steps: between two of them the caller may let others have their turn.

The document is that of `answer`, byte for byte, of the one project it was begun with. Pieces are only references until
the last step joins them; an answer larger than a record may hold is never joined. Called by the decide role for
many flags, or for attributes that are large when they are repeated in each decision; `answer` makes all others.
"""

from __future__ import annotations

from itertools import islice

from pipeline.decision.answers import Answer, decide_flags, joined, opening, user_context
from pipeline.decision.visitor import Facts, visitor_of
from pipeline.errors import Rejected
from pipeline.messages.decide import DecideRequest
from pipeline.project import ProjectConfig

_MANY_FLAGS = 250
_LARGE_BYTES = 1024**2
_FLAGS_OF_A_STEP = 16


def is_large(project: ProjectConfig, request: DecideRequest, size: int) -> bool:
    """Whether to make the answer in steps. `size` is that of the request's record: each decision repeats most of it."""
    flags = len(request.keys) or len(project.flags)
    return flags > _MANY_FLAGS or flags * size > _LARGE_BYTES


class LargeAnswer:
    """An answer under way. Call `step` until it returns something."""

    def __init__(
        self, project: ProjectConfig, request: DecideRequest, facts: Facts, *, source: str, timestamp: int,
        max_bytes: int,
    ) -> None:  # fmt: skip
        """As for `answer`; `request` has no error, and its result may have `max_bytes`."""
        self._project = project
        self._request = request
        self._max_bytes = max_bytes
        self._attributes, self._context = user_context(request)
        self._visitor = visitor_of(request, facts)
        self._keys = iter(request.keys or tuple(project.flags))
        self._pieces = [opening(request, source, timestamp), project.written.decisions]
        self._before = len(self._pieces)
        self._impressions: list[bytes] = []
        self._size = 0

    def step(self) -> Answer | None:
        """Decide the next flags, or join what was decided: then the answer is returned.

        Raises Rejected, result_too_large, as soon as the answer is known to be larger than it may.
        """
        keys = list(islice(self._keys, _FLAGS_OF_A_STEP))
        if not keys:
            return self._finished()
        first, first_impression = len(self._pieces), len(self._impressions)
        separator = b"," if first > self._before else b""
        decide_flags(
            self._project, self._request, self._visitor, self._context, keys, self._pieces, self._impressions, separator
        )
        if self._visitor.wanted:
            # It is decided again when they are known; until then it only matters what else is wanted.
            del self._pieces[self._before :], self._impressions[:]
            return None
        self._size += sum(map(len, self._pieces[first:])) + sum(map(len, self._impressions[first_impression:]))
        if self._size > self._max_bytes:
            raise Rejected("result_too_large", f"its result has more than {self._max_bytes} bytes")
        return None

    def _finished(self) -> Answer:
        visitor = self._visitor
        if visitor.wanted:
            return Answer(b"", None, visitor.wanted)
        value = joined(self._project, self._request, self._attributes, self._pieces, self._impressions)
        return Answer(value, visitor.learned)
