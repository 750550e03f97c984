"""Which rules the prediction service is asked about, and which go without: a circuit for each.

A rule that gets no answer, or answers that promise a better one later, is asked about by one user now and then: nobody
waits for what is down. Rules are apart, as one may hang or fail by itself. The whole service has an outage once a
circuit opens and no rule at all was answered meanwhile. `cmab/client.py` says what became of each question.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

import structlog

from pipeline.limits import Backoff
from pipeline.outage import UNAVAILABLE, Upstream

# One user's bad luck is not an outage; these in a row, of many asked at once, are.
_FAILURES = 5
_MOST_RULES = 1000
_TOLD_SECONDS = 30.0

log = structlog.get_logger("pipeline.cmab")


class Circuits:
    """Of the rules that failed last; at most a thousand.

    A question that finds out for others is `overdue` after so many seconds; at most `most_probes` do so at once.
    """

    def __init__(self, backoff: Backoff, *, overdue: float, most_probes: int, upstream: Upstream) -> None:
        self._backoff = backoff
        self._overdue = overdue
        self._most_probes = most_probes
        self._probing = 0
        self._rules: OrderedDict[str, _Circuit] = OrderedDict()
        self._untold = 0
        self._told_at = -_TOLD_SECONDS
        self._answered_at = time.monotonic()
        self._outage = upstream.outage(
            begins="the prediction service does not answer: decisions that need it are errors",
            ends="the prediction service answers again", log=log,
        )  # fmt: skip

    def holds(self, rule_id: str) -> bool:
        """Whether a question about the rule goes without an answer for now."""
        circuit = self._rules.get(rule_id)
        if circuit is None or not circuit.is_open:
            return False
        return self._probing >= self._most_probes or time.monotonic() < circuit.until

    def probes(self, rule_id: str) -> bool:
        """Whether the question that is asked now finds out for others. If so, `probed` is called when it has ended."""
        circuit = self._rules.get(rule_id)
        if circuit is None or not circuit.is_open:
            return False
        # The next one may ask when this one has failed, or is overdue.
        circuit.until = time.monotonic() + self._overdue
        self._probing += 1
        return True

    def probed(self) -> None:
        self._probing -= 1

    def answered(self, rule_id: str, *, well: bool) -> None:
        """The rule was answered: with a prediction, or else with what will not become one."""
        circuit = self._rules.pop(rule_id, None)
        self._answered_at = time.monotonic()
        self._outage.end()
        if well and circuit is not None and circuit.is_open and circuit.told:
            log.info("predictions are back", rule=rule_id)

    def failed(self, rule_id: str, *, probed: bool, reason: str = "no answer") -> None:
        """A question ended without an answer to go by. `probed`: it was to find out for others."""
        circuit = self._rules.pop(rule_id, None) or _Circuit(time.monotonic())
        self._rules[rule_id] = circuit
        if len(self._rules) > _MOST_RULES:
            self._rules.popitem(last=False)
        if circuit.is_open and not probed:
            return  # asked before it opened: says nothing new, and of those there may be hundreds
        circuit.failures += 1
        circuit.until = time.monotonic() + self._backoff.delay(max(1, circuit.failures - _FAILURES + 1))
        if circuit.is_open and self._answered_at < circuit.since:
            self._outage.begin(UNAVAILABLE, reason, since=circuit.since)

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


@dataclass(slots=True)
class _Circuit:
    """Open after some failures in a row; then one question at a time goes through, after pauses that grow."""

    since: float
    """When its first question of the series failed."""
    failures: int = 0
    until: float = 0.0
    told: bool = False
    """Whether the log knows of it."""

    @property
    def is_open(self) -> bool:
        return self.failures >= _FAILURES
