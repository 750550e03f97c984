"""`make mutants`: faults put into the evaluator one at a time, to see whether the tests notice.

A seeded sample of all single changes to `pipeline/decision` and `pipeline/project`; each is judged by their tests and
by a comparison with the official SDK. Ends with 1 below 95 %. Linux.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutation import report
from tests.mutation.finding import Mutant, sample, sources
from tests.mutation.judging import Suite, prepare
from tests.mutation.running import SURVIVED, Verdict, checked, verdicts
from tests.mutation.state import State

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipeline/decision", "pipeline/project")
# Slow for what they find that the others do not.
LAST = ("test_robustness.py",)
SDK = ("tests/conformance/test_agent.py", "tests/conformance/test_sdk.py::test_compares_versions_as_the_sdk")
LEAST = 95.0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--number", type=int, default=500, help="mutants to try (500)")
    parser.add_argument("--seed", type=int, default=1, help="another seed tries others (1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time (one for each core)")
    parser.add_argument("--state", type=Path, help="file of verdicts: what it holds is not tried again")
    parser.add_argument(
        "--deadline", type=float, default=30.0, help="seconds of processor time for each, at least (30)"
    )
    parser.add_argument("--decisions", type=int, default=3000, help="decisions compared with the SDK for each (3000)")
    parser.add_argument("--root", type=Path, default=ROOT, help="another project, with --package and --tests")
    parser.add_argument("--package", action="append", help="directory of code, below the root; may be given repeatedly")
    parser.add_argument("--tests", action="append", help="tests of that code, below the root; may be given repeatedly")
    return parser.parse_args(arguments)


def suite_of(chosen: argparse.Namespace) -> Suite:
    root = chosen.root.resolve()
    if chosen.package:
        return Suite(root, tuple(chosen.package), tuple(chosen.tests or ()))
    files = [
        path.relative_to(root).as_posix()
        for package in PACKAGES
        for path in sorted((root / "tests" / Path(package).name).glob("test_*.py"))
    ]
    fast = [file for file in files if not file.endswith(LAST)]
    return Suite(root, PACKAGES, (*fast, *SDK), chosen.decisions, tuple(file for file in files if file.endswith(LAST)))


def main(arguments: Sequence[str] | None = None) -> int:
    """1 if fewer than 95 % are found, 2 if the tests fail without any fault."""
    chosen = _arguments(arguments)
    suite = suite_of(chosen)
    texts = sources(suite.root, suite.packages)
    mutants = sample(texts, chosen.number, chosen.seed)
    prepare(suite)
    untouched = checked(suite)
    if untouched.outcome != SURVIVED:
        print(f"the tests fail without any mutant: {untouched.by}", file=sys.stderr)
        return 2
    started = time.monotonic()
    # A survivor on a slow machine must not pass for one that never ends.
    deadline = max(chosen.deadline, 3 * untouched.seconds)
    found = _tried(suite, mutants, texts, State(chosen.state, texts, suite.digest), max(1, chosen.jobs), deadline)
    print(*report.survivors(found), "", *report.table(found), sep="\n")
    share = report.percentage(found)
    print(f"{share:.1f} % found; seed {chosen.seed}, {time.monotonic() - started:.0f} s; {LEAST:.0f} % are needed")
    return int(share < LEAST)


def _tried(
    suite: Suite, mutants: list[Mutant], texts: dict[str, str], state: State, jobs: int, deadline: float
) -> dict[Mutant, Verdict]:
    found = {mutant: verdict for mutant in mutants if (verdict := state.verdict(mutant)) is not None}
    rest = [mutant for mutant in mutants if mutant not in found]
    for mutant, verdict in verdicts(suite, rest, texts, jobs=jobs, deadline=deadline):
        found[mutant] = verdict
        state.keep(mutant, verdict)
        if sys.stderr.isatty():
            left = sum(one.outcome == SURVIVED for one in found.values())
            print(f"\r{len(found)} of {len(mutants)}, {left} survived", end="", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
