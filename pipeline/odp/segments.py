"""Which segments users qualify for: remembered ones at once, others asked for together, each within its deadline.

A user is asked about once however many requests wait, and all that wait when ODP answers share the answer, also a
failure. An empty set is remembered like any other, unlike in the SDKs, which ask again for such users at every call. A
user unknown to ODP is an error there and remembered for `odp.unknown_user_timeout` only, because the person's first
event may arrive any moment. `handlers/facts.py` peeks for every request and fetches for those not remembered.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import NamedTuple

from pipeline.caching.memory import MemoryCache
from pipeline.errors import SegmentsUnavailable
from pipeline.limits import Backoff
from pipeline.metrics import Metrics
from pipeline.odp.client import OdpAccount, OdpClient
from pipeline.odp.coalescer import Coalescer
from pipeline.odp.graphql import Outcome
from pipeline.outage import Upstream
from pipeline.settings import OdpSettings
from pipeline.transport import Transport

NONE: frozenset[str] = frozenset()
REASONS = (
    "invalid_identifier", "query_error", "decode_error", "unavailable", "timeout", "denied", "refused",
    "host_not_allowed", "overloaded", "expired",
)  # fmt: skip
_MAX_ACCOUNTS = 1024
_ENDED_WAITERS = 64
# Accounts that a new datafile replaced are asked no more, whatever they said last.
_FORGET_SECONDS = 300.0


class Question:
    """One user of one account, and the requests that wait for its segments."""

    __slots__ = (
        "_settle", "asked_again", "coalescer", "key", "last_failure", "save", "since", "user_id", "waiters", "waiting",
    )  # fmt: skip

    def __init__(self, key: tuple[int, str], coalescer: Coalescer, settle: Callable[[Question, Outcome], None]) -> None:
        self.key = key
        self.coalescer = coalescer
        self.user_id = key[1]
        self.since = 0.0
        self.save = False
        self.asked_again = False
        self.last_failure: SegmentsUnavailable | None = None
        self.waiters: list[asyncio.Future[frozenset[str]]] = []
        self.waiting = 0
        """Waiters whose deadline has not come. The others stay in the list for a while: taking one out is a search."""
        self._settle = settle

    @property
    def wanted(self) -> bool:
        return self.waiting > 0

    def answer(self, outcome: Outcome) -> None:
        self._settle(self, outcome)


class Waiter(NamedTuple):
    deadline: float
    number: int
    """Tells waiters of one deadline apart: the heap compares no further."""
    future: asyncio.Future[frozenset[str]]
    question: Question
    expires: bool
    """The deadline is the end of the request's own time, not that of `odp.fetch_deadline`."""


class Account(NamedTuple):
    """`number` stands for the account in keys: hashing it costs nothing, hashing hundreds of segment names does."""

    number: int
    coalescer: Coalescer


