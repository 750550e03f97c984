"""A run that fails tells what it had; what cannot work is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

import pytest

from tests.benchmarks import __main__ as run
from tests.benchmarks import others, rows
from tests.benchmarks.figures import Row, figure
from tests.benchmarks.loads import CACHED
from tests.benchmarks.rig import Rig, Taken


class _NoRig:
    """In place of the broker and all the rest."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _BrokenBench(run.Bench):
    """Has one row when it fails."""

    def run(self, rig: object, parts: object) -> None:
        taken = Taken(us=5.0, rate=1.0, busy=1.0, peak_bytes=1)
        self.rows.append(Row("a load", {rows.DECIDE: figure([[taken]]), rows.FLOOR: figure([[taken]])}))
        raise RuntimeError("late in the run")


def test_a_failure_late_in_a_run_loses_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "Rig", _NoRig)
    monkeypatch.setattr(run, "Bench", _BrokenBench)
    file = tmp_path / "figures.json"
    with pytest.raises(RuntimeError, match="late in the run"):
        run.main(["--json", str(file)])
    written = json.loads(file.read_text("utf-8"))
    assert written["complete"] is False
    assert written["ratios"] == {"a load: decide / floor": 1.0, "a load: memory of decide / floor": 1.0}
    assert "a load" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--json", "/missing/figures"], "--json /missing/figures cannot be written: No such file or directory"),
        (["--json", "/"], "--json / cannot be written: Is a directory"),
        (["--check", "--parts", "loads"], "--check needs every part"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "Rig", None)
    with pytest.raises(SystemExit) as ended:
        run.main(arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_the_attempt_to_write_leaves_no_file_and_keeps_one(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.write_text("the figures of the run before")
    assert run._unwritable(new) is run._unwritable(old) is None
    assert not new.exists()
    assert old.read_text() == "the figures of the run before"


class _FullRig(Rig):
    """A broker that takes three topics and no fourth."""

    def __init__(self) -> None:
        super().__init__()
        self.topics: list[str] = []

    def new_topic(self, name: str, partitions: int = 0) -> str:
        if len(self.topics) == 3:
            raise TimeoutError("no fourth topic")
        self.topics.append(name)
        return name

    def delete_topics(self, *topics: str) -> None:
        for topic in topics:
            self.topics.remove(topic)


def test_a_stand_that_cannot_be_set_up_removes_its_topics() -> None:
    rig = _FullRig()
    with pytest.raises(TimeoutError, match="no fourth topic"):
        rows.Stand(rig, CACHED, filled=False).__enter__()
    assert rig.topics == []


def test_latencies_of_a_late_generator_are_marked() -> None:
    assert others._mark(0.051) == {"note": "the generator was late"}
    assert others._mark(0.049) == {}
