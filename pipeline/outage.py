"""Outages of the services that a worker depends on: each is logged when it begins, changes and ends, and is a gauge.

A client has one `Upstream` for its service, and in it one `Outage` for each thing that fails on its own: an account,
an SDK key, reading or writing. The client calls `begin` at each failure that it takes for an outage, and `end` at each
good answer; both may be called any number of times. `/ready` and `/health` show the outages that are on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from structlog.typing import FilteringBoundLogger

from pipeline.metrics import Metrics

UNAVAILABLE, DENIED, REFUSED = REASONS = ("unavailable", "denied", "refused")
_WORDS = {
    UNAVAILABLE: "has been unavailable", DENIED: "has denied access", REFUSED: "has given answers that cannot be used",
}  # fmt: skip


class Upstream:
    """One service as this process sees it: when it answered last, and which outages are on.

    `forget_after`: an outage without a failure for so many seconds is dropped. It is for services that are asked only
    on demand: nobody may ask any more, for another account is in use by now, and the gauge would stay 1 for ever.
    """

    def __init__(
        self, name: str, metrics: Metrics, *,
        forget_after: float | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.name = name
        self.clock = clock
        self.answered_at = 0.0
        """Unix time of the last good answer; 0 before the first."""
        self._forget_after = forget_after
        self._on: dict[Outage, None] = {}
        for reason in REASONS:
            metrics.upstream_blocked.labels(name, reason).set_function(partial(self.blocked, reason))
        metrics.upstream_last_response.labels(name).set_function(lambda: self.answered_at)

    def outage(self, *, begins: str, ends: str, log: FilteringBoundLogger, **where: str) -> Outage:
        """Something that can fail on its own. `begins` and `ends` are the log lines, `where` is in both of them."""
        return Outage(self, begins=begins, ends=ends, log=log, where=where)

    def blocked(self, reason: str) -> bool:
        return any(outage.reason == reason for outage in self.outages())

    def outages(self) -> list[Outage]:
        """The outages that are on, the oldest first."""
        if self._forget_after is not None:
            for outage in [one for one in self._on if self.clock() - one.failed_at > self._forget_after]:
                outage.forget()
        return sorted(self._on, key=lambda outage: outage.since)

    def answered(self) -> None:
        self.answered_at = time.time()

    def began(self, outage: Outage) -> None:
        self._on[outage] = None

    def ended(self, outage: Outage) -> None:
        self._on.pop(outage, None)


class Outage:
    """Whether one thing of an upstream fails. Made by `Upstream.outage`."""

    __slots__ = ("_begins", "_ends", "_log", "_told", "_upstream", "_where", "error", "failed_at", "reason", "since")

    def __init__(
        self, upstream: Upstream, *, begins: str, ends: str, log: FilteringBoundLogger, where: dict[str, str]
    ) -> None:
        self.reason: str | None = None
        """Why it is on; None while it is not."""
        self.since = self.failed_at = 0.0
        self.error = ""
        self._told: tuple[str, ...] = ()
        self._upstream, self._begins, self._ends, self._log, self._where = upstream, begins, ends, log, where

    def begin(
        self, reason: str, error: str, *,
        since: float | None = None, message: str | None = None, edge: str = "", **details: Any,
    ) -> None:  # fmt: skip
        """A request failed. Logged if the outage begins with it, or goes on for another reason, message or edge.

        `since`: where the outage began before it was noticed, by the upstream's clock.
        """
        now = self._upstream.clock()
        if self.reason is None:
            self.since = now if since is None else since
            self._upstream.began(self)
        self.reason, self.error, self.failed_at = reason, error, now
        told = (reason, message or self._begins, edge)
        if told != self._told:
            self._told = told
            # Waiting mends an upstream that is unavailable; the other reasons need a person.
            write = self._log.warning if reason == UNAVAILABLE else self._log.error
            write(told[1], **self._where, reason=reason, error=error, **details)

    def end(self) -> None:
        """The upstream gave a good answer."""
        self._upstream.answered()
        if self.reason is not None:
            self._log.info(self._ends, **self._where, reason=self.reason, seconds=round(self.seconds, 1))
            self.forget()

    def forget(self) -> None:
        """Nobody will ask again: the outage is neither on nor over."""
        self.reason, self._told = None, ()
        self._upstream.ended(self)

    @property
    def seconds(self) -> float:
        """How long it has been on."""
        return self._upstream.clock() - self.since

    def sentence(self) -> str:
        """The outage, which is on, in words for /ready."""
        assert self.reason is not None
        where = f" ({', '.join(f'{name} {value}' for name, value in self._where.items())})" if self._where else ""
        return f"{self._upstream.name}{where} {_WORDS[self.reason]} for {self.seconds:.0f} s: {self.error}"

    def document(self) -> dict[str, Any]:
        """The outage, which is on, for /health."""
        return {
            "upstream": self._upstream.name, **self._where, "reason": self.reason,
            "seconds": round(self.seconds, 1), "error": self.error,
        }  # fmt: skip
