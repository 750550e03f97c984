"""A ratio beyond its bound is named; so is a bound whose ratio nobody measured."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.benchmarks import bounds, micro
from tests.benchmarks.figures import Row, as_document, figure
from tests.benchmarks.loads import CACHED
from tests.benchmarks.rig import Taken
from tests.benchmarks.rows import loads
from tests.benchmarks.swap import SIZES

BOUNDS = {"a / b": {"at_most": 2.0}, "c / d": {"at_least": 10.0}}


def test_what_is_within_its_bound_and_the_slack_is_not_named() -> None:
    assert bounds.broken({"a / b": 2.19, "c / d": 9.1}, BOUNDS, 0.1) == []


def test_what_is_beyond_is_named_with_figure_and_bound() -> None:
    assert bounds.broken({"a / b": 2.21, "c / d": 8.9}, BOUNDS, 0.1) == [
        "a / b: 2.21, at most 2 (and 10%)",
        "c / d: 8.90, at least 10 (less 10%)",
    ]


def test_a_ratio_that_was_not_measured_is_no_success() -> None:
    assert bounds.broken({"a / b": 1.0}, BOUNDS, 0.1) == ["c / d: not measured"]


def test_every_bound_is_on_a_ratio_that_a_quick_run_gives() -> None:
    taken = Taken(us=1.0, rate=1.0, busy=1.0, peak_bytes=1)
    rows = [Row(load.title, {name: figure([[taken]]) for name in contenders}) for load, contenders in loads(quick=True)]
    given = {name for row in rows for name in row.ratios()}
    swaps = [{"megabytes": octets / 10**6, "loads_ms": 1.0, "held_ms_median": 1.0} for octets in SIZES]
    given |= set(as_document({}, [], [], {"swap": swaps})["ratios"])
    given |= {f"{case.name}: {case.says} / ours" for case in micro.cases(micro.QUICK)}
    named = json.loads(bounds.FILE.read_text("utf-8"))["bounds"]
    assert set(named) - given == set()
    assert all(set(bound) - {"target"} in ({"at_most"}, {"at_least"}) for bound in named.values())


def test_a_target_that_is_not_reached_is_said_and_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bounds.json"
    file.write_text('{"slack": 0.1, "bounds": {"a / b": {"at_least": 6.0, "target": 8.0}, "c / d": {"at_most": 2.0}}}')
    monkeypatch.setattr(bounds, "FILE", file)
    console = Console(file=StringIO(), width=120)
    assert bounds.report({"a / b": 6.1, "c / d": 1.0}, console) == 0
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue().splitlines() == [
        "target not reached yet: a / b: 6.10, at least 8 (less 0%)", "all 2 bounds hold",
    ]  # fmt: skip


def test_answers_that_are_errors_are_counted_over_all_rounds() -> None:
    one, other = (Taken(us=1.0, rate=1.0, busy=1.0, peak_bytes=1, errors=errors) for errors in (3, 4))
    assert figure([[one], [other]]).errors == 7


def test_parts_are_added_up_and_rounds_are_not() -> None:
    cheap, dear = (Taken(us=us, rate=1e6 / us, busy=0.5, peak_bytes=int(us) * 10**6) for us in (4.0, 6.0))
    found = figure([[cheap, dear], [dear, dear], [cheap, cheap]])
    assert (found.us, found.least, found.most) == (10.0, 8.0, 12.0)
    assert found.rate == 1e6 / 6.0
    assert (found.peak_mb, found.waited) == (6.0, False)


def test_a_contender_that_waited_is_marked() -> None:
    assert figure([[Taken(us=4.0, rate=1.0, busy=0.6, peak_bytes=1)]]).waited


def test_the_loads_make_every_user_a_key_of_its_own_and_all_qualify() -> None:
    keys = [key for key, _ in zip((key for key, _ in CACHED.values()), range(2500), strict=False)]
    assert len(set(keys)) == 2000
