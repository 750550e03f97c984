"""`python -m tests.conformance`: compare more generated cases with the SDK than the tests do, or one again."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.conformance.observed import Tally
from tests.conformance.running import Failure, load, replayed, run


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--number", type=int, default=100_000, help="decisions to compare (100000)")
    parser.add_argument("--seed", type=int, default=1, help="another seed makes other cases (1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (one for each core)")
    parser.add_argument("--keep", type=Path, help="directory for the file of a failing case (else it is printed)")
    parser.add_argument("--replay", type=Path, help="compare the case in this file, and nothing else")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """1 if anything differs."""
    chosen = _arguments(arguments)
    if chosen.replay is not None:
        return _replay(chosen.replay)
    started = time.perf_counter()
    whole = run(chosen.seed, chosen.number, max(1, chosen.jobs), _progress(chosen.number))
    seconds = time.perf_counter() - started
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(*whole.tally.table(), sep="\n")
    if whole.failure is not None:
        _keep(whole.failure, chosen.keep)
    print(
        f"{whole.tally.decisions} decisions compared, seed {chosen.seed}, {seconds:.1f} s: "
        f"{'no difference' if whole.failure is None else 'DIFFERENT'}"
    )
    return int(whole.failure is not None)


def _replay(path: Path) -> int:
    found = replayed(load(path.read_text("utf-8")))
    print(*(f"{one.what}: {one.text}" for one in found), f"{len(found)} differences", sep="\n")
    return int(bool(found))


def _progress(decisions: int) -> Callable[[Tally], None]:
    def show(tally: Tally) -> None:
        if sys.stderr.isatty():
            print(f"\r{tally.decisions} of {decisions} decisions", end="", file=sys.stderr, flush=True)

    return show


def _keep(failure: Failure, directory: Path | None) -> None:
    print(f"\n{failure.where}:", *(f"  {one.what}: {one.text}" for one in failure.found), sep="\n")
    document = json.dumps(failure.as_json(), ensure_ascii=False)
    if directory is None:
        print(document)
        return
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{failure.where.replace(',', '').replace(' ', '-')}.json"
    path.write_text(document + "\n", "utf-8")
    print(f"kept in {path}; again with: python -m tests.conformance --replay {path}")


if __name__ == "__main__":
    sys.exit(main())
