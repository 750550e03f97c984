"""Which segments users qualify for: remembered ones at once, others asked for together, each within the deadline.

A user is asked about once however many wait. An empty set is remembered like any other, unlike in the SDKs, which ask
again for such users at every call; a user unknown to ODP is an error there and not remembered, because the person's
first event may arrive any moment. `handlers/decide.py` peeks for every request and fetches for those not remembered.
"""

from __future__ import annotations

import asyncio
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
    "host_not_allowed", "overloaded",
)  # fmt: skip
_MAX_ACCOUNTS = 1024
# Accounts that a new datafile replaced are asked no more, whatever they said last.
_FORGET_SECONDS = 300.0


class Question:
    """One user of one account, and everyone who waits for its segments."""

    __slots__ = ("_settle", "asked_again", "coalescer", "key", "last_failure", "save", "since", "user_id", "waiters")

    def __init__(self, key: tuple[int, str], coalescer: Coalescer, settle: Callable[[Question, Outcome], None]) -> None:
        self.key = key
        self.coalescer = coalescer
        self.user_id = key[1]
        self.since = 0.0
        self.save = False
        self.asked_again = False
        self.last_failure: SegmentsUnavailable | None = None
        self.waiters: list[asyncio.Future[frozenset[str]]] = []
        self._settle = settle

    @property
    def wanted(self) -> bool:
        return bool(self.waiters)

    def answer(self, outcome: Outcome) -> None:
        self._settle(self, outcome)


class Waiter(NamedTuple):
    deadline: float
    future: asyncio.Future[frozenset[str]]
    question: Question


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
        self.upstream = Upstream("odp_segments", metrics, forget_after=_FORGET_SECONDS)
        self._accounts: dict[OdpAccount, Account] = {}
        self._last: tuple[OdpAccount, Account] | None = None
        self._numbers = count()
        self._questions: dict[tuple[int, str], Question] = {}
        self._deadlines: deque[Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._waiting = 0
        self._uncounted = 0
        self._closed = False
        self._hits = metrics.segment_lookups.labels("hit")
        self._misses = metrics.segment_lookups.labels("miss")
        self._bypasses = metrics.segment_lookups.labels("bypass")
        self._waited = metrics.segment_wait.observe
        self._failures = {reason: metrics.segment_failures.labels(reason) for reason in REASONS}

    def peek(self, account: OdpAccount, user_id: str) -> frozenset[str] | None:
        """The remembered segments, None if there are none remembered. Without segments to check: the empty set."""
        if not account.segments_to_check:
            return NONE
        found: frozenset[str] | None = self._cache.peek((self._account(account).number, user_id))
        if found is None:
            self._misses.inc()
        else:
            self._uncounted += 1
        return found

    def count_hits(self) -> None:
        """Add the hits since the last call to the metric, which for each alone would cost more than the look-up."""
        if self._uncounted:
            self._hits.inc(self._uncounted)
            self._uncounted = 0

    def reset(self) -> None:
        """Forget all users of all accounts. Answers to questions asked before are given and not remembered."""
        self._cache.empty()
        self._questions.clear()

    def fetch(self, account: OdpAccount, user_id: str, *, save: bool) -> asyncio.Future[frozenset[str]]:
        """Ask ODP; `save` says whether the answer is remembered. Never blocks.

        The future ends within `odp.fetch_deadline`, tries included, with the segments or with SegmentsUnavailable;
        `close` cancels it. It may be left alone: a failure nobody looks at is not reported by asyncio.
        """
        future: asyncio.Future[frozenset[str]] = asyncio.get_running_loop().create_future()
        if not account.segments_to_check:
            future.set_result(NONE)
        elif self._closed:
            future.cancel()
        elif self._waiting >= self._settings.max_waiting_users:
            self._fail(future, SegmentsUnavailable("overloaded", "too many users wait for their segments"))
        else:
            self._wait(account, user_id, future, save=save)
        return future

    async def close(self) -> None:
        """Stop at once. Who still waits is cancelled and not failed: a stop must not become somebody's answer."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for account in self._accounts.values():
            await account.coalescer.close()
        for waiter in self._deadlines:
            waiter.future.cancel()
        self._deadlines.clear()
        self._questions.clear()

    def _wait(self, account: OdpAccount, user_id: str, future: asyncio.Future[frozenset[str]], *, save: bool) -> None:
        if not save:
            self._bypasses.inc()
        number, coalescer = self._account(account)
        key = (number, user_id)
        question = self._questions.get(key)
        if question is None:
            question = self._questions[key] = Question(key, coalescer, self._settle)
            coalescer.add(question)
        question.save = question.save or save
        question.waiters.append(future)
        self._waiting += 1
        loop = asyncio.get_running_loop()
        waiter = Waiter(loop.time() + self._settings.fetch_deadline, future, question)
        self._deadlines.append(waiter)
        if self._timer is None:
            self._timer = loop.call_at(waiter.deadline, self._expire)

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
        if question.wanted:
            self._waited(asyncio.get_running_loop().time() - question.since)
        waiters, question.waiters = question.waiters, []
        self._waiting -= len(waiters)
        if isinstance(outcome, frozenset):
            if current and question.save:
                self._cache.put(question.key, outcome)
            for future in waiters:
                if not future.done():
                    future.set_result(outcome)
        else:
            for future in waiters:
                self._fail(future, outcome)
        while self._deadlines and self._deadlines[0].future.done():
            self._deadlines.popleft()

    def _fail(self, future: asyncio.Future[frozenset[str]], failure: SegmentsUnavailable) -> None:
        if future.done():
            return
        self._failures[failure.reason].inc()
        # One instance each: whoever awaits the future adds to the exception's traceback.
        future.set_exception(SegmentsUnavailable(failure.reason, failure.detail))
        # Looked at once, so that asyncio does not report it if nobody else does.
        future.exception()

    def _expire(self) -> None:
        """End the waiting of those whose deadline has come; the waiters are in the order of their deadlines."""
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        while self._deadlines and (self._deadlines[0].deadline <= now or self._deadlines[0].future.done()):
            self._end(self._deadlines.popleft())
        if self._deadlines:
            self._timer = loop.call_at(self._deadlines[0].deadline, self._expire)

    def _end(self, waiter: Waiter) -> None:
        question = waiter.question
        if waiter.future not in question.waiters:
            return
        question.waiters.remove(waiter.future)
        self._waiting -= 1
        late = SegmentsUnavailable("timeout", f"no segments within {self._settings.fetch_deadline:g} s")
        self._fail(waiter.future, question.last_failure or question.coalescer.failure or late)
        if not question.wanted:
            self._waited(asyncio.get_running_loop().time() - question.since)
        if not question.wanted and self._questions.get(question.key) is question:
            del self._questions[question.key]
