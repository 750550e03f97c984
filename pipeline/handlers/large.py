"""Large answers of the decide role: made a slice at a time, one after the other, so that nobody waits behind them.

Requests for many flags, or with attributes that are large when each decision repeats them. The event loop is never
held for longer than a slice, other users are decided between two slices, and one project decides the whole answer: if
it is replaced meanwhile, the answer is begun anew by its successor. Called by `handlers/facts.py` only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from pipeline.datafile.compiling import let_go
from pipeline.datafile.poller import Datafiles
from pipeline.decision import Answer, Facts, LargeAnswer
from pipeline.messages.decide import DecideRequest
from pipeline.messages.delivery import Chunk
from pipeline.project import ProjectConfig

_SLICE_SECONDS = 0.003
_NOT_OURS = Answer(b"")


class LargeAnswers:
    """The large answers of the process. Two made at once would hold each turn of the loop twice as long."""

    def __init__(self, datafiles: Datafiles, max_result_bytes: int) -> None:
        self._datafiles = datafiles
        self._max_result_bytes = max_result_bytes
        self._turn = asyncio.Lock()

    async def answer(
        self, request: DecideRequest, facts: Facts, chunk: Chunk, *,
        has_room: bool, expired: Callable[[], bool], source: str, timestamp: int,
    ) -> Answer | None:  # fmt: skip
        """The answer; None where there is no project or no time any more, or no room for its result just now.

        `has_room` says that there must be room. An answer that nobody wants, as its chunk was abandoned, is empty.
        Raises Rejected, result_too_large.
        """
        async with self._turn:
            # Many may have waited for the turn, each with room when it began to.
            if has_room and not chunk.has_room:
                return None
            found: Answer | None = None
            while found is None and not chunk.abandoned:
                project = self._datafiles.project(request.sdk_key or "")
                if project is None or expired():
                    return None
                large = LargeAnswer(
                    project, request, facts, source=source, timestamp=timestamp, max_bytes=self._max_result_bytes
                )
                found = await self._made(large, project, request, chunk)
                if found is None and not chunk.abandoned:
                    # The poller could not free it while this answer referred to it; here that would hold the loop.
                    replaced = [project]
                    del large, project
                    await asyncio.to_thread(let_go, replaced)
            return found or _NOT_OURS

    async def _made(
        self, large: LargeAnswer, project: ProjectConfig, request: DecideRequest, chunk: Chunk
    ) -> Answer | None:
        """The answer; None if its project was replaced, or the chunk abandoned, before it was made."""
        until = time.perf_counter() + _SLICE_SECONDS
        while (found := large.step()) is None:
            if time.perf_counter() >= until:
                await asyncio.sleep(0)
                if chunk.abandoned or self._datafiles.project(request.sdk_key or "") is not project:
                    return None
                until = time.perf_counter() + _SLICE_SECONDS
        return found
