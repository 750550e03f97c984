"""`make bench`: what a request costs, beside the least any worker in Python could do and beside the most obvious one.

Everything is compared within one run: processor time of all processes, on Apache Kafka, with topics that were filled
beforehand. `--quick` takes three minutes, `--check` compares the ratios with their bounds and ends with 1 if one is
over. Linux, two cores or more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.benchmarks import bounds, micro
from tests.benchmarks.figures import Row, as_document, figure, show
from tests.benchmarks.loads import CACHED, MAIN, TWELVE, Load, cold, with_flags
from tests.benchmarks.machine import description
from tests.benchmarks.others import impressions_out, odp_events_out, paced, scaled
from tests.benchmarks.rig import PARTITIONS, Rig
from tests.benchmarks.rows import ALONE, CONTENDERS, DECIDE, Stand, rounds

PARTS = ("loads", "cold", "events", "latency", "scale", "steps")


class Bench:
    """One run."""

    def __init__(self, console: Console, *, quick: bool, count: int) -> None:
        self.console = console
        self.quick = quick
        self.count = count
        self.seconds = 2.0 if quick else 5.0
        self.rows: list[Row] = []
        self.steps: list[micro.Row] = []
        self.others: dict[str, Any] = {}

    def run(self, rig: Rig, parts: Sequence[str]) -> None:
        """Take the parts asked for, in their order."""
        for part in parts:
            getattr(self, f"_{part}")(rig)

    def _row(self, rig: Rig, load: Load, contenders: Sequence[str], *, partitions: int = PARTITIONS) -> None:
        title = load.title if partitions == PARTITIONS else f"{load.title}, {partitions} partitions"
        self.console.print(f"{title}: {self.count} x {len(contenders)} runs")
        with Stand(rig, load, partitions=partitions) as stand:
            taken = rounds(stand, contenders, count=self.count, seconds=self.seconds)
        self.rows.append(Row(title, {name: figure(found) for name, found in taken.items()}))

    def _loads(self, rig: Rig) -> None:
        for load in (CACHED, TWELVE) if self.quick else MAIN:
            self._row(rig, load, CONTENDERS if load is CACHED or not self.quick else ALONE)

    def _cold(self, rig: Rig) -> None:
        rig.stand_ins.control("odp", latency=0.03)
        for aliases in (50,) if self.quick else (1, 10, 50, 100):
            self._row(rig, cold(aliases), (DECIDE,) if self.quick else ALONE)
        rig.stand_ins.control("odp", latency=0.0)

    def _events(self, rig: Rig) -> None:
        self.console.print("impressions and ODP events on their way out")
        self.others["impressions_out"] = impressions_out(rig, CACHED, self.seconds)
        self.others["odp_events_out"] = odp_events_out(rig, self.seconds)

    def _latency(self, rig: Rig) -> None:
        fastest = next((row.figures[DECIDE].rate for row in self.rows if row.title == CACHED.title), 50_000.0)
        shares = (0.5,) if self.quick else (0.1, 0.5, 0.9)
        rates = {f"{share:.0%}": int(fastest * share) for share in shares}
        self.console.print(f"latency at {', '.join(f'{rate:,}/s' for rate in rates.values())}")
        self.others["latency"] = paced(rig, rates=rates, seconds=4 if self.quick else 10)

    def _scale(self, rig: Rig) -> None:
        if self.quick:
            return
        for partitions in (1, 100):
            self._row(rig, CACHED, (DECIDE,), partitions=partitions)
        for flags in (10, 100, 1000):
            self._row(rig, with_flags(flags), (DECIDE,))
        self.console.print("1, 2 and 4 workers of one group")
        self.others["workers"] = [scaled(rig, workers, self.seconds) for workers in (1, 2, 4)]

    def _steps(self, rig: Rig) -> None:
        self.console.print("single steps")
        self.steps = micro.rows(3 if self.quick else 9, self.quick)


def main() -> int:
    options = _arguments()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 170)
    machine = description()
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    bench = Bench(console, quick=options.quick, count=options.rounds or (1 if options.quick else 3))
    with Rig() as rig:
        bench.run(rig, options.parts)
    show(console, bench.rows, bench.steps)
    for name, found in bench.others.items():
        for line in found if isinstance(found, list) else [found]:
            console.print(f"{name}: " + ", ".join(f"{key} {_short(value)}" for key, value in line.items()))
    document = as_document(machine, bench.rows, bench.steps, bench.others)
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return bounds.report(document["ratios"], console) if options.check else 0


def _short(value: object) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else f"{value}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer loads, one round, short: three minutes")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of each load (default 3, quick 1)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="some of it only")
    parser.add_argument("--json", type=Path, help="write every figure to this file as well")
    parser.add_argument("--check", action="store_true", help="compare the ratios with bounds.json; 1 if one is over")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
