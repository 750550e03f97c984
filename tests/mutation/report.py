"""What a run found: a table by file, and each survivor with its change."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from tests.mutation.accepted import reason_for
from tests.mutation.finding import Mutant
from tests.mutation.running import KILLED, SURVIVED, TIMED_OUT, Verdict

_FOUND = (KILLED, TIMED_OUT)


def percentage(found: Mapping[Mutant, Verdict]) -> float:
    """Of mutants that were killed or did not end."""
    return 100 * sum(verdict.outcome in _FOUND for verdict in found.values()) / len(found) if found else 100.0


def table(found: Mapping[Mutant, Verdict]) -> Iterator[str]:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for mutant, verdict in found.items():
        counts[mutant.file][verdict.outcome] += 1
        counts["all"][verdict.outcome] += 1
    yield f"{'file':36}{'mutants':>9}{'killed':>9}{'survived':>10}{'timed out':>11}{'found':>9}"
    for file in [*sorted(set(counts) - {"all"}), *(["all"] if counts else [])]:
        count = counts[file]
        share = 100 * sum(count[outcome] for outcome in _FOUND) / count.total()
        yield (
            f"{file:36}{count.total():>9}{count[KILLED]:>9}{count[SURVIVED]:>10}{count[TIMED_OUT]:>11}{share:>8.1f}%"
        )


def survivors(found: Mapping[Mutant, Verdict]) -> Iterator[str]:
    left = [mutant for mutant, verdict in found.items() if verdict.outcome == SURVIVED]
    for mutant in sorted(left, key=lambda one: (one.file, one.line, one.number)):
        yield f"{mutant.file}:{mutant.line} {mutant.function}"
        yield f"  - {mutant.before}"
        yield f"  + {mutant.after}"
        if reason := reason_for(mutant):
            yield f"    accepted: {reason}"
