"""Which rules the prediction service is asked about, and which go without: a circuit for each.

A rule that gets no answer, or answers that promise a better one later, is asked about by one user now and then: nobody
waits for what is down. Rules are apart, as one may hang or fail by itself; an outage of the whole service is seen once
for each. `cmab/client.py` says what became of each question.
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
    """Of the rules that failed last; at most a thousand."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._rules: OrderedDict[str, _Circuit] = OrderedDict()
        self._untold = 0
        self._told_at = -_TOLD_SECONDS

    def holds(self, rule_id: str) -> bool:
        """Whether a question about the rule goes without an answer for now."""
        circuit = self._rules.get(rule_id)
        return circuit is not None and circuit.holds()

    def probes(self, rule_id: str) -> bool:
        """Whether the question that is asked now finds out for others. It may then be asked to its last try."""
        circuit = self._rules.get(rule_id)
        return circuit is not None and circuit.probes()

    def answered(self, rule_id: str) -> None:
        """The rule was answered, be it with a refusal."""
        circuit = self._rules.pop(rule_id, None)
        if circuit is not None and circuit.is_open and circuit.told:
            log.info("predictions are back", rule=rule_id)

    def failed(self, rule_id: str, *, probed: bool) -> None:
        """A try brought no answer, or one that promises a better one. `probed`: it was to find out for others."""
        circuit = self._rules.pop(rule_id, None) or _Circuit(self._backoff)
        self._rules[rule_id] = circuit
        if len(self._rules) > _MOST_RULES:
            self._rules.popitem(last=False)
        circuit.failed(probed=probed)

    def tell(self, rule_id: str, reason: str) -> None:
        """Log that there is no prediction, for whatever reason, or count it for the next line: two a minute at most."""
        self._untold += 1
        if time.monotonic() - self._told_at < _TOLD_SECONDS:
            return
        log.warning(
            "predictions fail: decisions that need one are errors", reason=reason, rule=rule_id, failures=self._untold
        )
        self._told_at, self._untold = time.monotonic(), 0
        if rule_id in self._rules:
            self._rules[rule_id].told = True


class _Circuit:
    """Open after some failures in a row; then one question at a time goes through, after pauses that grow."""

    __slots__ = ("_backoff", "_failures", "_until", "told")

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._failures = 0
        self._until = 0.0
        self.told = False
        """Whether the log knows of it."""

    @property
    def is_open(self) -> bool:
        return self._failures >= _FAILURES

    def holds(self) -> bool:
        return self.is_open and time.monotonic() < self._until

    def probes(self) -> bool:
        if self.is_open:
            # The next one may ask when this one has failed, or is overdue.
            self._until = time.monotonic() + self._backoff.cap
        return self.is_open

    def failed(self, *, probed: bool) -> None:
        if self.is_open and not probed:
            return  # asked before it opened: says nothing new, and of those there may be hundreds
        self._failures += 1
        self._until = time.monotonic() + self._backoff.delay(max(1, self._failures - _FAILURES + 1))
