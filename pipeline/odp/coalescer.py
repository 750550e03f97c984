"""Users waiting for their segments share queries: few requests when many wait, no waiting when none is under way.

A full query goes at once. One that is not full goes when no other is under way or its oldest user has waited for
`odp.max_linger`. At most `odp.max_in_flight` are under way, and one while ODP does not answer. `odp/segments.py` owns
one coalescer for each account and ends every question at its deadline, so nothing here waits for ever.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from pipeline.errors import AccessRefused, PayloadRefused, SegmentsUnavailable, Unavailable, UpstreamError
from pipeline.limits import Backoff
from pipeline.odp.graphql import Outcome, QueryTooLarge
from pipeline.outage import DENIED, REFUSED, UNAVAILABLE, Upstream
from pipeline.settings import OdpSettings

# Failures in a row from which requests pause and go one at a time; a single failure is asked again at once.
PAUSE_AFTER = 3
# Full answers in a row after which a limit learnt from a refusal is tried to be raised.
GROW_AFTER = 100

log = structlog.get_logger("pipeline.odp.coalescer")


class Question(Protocol):
    """One user asked about."""

    user_id: str
    since: float
    asked_again: bool
    last_failure: SegmentsUnavailable | None

    @property
    def wanted(self) -> bool:
        """False once nobody waits for the answer any more."""

    def answer(self, outcome: Outcome) -> None: ...


class Blame:
    """Whether a refused query was too large or held one bad user: only if both halves pass was it the size."""

    __slots__ = ("passed", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.passed = 0


@dataclass(slots=True)
class Group:
    """Users who go into one query; `blame` is set where they are half of a refused one."""

    questions: list[Question]
    blame: Blame | None = None
    users: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.users = [question.user_id for question in self.questions]


class Coalescer:
    """The queue of one account. `limit` is the most users in a query that the server is taken to accept."""

    def __init__(
        self, ask: Callable[[Sequence[str]], Coroutine[Any, Any, list[Outcome]]], settings: OdpSettings,
        *, limit: int, backoff: Backoff, upstream: Upstream,
    ) -> None:  # fmt: skip
        self.limit = limit
        self._most = settings.max_users_per_query
        self._full_answers = 0
        # Why users whose deadline comes now were not answered, while ODP does not answer.
        self.failure: SegmentsUnavailable | None = None
        self._ask = ask
        self._max_in_flight = settings.max_in_flight
        self._linger = settings.max_linger
        self._backoff = backoff
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Question] = deque()
        self._groups: deque[Group] = deque()
        self._queries: set[asyncio.Task[None]] = set()
        self._turn: asyncio.TimerHandle | None = None
        self._failures = 0
        self._paused_until = 0.0
        self._outage = upstream.outage(
            begins="segments cannot be fetched", ends="segments can be fetched again", log=log
        )

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._groups or self._queries)

    def add(self, question: Question) -> None:
        """Put a user in line. Queries are sent at the end of the loop's turn, so that all users of a turn share."""
        question.since = self._loop.time()
        self._waiting.append(question)
        self._wake(0)

    async def close(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
        self._waiting.clear()
        self._groups.clear()
        for task in self._queries:
            task.cancel()
        await asyncio.gather(*self._queries, return_exceptions=True)

    def _wake(self, delay: float) -> None:
        """Run `_send` after `delay` seconds, or sooner if that was asked for before."""
        if self._turn is not None:
            if self._turn.when() <= self._loop.time() + delay:
                return
            self._turn.cancel()
        self._turn = self._loop.call_later(delay, self._send)

    def _send(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        while (group := self._next()) is not None:
            query = self._loop.create_task(self._query(group), name="odp-query")
            self._queries.add(query)
            query.add_done_callback(self._queried)

    def _next(self) -> Group | None:
        """The group to send now; None if there is none, with a wake-up set where time alone will change that."""
        while self._waiting and not self._waiting[0].wanted:
            self._waiting.popleft()
        while self._groups and not any(question.wanted for question in self._groups[0].questions):
            self._groups.popleft()
        slots = self._max_in_flight if self._failures < PAUSE_AFTER else 1
        if not (self._waiting or self._groups) or len(self._queries) >= slots:
            return None
        now = self._loop.time()
        if now < self._paused_until:
            self._wake(self._paused_until - now)
            return None
        if self._groups:
            return self._groups.popleft()
        left = self._waiting[0].since + self._linger - now
        if len(self._waiting) < self.limit and self._queries and left > 0:
            self._wake(left)
            return None
        return self._take()

    def _take(self) -> Group:
        questions: list[Question] = []
        while self._waiting and len(questions) < self.limit:
            question = self._waiting.popleft()
            if question.wanted:
                questions.append(question)
        return Group(questions)

    async def _query(self, group: Group) -> None:
        try:
            outcomes = await self._ask(group.users)
        except Unavailable as error:
            self._unavailable(group, error)
        except (PayloadRefused, QueryTooLarge) as error:
            self._refused(group, error)
        except AccessRefused as error:
            self._outage.begin(DENIED, str(error))
            _fail(group, SegmentsUnavailable("denied", f"audience segments fetch failed ({error})"))
        except SegmentsUnavailable as error:
            self._outage.begin(DENIED, str(error), edge=error.reason)
            _fail(group, error)
        except UpstreamError as error:
            # An answer too large to read is a reason to ask for fewer; other statuses are no answer to a query at all.
            if 200 <= error.status < 300:
                self._refused(group, error)
            else:
                self._outage.begin(REFUSED, str(error))
                _fail(group, SegmentsUnavailable("refused", f"audience segments fetch failed ({error})"))
        else:
            self._answered(group, outcomes)

    def _queried(self, query: asyncio.Task[None]) -> None:
        self._queries.discard(query)
        if query.cancelled():
            return
        self._send()
        # A defect raised here reaches the loop's exception handler; the users get their answer at the deadline.
        query.result()

    def _answered(self, group: Group, outcomes: list[Outcome]) -> None:
        self._recovered()
        self._passed(group.blame)
        self._grow(len(group.questions))
        for question, outcome in zip(group.questions, outcomes, strict=True):
            if isinstance(outcome, frozenset) or outcome.reason == "invalid_identifier" or question.asked_again:
                question.answer(outcome)
            else:
                # Only this user's share failed, and it may not fail twice: asked once more, with whoever waits.
                question.asked_again = True
                question.last_failure = outcome
                self._waiting.appendleft(question)

    def _recovered(self) -> None:
        if self._loop.time() < self._paused_until:
            return  # An answer to an earlier query does not shorten the pause the service asked for.
        self._failures, self.failure = 0, None
        self._outage.end()

    def _passed(self, blame: Blame | None) -> None:
        if blame is None:
            return
        blame.passed += 1
        if blame.passed == 2 and blame.size < self.limit:
            self.limit = blame.size
            self._full_answers = 0
            log.warning("odp takes fewer users in a query", users=self.limit)

    def _grow(self, users: int) -> None:
        """After many full answers try twice as many users: one stray refusal must not make queries small for good."""
        if users < self.limit or self.limit >= self._most:
            return
        self._full_answers += 1
        if self._full_answers >= GROW_AFTER:
            self._full_answers = 0
            self.limit = min(self._most, self.limit * 2)
            log.info("odp is asked for more users in a query again", users=self.limit)

    def _refused(self, group: Group, error: Exception) -> None:
        self._recovered()
        if len(group.questions) == 1:
            _fail(group, SegmentsUnavailable("refused", f"audience segments fetch failed ({error})"))
            return
        middle = (len(group.questions) + 1) // 2
        blame = Blame(middle)
        self._groups.append(Group(group.questions[:middle], blame))
        self._groups.append(Group(group.questions[middle:], blame))

    def _unavailable(self, group: Group, error: Unavailable) -> None:
        self.failure = SegmentsUnavailable("unavailable", f"audience segments fetch failed ({error})")
        wanted = [question for question in group.questions if question.wanted]
        if group.blame is not None and len(wanted) == len(group.questions):
            self._groups.appendleft(group)
        elif self._failures < PAUSE_AFTER:
            self._waiting.extendleft(reversed(wanted))
        else:
            # Behind the others: users asked about all the time would hide from view those nobody waits for any more.
            self._waiting.extend(wanted)
        now = self._loop.time()
        if now < self._paused_until:
            return  # Others under way failed just before: one outage is one series of failures.
        self._failures += 1
        if self._failures >= PAUSE_AFTER or error.retry_after is not None:
            pause = self._backoff.delay(max(1, self._failures - PAUSE_AFTER + 1), error.retry_after)
            self._paused_until = now + pause
            self._outage.begin(UNAVAILABLE, str(error))


def _fail(group: Group, failure: SegmentsUnavailable) -> None:
    for question in group.questions:
        question.answer(failure)
