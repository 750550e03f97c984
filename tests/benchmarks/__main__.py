"""`make bench`: what a request costs, beside the least any worker in Python could do and beside the most obvious one.

Everything is compared within one run: processor time of all processes, on Apache Kafka, with topics that were filled
beforehand. `--quick` takes three minutes, `--check` compares the ratios with their bounds and ends with 1 if one is not
kept. A run that fails or is interrupted tells what it had until then. Linux, two cores or more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.sandbox.interrupts import Interrupts
from tests.benchmarks import bounds, micro
from tests.benchmarks.figures import Row, as_document, figure, show
from tests.benchmarks.loads import CACHED, Load, cold, with_flags
from tests.benchmarks.machine import description
from tests.benchmarks.others import cold_users, impressions_out, odp_events_out, paced, scaled
from tests.benchmarks.rig import PARTITIONS, Rig
from tests.benchmarks.rows import ALONE, DECIDE, Stand, loads, rounds
from tests.benchmarks.swap import SIZES, swapped

_ODP_SECONDS = 0.03
_COLD_RATE = 10_000
PARTS = ("loads", "cold", "events", "latency", "scale", "swap", "steps")


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
        for load, contenders in loads(quick=self.quick):
            self._row(rig, load, contenders)

    def _cold(self, rig: Rig) -> None:
        rig.stand_ins.control("odp", latency=_ODP_SECONDS)
        for aliases in (50,) if self.quick else (1, 10, 50, 100):
            self._row(rig, cold(aliases), ALONE)
        rig.stand_ins.control("odp", latency=0.0)
        seconds = 2.0 if self.quick else 10.0
        self.console.print(f"{_COLD_RATE:,} new users a second for {seconds:g} s")
        self.others["cold_users"] = cold_users(rig, rate=_COLD_RATE, seconds=seconds, odp_latency=_ODP_SECONDS)

    def _events(self, rig: Rig) -> None:
        self.console.print("impressions and ODP events on their way out")
        self.others["impressions_out"] = impressions_out(rig, CACHED, self.seconds)
        self.others["odp_events_out"] = odp_events_out(rig, self.seconds)

    def _latency(self, rig: Rig) -> None:
        measured = [row.figures[DECIDE].rate for row in self.rows if row.title == CACHED.title]
        fastest = measured[0] if measured else _fastest(rig, self.seconds)
        shares = (0.5,) if self.quick else (0.1, 0.5, 0.9)
        rates = {f"{share:.0%}": int(fastest * share) for share in shares}
        self.console.print(f"latency at {', '.join(f'{rate:,}/s' for rate in rates.values())}")
        # Extended as they come, so that those before a failure stay.
        self.others["latency"] = []
        self.others["latency"].extend(paced(rig, rates=rates, seconds=2 if self.quick else 8))

    def _scale(self, rig: Rig) -> None:
        if self.quick:
            return
        for partitions in (1, 100):
            self._row(rig, CACHED, ALONE, partitions=partitions)
        for flags in (10, 100, 1000):
            self._row(rig, with_flags(flags), ALONE)
        self.console.print("1, 2 and 4 workers of one group")
        self.others["workers"] = []
        self.others["workers"].extend(scaled(rig, workers, self.seconds) for workers in (1, 2, 4))

    def _swap(self, rig: Rig) -> None:
        self.console.print("datafiles replaced under load")
        swaps = 3 if self.quick else 20
        self.others["swap"] = [swapped(rig.stand_ins, octets, swaps=swaps) for octets in SIZES]

    def _steps(self, rig: Rig) -> None:
        self.console.print("single steps")
        self.steps = micro.rows(3 if self.quick else 9, self.quick)

    def told(self, machine: Mapping[str, str], *, complete: bool) -> dict[str, Any]:
        """Show what there is; the same as a document."""
        show(self.console, self.rows, self.steps)
        for name, found in self.others.items():
            for line in found if isinstance(found, list) else [found]:
                self.console.print(f"{name}: " + ", ".join(f"{key} {_short(value)}" for key, value in line.items()))
        return as_document(machine, self.rows, self.steps, self.others) | {"complete": complete}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; the exit code."""
    options = _arguments(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 170)
    machine = description()
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    bench = Bench(console, quick=options.quick, count=options.rounds or (1 if options.quick else 3))
    complete, document = False, {}
    with Interrupts() as interrupts:
        try:
            with Rig() as rig, interrupts.allowed():
                bench.run(rig, options.parts or PARTS)
            complete = True
        except KeyboardInterrupt:
            console.print("interrupted; everything was stopped")
        finally:
            # One failure late in a run must not cost the figures of an hour.
            document = bench.told(machine, complete=complete)
            if options.json is not None:
                options.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
        if not complete:
            return interrupts.status
    return bounds.report(document["ratios"], console) if options.check else 0


def _fastest(rig: Rig, seconds: float) -> float:
    """Requests a second of the load that is paced, where no row has measured them."""
    with Stand(rig, CACHED) as stand:
        return stand.run(DECIDE, seconds)[0].rate


def _short(value: object) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else f"{value}"


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer loads, one round, short: three minutes")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of each load (default 3, quick 1)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="some of it only")
    parser.add_argument("--json", type=Path, help="write every figure to this file as well")
    parser.add_argument(
        "--check", action="store_true", help="compare the ratios with bounds.json; 1 if one is not kept"
    )
    options = parser.parse_args(arguments)
    if options.check and options.parts:
        parser.error("--check needs every part, because there are bounds on several: leave --parts out")
    if options.json is not None and (why := _unwritable(options.json)):
        parser.error(f"--json {options.json} cannot be written: {why}")
    return options


def _unwritable(file: Path) -> str | None:
    """Why a file cannot be written, tried before anything is started. An existing one stays as it is."""
    new = not file.exists()
    try:
        file.open("ab").close()
    except OSError as error:
        return error.strerror
    if new:
        file.unlink()
    return None


if __name__ == "__main__":
    sys.exit(main())
