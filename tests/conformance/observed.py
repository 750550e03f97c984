"""What a run has seen: where decisions came from and what leaves of conditions gave, as the SDK itself shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.conformance.audiences import MATCHES

SOURCES = (
    "forced flag", "forced rule", "global holdout", "local holdout of an experiment",
    "local holdout of a delivery rule", "bypassed holdout, then decided", "whitelist", "sticky profile",
    "CMAB prediction", "CMAB failure", "experiment bucketing", "feature rollout", "targeted delivery rule",
    "everyone else", "nothing", "unknown flag",
)  # fmt: skip
LEAST_OF_A_SOURCE = 0.005
LEAST_OF_A_RESULT = 0.01
RESULTS = (True, False, None)
_NAMES = {True: "true", False: "false", None: "unknown"}


def source_of(result: Any, *, known: bool) -> str:
    """Where a flag's decision came from. `result` is that of the SDK's `get_decision_for_flag`, None if not called."""
    if result is None:
        return "forced flag" if known else "unknown flag"
    if result["error"]:
        return "CMAB failure"
    decision, last = result["decision"], result["reasons"][-1] if result["reasons"] else ""
    if decision.variation is None:
        return "nothing"
    if decision.source == "holdout":
        return _holdout(last)
    if "holdout_decision" in result:
        return "bypassed holdout, then decided"
    if last.endswith("in the forced decision map."):
        return "forced rule"
    return _experiment(decision, last) if decision.source == "feature-test" else _rollout(last)


def _holdout(last: str) -> str:
    if "' for experiment rule '" in last:
        return "local holdout of an experiment"
    return "local holdout of a delivery rule" if "' for delivery rule '" in last else "global holdout"


def _experiment(decision: Any, last: str) -> str:
    if decision.cmab_uuid is not None:
        return "CMAB prediction"
    if '" is forced in variation "' in last:
        return "whitelist"
    if last.endswith("from user profile."):
        return "sticky profile"
    return "feature rollout" if decision.experiment.type == "fr" else "experiment bucketing"


def _rollout(last: str) -> str:
    return "everyone else" if last.endswith("targeting rule Everyone Else.") else "targeted delivery rule"


@dataclass
class Tally:
    """Counts of a run, or of a part of one."""

    datafiles: int = 0
    requests: int = 0
    decisions: int = 0
    """Flags decided for requests; that is the number of comparisons."""
    refused: int = 0
    """Datafiles the SDK did not take, and we did."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Requests by the deviation they fall under."""
    sources: Counter[str] = field(default_factory=Counter)
    facts: Counter[str] = field(default_factory=Counter)
    """Requests by what became of profile and predictions."""
    leaves: Counter[tuple[str, bool | None]] = field(default_factory=Counter)
    """Evaluations of leaves by the SDK, by match type and result."""

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def too_rare(self) -> list[str]:
        """What was seen less often than it must be."""
        missing = [
            f"{source}: {self.sources[source]} of {self.decisions} decisions"
            for source in SOURCES
            if self.sources[source] < LEAST_OF_A_SOURCE * self.decisions or not self.sources[source]
        ]
        for match in MATCHES:
            of_match = sum(self.leaves[match, result] for result in RESULTS)
            missing += [
                f"{match} {_NAMES[result]}: {self.leaves[match, result]} of {of_match} leaves"
                for result in RESULTS
                if self.leaves[match, result] < LEAST_OF_A_RESULT * of_match or not self.leaves[match, result]
            ]
        return missing

    def table(self) -> Iterator[str]:
        yield f"{'source of the decision':34}{'decisions':>10}{'share of all':>14}"
        for source in SOURCES:
            yield f"{source:34}{self.sources[source]:>10}{_share(self.sources[source], self.decisions):>14}"
        yield ""
        yield "Leaves of conditions that the SDK evaluated; shares are of the evaluations of the same match type."
        yield f"{'match type':14}{'evaluations':>12}{'true':>9}{'false':>9}{'unknown':>9}"
        seen = sorted({match for match, _ in self.leaves} - set(MATCHES))
        for match in (*MATCHES, *seen):
            counts = [self.leaves[match, result] for result in RESULTS]
            shares = "".join(f"{_share(count, sum(counts)):>9}" for count in counts)
            yield f"{match:14}{sum(counts):>12}{shares}"
        yield ""
        yield from (f"{count} requests with {fact}" for fact, count in sorted(self.facts.items()))
        yield f"{self.datafiles} datafiles, {self.requests} requests; {self.refused} more datafiles only we took"
        for reason, count in self.left_out.most_common():
            yield f"{count} requests not compared: {reason}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"
