"""What the runs gave: medians with their spread, the ratios that a bound can be set on, a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.micro import Row as Step
from tests.benchmarks.rig import Taken
from tests.benchmarks.rows import ALONE, BOTH, CONTENDERS, DECIDE, FLOOR, NAIVE, NAIVE_EVENTS, TWO_HOPS

# Of what is set against what, for every load where both ran.
_RATIOS = (
    (DECIDE, FLOOR), (BOTH, FLOOR), (BOTH, TWO_HOPS), (NAIVE, DECIDE), (NAIVE_EVENTS, BOTH), (TWO_HOPS, FLOOR),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figure:
    """One contender on one load, over all rounds."""

    us: float
    """Processor time for a request, all its processes together: the median of the rounds, microseconds."""
    least: float
    most: float
    rate: float
    """Requests a second of its slowest part, median."""
    peak_mb: float
    """Most memory of any of its processes in any round, 10^6 bytes."""
    waited: bool
    """Its core was idle for more than 15 % of the time: the rate is the broker's or a service's, not its own."""
    errors: int = 0
    """Requests answered with an error, in all rounds: a figure with many of them says nothing."""


def figure(rounds: Sequence[Sequence[Taken]]) -> Figure:
    """Over the rounds of one contender."""
    totals = [sum(part.us for part in parts) for parts in rounds]
    return Figure(
        us=median(totals), least=min(totals), most=max(totals),
        rate=median(min(part.rate for part in parts) for parts in rounds),
        peak_mb=max(part.peak_bytes for parts in rounds for part in parts) / 1e6,
        waited=median(sum(part.busy for part in parts) for parts in rounds) < 0.85,
        errors=sum(part.errors for parts in rounds for part in parts),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One load."""

    title: str
    figures: Mapping[str, Figure]

    def ratios(self) -> dict[str, float]:
        """`load: one / other` -> how many times the processor time."""
        found = self.figures
        ratios = {
            f"{self.title}: {one} / {other}": found[one].us / found[other].us
            for one, other in _RATIOS
            if one in found and other in found
        }
        if DECIDE in found and FLOOR in found:
            ratios[f"{self.title}: memory of {DECIDE} / {FLOOR}"] = found[DECIDE].peak_mb / found[FLOOR].peak_mb
        return ratios


def as_document(
    machine: Mapping[str, str], rows: Iterable[Row], steps: Iterable[Step], others: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything, as it is written with --json; `ratios` is what bounds are set on."""
    rows, steps = list(rows), list(steps)
    ratios = {name: value for row in rows for name, value in row.ratios().items()}
    ratios |= {f"{step.name}: {step.theirs} / ours": step.ratio for step in steps if step.ratio}
    ratios |= {
        f"a datafile of {one['megabytes']:.1g} MB replaced under load: held / orjson.loads": (
            one["held_ms_median"] / one["loads_ms"]
        )
        for one in others.get("swap", ())
    }
    return {
        "machine": dict(machine),
        "rows": [{"title": row.title, **{name: asdict(one) for name, one in row.figures.items()}} for row in rows],
        "steps": [{**asdict(step), "ratio": step.ratio} for step in steps],
        "peak_mb": max((row.figures[DECIDE].peak_mb for row in rows if DECIDE in row.figures), default=None),
        **others,
        "ratios": ratios,
    }


def show(console: Console, rows: Sequence[Row], steps: Sequence[Step]) -> None:
    """The tables on a terminal."""
    for title, names in (("alone", ALONE), ("until its impressions are acknowledged", CONTENDERS[len(ALONE) :])):
        shown = [row for row in rows if any(name in row.figures for name in names)]
        if not shown:
            continue
        table = Table(title=f"Processor time for a request, us: {title}")
        table.add_column("load", no_wrap=True)
        for name in names:
            table.add_column(name, justify="right")
        ours = names[1]
        for head in ("of floor", "less than naive", "requests/s", "MB"):
            table.add_column(head, justify="right")
        for row in shown:
            table.add_row(row.title, *_cells(row, names, ours))
        console.print(table)
    if steps:
        table = Table(title="Single steps, us: ours, theirs, how many times less")
        for column in ("step", "ours", "theirs", "times", "whose"):
            table.add_column(column, justify="left" if column in ("step", "whose") else "right")
        for step in steps:
            theirs = (f"{step.theirs_us:,.2f}", f"{step.ratio:.1f}") if step.theirs_us else ("", "")
            table.add_row(step.name, f"{step.ours_us:,.2f}", *theirs, step.theirs)
        console.print(table)


def _cells(row: Row, names: Sequence[str], ours: str) -> list[str]:
    cells = [_spread(row.figures[name]) if name in row.figures else "" for name in names]
    mine = row.figures.get(ours)
    if mine is None:
        return cells
    floor, _, naive = (row.figures.get(name) for name in names)
    cells.append(f"{mine.us / floor.us:.2f}" if floor else "")
    cells.append(f"{naive.us / mine.us:.1f}" if naive else "")
    marks = [" (it waited)"] * mine.waited + [f" ({mine.errors:,} errors)"] * bool(mine.errors)
    cells.append(f"{mine.rate:,.0f}" + "".join(marks))
    cells.append(f"{mine.peak_mb:.0f}")
    return cells


def _spread(one: Figure) -> str:
    if one.least == one.most:
        return f"{one.us:.1f}"
    return f"{one.us:.1f} [{one.least:.1f}-{one.most:.1f}]"