class Segments:
    """The segments of the users of all accounts. Accounts share the bound of the cache and never an entry.

    An account is its host, key and list of segments, so a datafile that changes one of them begins with no entries.
    """

    def __init__(
        self, *, transport: Transport, settings: OdpSettings, metrics: Metrics,
        clock: Callable[[], float] = time.monotonic, backoff: Backoff | None = None,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._client = OdpClient(transport=transport, settings=settings, metrics=metrics)
        self._backoff = backoff or Backoff(first=0.1, cap=1.0)
        self._cache = MemoryCache(
            size=settings.cache_size, timeout=settings.cache_timeout, clock=clock,
            evicted=metrics.segment_cache_evictions.inc,
        )  # fmt: skip
        metrics.segment_cache_entries.set_function(self._cache.__len__)
        # A cache of its own: users unknown to ODP must not push known ones out.
        self._unknown = MemoryCache(
            size=settings.cache_size if settings.unknown_user_timeout else 0,
            timeout=settings.unknown_user_timeout, clock=clock,
        )  # fmt: skip
        self.upstream = Upstream("odp_segments", metrics, forget_after=_FORGET_SECONDS)
        self._accounts: dict[OdpAccount, Account] = {}
        self._last: tuple[OdpAccount, Account] | None = None
        self._numbers = count()
        self._questions: dict[tuple[int, str], Question] = {}
        self._deadlines: deque[Waiter] = deque()
        """Waiters with the deadline of all, in its order."""
        self._early: list[Waiter] = []
        """A heap of waiters whose request ends sooner than that."""
        self._timer: asyncio.TimerHandle | None = None
        self._waiting = 0
        self._uncounted = 0
        self._closed = False
        self._hits = metrics.segment_lookups.labels("hit")
        self._misses = metrics.segment_lookups.labels("miss")
        self._bypasses = metrics.segment_lookups.labels("bypass")
        self._shared = metrics.segment_lookups.labels("shared")
        self._unknowns = metrics.segment_lookups.labels("unknown")
        self._waited = metrics.segment_wait.observe
        self._failures = {reason: metrics.segment_failures.labels(reason) for reason in REASONS}

    def peek(self, account: OdpAccount, user_id: str) -> Outcome | None:
        """The remembered segments; the failure of a user just found to be unknown to ODP; None: nothing is remembered.

        Without segments to check: the empty set.
        """
        if not account.segments_to_check:
            return NONE
        key = (self._account(account).number, user_id)
        found: Outcome | None = self._cache.peek(key)
        if found is not None:
            self._uncounted += 1
            return found
        found = self._unknown.peek(key)
        if found is not None:
            self._unknowns.inc()
            self._failures["invalid_identifier"].inc()
        return found

    def count_hits(self) -> None:
        """Add the hits since the last call to the metric, which for each alone would cost more than the look-up."""
        if self._uncounted:
            self._hits.inc(self._uncounted)
            self._uncounted = 0

    def reset(self) -> None:
        """Forget all users of all accounts. Answers to questions asked before are given and not remembered."""
        self._cache.empty()
        self._unknown.empty()
        self._questions.clear()

    def fetch(
        self, account: OdpAccount, user_id: str, *, save: bool, within: float | None = None
    ) -> asyncio.Future[frozenset[str]]:
        """Ask ODP; `save` says whether the answer is remembered. Never blocks.

        The future ends within `odp.fetch_deadline`, tries included, with the segments or with SegmentsUnavailable;
        `close` cancels it. `within`: seconds until the request's own time ends, reason `expired`, if that is sooner.
        The future may be left alone: a failure nobody looks at is not reported by asyncio.
        """
        future: asyncio.Future[frozenset[str]] = asyncio.get_running_loop().create_future()
        if not account.segments_to_check:
            future.set_result(NONE)
        elif self._closed:
            future.cancel()
        elif self._waiting >= self._settings.max_waiting_users:
            self._fail(future, SegmentsUnavailable("overloaded", "too many requests wait for their users' segments"))
        else:
            self._wait(self._question(account, user_id, save=save), future, within)
        return future

    async def close(self) -> None:
        """Stop at once. Waiting requests are cancelled and not failed: a stop must not become somebody's answer."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for account in self._accounts.values():
            await account.coalescer.close()
        for waiter in (*self._deadlines, *self._early):
            waiter.future.cancel()
        self._deadlines.clear()
        self._early.clear()
        self._questions.clear()

    def _question(self, account: OdpAccount, user_id: str, *, save: bool) -> Question:
        """The question about this user: the open one, or a new one."""
        number, coalescer = self._account(account)
        key = (number, user_id)
        question = self._questions.get(key)
        outcome = self._misses if question is None else self._shared
        (outcome if save else self._bypasses).inc()
        if question is None:
            question = self._questions[key] = Question(key, coalescer, self._settle)
            coalescer.add(question)
        question.save = question.save or save
        return question

    def _wait(self, question: Question, future: asyncio.Future[frozenset[str]], within: float | None) -> None:
        question.waiters.append(future)
        question.waiting += 1
        self._waiting += 1
        limit = self._settings.fetch_deadline
        expires = within is not None and within < limit
        now = asyncio.get_running_loop().time()
        waiter = Waiter(now + (within or 0 if expires else limit), next(self._numbers), future, question, expires)
        if expires:
            heapq.heappush(self._early, waiter)
        else:
            self._deadlines.append(waiter)
        self._wake_at(waiter.deadline)

    def _account(self, account: OdpAccount) -> Account:
        if self._last is not None and self._last[0] is account:
            return self._last[1]
        known = self._accounts.get(account)
        if known is None:
            known = self._accounts[account] = self._new_account(account)
        self._last = (account, known)
        return known

    def _new_account(self, account: OdpAccount) -> Account:
        # Each revision of a datafile may bring a new list of segments, hence a new account; old ones are let go.
        if len(self._accounts) >= _MAX_ACCOUNTS:
            for old, known in list(self._accounts.items()):
                if known.coalescer.idle:
                    del self._accounts[old]
                    break
        limit = self._settings.max_users_per_query
        for other, known in self._accounts.items():
            if (other.host, other.key) == (account.host, account.key):
                limit = min(limit, known.coalescer.limit)
        coalescer = Coalescer(
            partial(self._client.ask, account), self._settings,
            limit=limit, backoff=self._backoff, upstream=self.upstream,
        )  # fmt: skip
        return Account(next(self._numbers), coalescer)

    def _settle(self, question: Question, outcome: Outcome) -> None:
        # After a reset the question is no longer the one known under its key: its answer is from before, not kept.
        current = self._questions.get(question.key) is question
        if current:
            del self._questions[question.key]
            if question.save:
                self._remember(question.key, outcome)
        if question.wanted:
            self._observe_wait(question)
        waiters, question.waiters = question.waiters, []
        self._waiting -= question.waiting
        question.waiting = 0
        for future in waiters:
            if future.done():
                continue
            if isinstance(outcome, frozenset):
                future.set_result(outcome)
            else:
                self._fail(future, outcome)
        while self._deadlines and self._deadlines[0].future.done():
            self._deadlines.popleft()
        while self._early and self._early[0].future.done():
            heapq.heappop(self._early)

    def _remember(self, key: tuple[int, str], outcome: Outcome) -> None:
        if isinstance(outcome, frozenset):
            self._cache.put(key, outcome)
        elif outcome.reason == "invalid_identifier":
            self._unknown.put(key, outcome)

    def _fail(self, future: asyncio.Future[frozenset[str]], failure: SegmentsUnavailable) -> None:
        self._failures[failure.reason].inc()
        # One instance each: whoever awaits the future adds to the exception's traceback.
        future.set_exception(SegmentsUnavailable(failure.reason, failure.detail))
        # Looked at once, so that asyncio does not report it if nobody else does.
        future.exception()

    def _wake_at(self, deadline: float) -> None:
        """Run `_expire` at `deadline`, or sooner if that was asked for before."""
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(deadline, self._expire)

    def _expire(self) -> None:
        """End the waiting of those whose deadline has come."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._deadlines and (self._deadlines[0].deadline <= now or self._deadlines[0].future.done()):
            self._end(self._deadlines.popleft())
        while self._early and (self._early[0].deadline <= now or self._early[0].future.done()):
            self._end(heapq.heappop(self._early))
        for waiters in (self._deadlines, self._early):
            if waiters:
                self._wake_at(waiters[0].deadline)

    def _end(self, waiter: Waiter) -> None:
        if waiter.future.done():
            return
        question = waiter.question
        question.waiting -= 1
        self._waiting -= 1
        self._fail(waiter.future, self._late(waiter))
        if question.wanted:
            # A user who is asked about all the time keeps a question open for as long as ODP is away.
            if len(question.waiters) > 2 * question.waiting + _ENDED_WAITERS:
                question.waiters = [future for future in question.waiters if not future.done()]
            return
        self._observe_wait(question)
        if self._questions.get(question.key) is question:
            del self._questions[question.key]

    def _observe_wait(self, question: Question) -> None:
        """Count how long the user was waited for, by no request for longer than its deadline."""
        self._waited(min(asyncio.get_running_loop().time() - question.since, self._settings.fetch_deadline))

    def _late(self, waiter: Waiter) -> SegmentsUnavailable:
        if waiter.expires:
            return SegmentsUnavailable("expired", "the request's time ended before ODP answered")
        known = waiter.question.last_failure or waiter.question.coalescer.failure
        late = SegmentsUnavailable("timeout", f"no segments within {self._settings.fetch_deadline:g} s")
        return known or late
