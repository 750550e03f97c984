"""Who is asked for predictions, and who goes without: circuits for the service and for each rule.

A service that gives no answer at all is asked by one user now and then, and so is a rule that it answers with errors:
nobody waits for what is down, and one rule's fault is no other's. `cmab/client.py` says what became of each question.
"""

from __future__ import annotations

import time
from collections import OrderedDict

import structlog

from pipeline.limits import Backoff

# One user's bad luck is not an outage; these in a row, of many asked at once, are.
_FAILURES = 5
_MOST_RULES = 1000
_TOLD_SECONDS = 30.0

log = structlog.get_logger("pipeline.cmab")


class Circuits:
    """Of the service, and of the rules it failed for last; at most a thousand of those."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._service = _Circuit(backoff)
        self._rules: OrderedDict[str, _Circuit] = OrderedDict()
        self._untold = 0
        self._told_at = -_TOLD_SECONDS

    def holds(self, rule_id: str) -> bool:
        """Whether a question about the rule goes without an answer for now."""
        now = time.monotonic()
        return any(circuit.holds(now) for circuit in self._of(rule_id))

    def probes(self, rule_id: str) -> bool:
        """Whether the question that is asked now finds out for others. It may then be asked to its last try."""
        now, found = time.monotonic(), False
        for circuit in self._of(rule_id):
            found |= circuit.probes(now)
        return found

    def answered(self, rule_id: str, *, well: bool) -> None:
        """There was an answer; not `well`: one that promises a better one later (408, 425, 429, 5xx)."""
        if self._service.closes():
            log.info("predictions are back", failures=self._tell())
        if well and (circuit := self._rules.pop(rule_id, None)) is not None and circuit.closes():
            log.info("predictions are back", failures=self._tell(), rule=rule_id)

    def failed(self, rule_id: str, reason: str, *, silent: bool, probed: bool) -> None:
        """The last try brought no prediction. `silent`: it brought no answer of any kind."""
        if silent:
            self._service.failed(probed=probed)
        else:
            if rule_id not in self._rules and len(self._rules) >= _MOST_RULES:
                self._rules.popitem(last=False)
            self._rules.setdefault(rule_id, _Circuit(self._backoff)).failed(probed=probed)
        self.told(rule_id, reason)

    def told(self, rule_id: str, reason: str) -> None:
        """A failure of whatever kind is logged, or counted for the next line: not more than two a minute."""
        self._untold += 1
        if time.monotonic() - self._told_at >= _TOLD_SECONDS:
            self._told_at = time.monotonic()
            log.warning(
                "predictions fail: decisions that need one are errors",
                reason=reason, rule=rule_id, failures=self._tell(),
            )  # fmt: skip

    def _tell(self) -> int:
        untold, self._untold = self._untold, 0
        return untold

    def _of(self, rule_id: str) -> tuple[_Circuit, ...]:
        own = self._rules.get(rule_id)
        return (self._service,) if own is None else (self._service, own)


class _Circuit:
    """Open after some failures in a row; then one question at a time goes through, after pauses that grow."""

    __slots__ = ("_backoff", "_failures", "_until")

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._failures = 0
        self._until = 0.0

    def holds(self, now: float) -> bool:
        return self._failures >= _FAILURES and now < self._until

    def probes(self, now: float) -> bool:
        if self._failures < _FAILURES:
            return False
        # The next one may ask when this one has failed, or is overdue.
        self._until = now + self._backoff.cap
        return True

    def failed(self, *, probed: bool) -> None:
        if self._failures >= _FAILURES and not probed:
            return  # asked before it opened: says nothing new, and of those there may be hundreds
        self._failures += 1
        self._until = time.monotonic() + self._backoff.delay(max(1, self._failures - _FAILURES + 1))

    def closes(self) -> bool:
        """Forget the failures; whether it was open."""
        was_open, self._failures = self._failures >= _FAILURES, 0
        return was_open
