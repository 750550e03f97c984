"""A difference planted on purpose is found, made small, kept, and seen again when it is replayed."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.project import conditions
from pipeline.project.matchers import MATCHERS
from tests.conformance.__main__ import main
from tests.conformance.comparison import Comparison
from tests.conformance.requests import Case
from tests.conformance.running import Failure, cases, replayed, run
from tests.conformance.shrinking import shrunk


@pytest.fixture
def wrong_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ge` is taken for `gt`."""
    monkeypatch.setattr(conditions, "MATCHERS", {**MATCHERS, "ge": MATCHERS["gt"]})


@pytest.fixture
def failure(wrong_order: None) -> Failure:
    found = run(11, 20_000, 1, lambda tally: None).failure
    assert found is not None
    return found


def _leaves(document: Any) -> list[Any]:
    if isinstance(document, list):
        return [leaf for item in document for leaf in _leaves(item)]
    if isinstance(document, dict):
        inner = [leaf for item in document.values() for leaf in _leaves(item)]
        return [*inner, document] if "match" in document else inner
    return _leaves(json.loads(document)) if isinstance(document, str) and document.startswith(("[", "{")) else []


def test_what_is_left_is_what_differs(failure: Failure) -> None:
    datafile = failure.case.datafile
    (leaf,) = _leaves(datafile)
    assert leaf["match"] == "ge"
    assert failure.case.request["userAttributes"][leaf["name"]] == leaf["value"]
    assert len(datafile["featureFlags"]) == 1
    assert len(json.dumps(failure.as_json()["case"])) < 1500
    assert failure.case.profile is None
    assert failure.case.segments is None


def test_a_kept_case_is_replayed(failure: Failure, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = json.loads(json.dumps(failure.as_json()))
    assert [one.text for one in replayed(kept)] == kept["differences"] != []
    monkeypatch.undo()
    assert replayed(kept) == []


@pytest.mark.usefixtures("wrong_order")
def test_the_command_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--number", "20000", "--seed", "11", "--jobs", "1", "--keep", str(tmp_path)]) == 1
    assert "DIFFERENT" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    assert main(["--replay", str(path)]) == 1
    monkeypatch.undo()
    assert main(["--replay", str(path)]) == 0
    assert capsys.readouterr().out.endswith("\n0 differences\n")


@pytest.mark.usefixtures("wrong_order")
def test_the_command_prints_it_as_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--number", "20000", "--seed", "11", "--jobs", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    (document,) = (json.loads(line) for line in lines if line.startswith("{"))
    assert replayed(document) != []


def test_the_command_prints_table_seed_and_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--number", "300", "--seed", "5", "--jobs", "2"]) == 0
    text = capsys.readouterr().out
    assert "local holdout of a delivery rule" in text
    assert "semver_le" in text
    assert ", seed 5, " in text.splitlines()[-1]
    assert text.endswith(": no difference\n")


@pytest.mark.parametrize("terminal", [True, False])
def test_the_command_shows_progress_on_a_terminal(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    assert main(["--number", "10", "--seed", "5", "--jobs", "1"]) == 0
    assert screen.getvalue().endswith(" of 10 decisions\n") is terminal
    assert bool(screen.getvalue()) is terminal


def test_a_case_that_does_not_differ_stays_as_it_is() -> None:
    datafile = {"version": "4", "revision": "1", "accountId": "a", "projectId": "p", "featureFlags": []}
    case = Case(datafile, {"userId": "u"})
    assert shrunk(Comparison(), case, {"flags"}) == case


def test_parts_and_seeds_do_not_repeat_each_other() -> None:
    made = [json.dumps(document) for seed in ("1 0", "1 1", "2 0") for document, _ in cases(seed)]
    assert len(set(made)) == len(made)
    assert made[: len(made) // 3] == [json.dumps(document) for document, _ in cases("1 0")]
