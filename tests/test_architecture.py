"""What holds for the whole tree and no single module can promise: budgets, mirrors, nothing declared in vain.

Who may import whom is checked by import-linter (`make check`, contracts in pyproject.toml).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pydantic import BaseModel

from pipeline.metrics import BulkHistogram, Metrics
from pipeline.settings import sections

ROOT = Path(__file__).parents[1]
PIPELINE = ROOT / "pipeline"
TESTS = ROOT / "tests"
LONGEST_FILE = 400
LONGEST_FUNCTION = 40
# Directories of tests that mirror no package: they test the whole, or hold data.
WHOLE = {"conformance", "flows", "faults", "benchmarks", "data", "k8s", "mutation"}
GENERATED = {".git", ".venv", "__pycache__", "dist", "build", "node_modules"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def sources(directory: Path) -> dict[Path, str]:
    return {path: path.read_text("utf-8") for path in sorted(directory.rglob("*.py"))}


@cache
def attributes_read(*, besides: Path) -> frozenset[str]:
    """Names read as `something.name` anywhere in the package but where they are declared, a file or a directory."""
    trees = (ast.parse(text) for path, text in sources(PIPELINE).items() if not path.is_relative_to(besides))
    nodes = (node for tree in trees for node in ast.walk(tree))
    return frozenset(node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load))


def committed() -> Iterator[Path]:
    """The files of the project, without what is generated (a checkout need not have git)."""
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        generated = any(part in GENERATED or part.endswith(("_cache", ".egg-info")) for part in parts)
        if path.is_file() and not generated and parts[0] not in (".hypothesis", ".coverage"):
            yield path


def named(path: Path, line: int = 0) -> str:
    return f"{path.relative_to(ROOT)}{f':{line}' if line else ''}"


def lines_matching(pattern: str, files: Iterator[Path] | list[Path]) -> list[str]:
    found = []
    for path in files:
        text = path.read_bytes().decode("utf-8", "replace")
        found += [named(path, text.count("\n", 0, match.start()) + 1) for match in re.finditer(pattern, text)]
    return found


def function_lines(function: Function) -> int:
    """Lines from `def` to the last statement, the signature counted, decorators and docstring not."""
    assert function.end_lineno is not None
    length = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        assert docstring.end_lineno is not None
        length -= docstring.end_lineno - docstring.lineno + 1
    return length


def test_no_file_is_longer_than_its_budget() -> None:
    lengths = {named(path): text.count("\n") for path, text in sources(PIPELINE).items()}
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_no_function_is_longer_than_its_budget() -> None:
    too_long = {}
    for path, text in sources(PIPELINE).items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, Function) and (lines := function_lines(node)) > LONGEST_FUNCTION:
                too_long[f"{named(path, node.lineno)} {node.name}"] = lines
    # The list of all metrics is one table; cutting it would only scatter it.
    assert {name: lines for name, lines in too_long.items() if not name.startswith("pipeline/metrics.py")} == {}


def test_every_module_says_what_it_is() -> None:
    silent = [named(path) for path, text in sources(PIPELINE).items() if ast.get_docstring(ast.parse(text)) is None]
    assert silent == []


def test_every_test_directory_mirrors_a_package() -> None:
    directories = {path.parent.relative_to(TESTS) for path in sources(TESTS) if path.parent != TESTS}
    strays = [
        str(directory)
        for directory in directories
        if directory.parts[0] not in WHOLE and not (PIPELINE / directory / "__init__.py").is_file()
    ]
    assert strays == []


def test_every_test_directory_is_a_package() -> None:
    # Without it two test modules of one name in different directories cannot be collected together.
    directories = {path.parent for path in TESTS.rglob("test_*.py")}
    assert [named(directory) for directory in directories if not (directory / "__init__.py").is_file()] == []


def test_nothing_is_left_to_be_done_later() -> None:
    files = [*sources(PIPELINE), *sources(TESTS), ROOT / "Makefile", ROOT / ".ci" / "run", ROOT / "pyproject.toml"]
    assert lines_matching(r"\b(?:TO[D]O|FIX[M]E|X[X]X)\b", files) == []


def sleeps_outside_loops(tree: ast.AST) -> list[int]:
    """Lines that call `time.sleep` other than between two looks at a condition, in a `while`."""
    polling = {call for loop in ast.walk(tree) if isinstance(loop, ast.While) for call in ast.walk(loop)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node not in polling]
    return [call.lineno for call in calls if ast.unparse(call.func) == "time.sleep"]


def test_no_test_waits_by_the_clock() -> None:
    # A test that sleeps for "long enough" is slow when it is right and wrong when the machine is slow.
    found = [
        named(path, line) for path, text in sources(TESTS).items() for line in sleeps_outside_loops(ast.parse(text))
    ]
    assert found == []


def changes_of_signals(tree: ast.AST) -> list[int]:
    """Lines by which the tests, or what they start, would hear other signals than a command in a terminal."""
    of_this_process = {"signal.signal", "signal.pthread_sigmask", "signal.siginterrupt"}
    of_a_child = {"preexec_fn", "restore_signals"}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if ast.unparse(call.func) in of_this_process or of_a_child & {keyword.arg for keyword in call.keywords}
    ]


def test_nothing_but_one_module_decides_which_signals_tests_hear() -> None:
    # In all others a start is like any other: whatever ignores or blocks signals above the tests, the child hears them.
    own = TESTS / "processes.py"
    processes = TESTS / "benchmarks" / "contenders"  # programs of their own, each the whole of a process
    found = {
        path: changes_of_signals(ast.parse(text))
        for path, text in sources(TESTS).items()
        if processes not in path.parents
    }
    assert found.pop(own) != []
    assert [named(path, line) for path, lines in found.items() for line in lines] == []


def test_every_metric_is_set_somewhere() -> None:
    names = [
        name
        for name, value in vars(Metrics(CollectorRegistry())).items()
        if isinstance(value, BulkHistogram | Counter | Gauge | Histogram)
    ]
    assert names, "no metric was found: this test is out of date"
    assert [name for name in names if name not in attributes_read(besides=PIPELINE / "metrics.py")] == []


def _sections() -> list[type[BaseModel]]:
    models = [value for value in vars(sections).values() if isinstance(value, type) and issubclass(value, BaseModel)]
    found = [model for model in models if model.__module__ == sections.__name__]
    assert found, "no section was found: this test is out of date"
    return found


@pytest.mark.parametrize("section", _sections(), ids=lambda section: section.__name__)
def test_every_setting_is_read_somewhere(section: type[BaseModel]) -> None:
    read = attributes_read(besides=PIPELINE / "settings")
    assert [name for name in section.model_fields if name not in read] == []


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def test_every_setting_is_described() -> None:
    undescribed = [
        f"{section.__name__}.{name}"
        for section in _sections()
        for name, field in section.model_fields.items()
        if not field.description and not _is_section(field.annotation)
    ]
    assert undescribed == []


def test_no_file_names_a_place_outside_the_project() -> None:
    machine = r"(?<![\w.])/(?:wor[k]/|hom[e]/\w|roo[t]/|User[s]/\w)"
    registries = r"py[p]i\.(?:org|io)|python[h]osted|maven\.(?:or[g]|apache)|npm[j]s\.org"
    assert lines_matching(f"{machine}|{registries}", committed()) == []


def test_locks_hold_no_address() -> None:
    locks = sorted(ROOT.glob("*.lock"))
    assert locks
    assert lines_matching(r"https?[:]//|--(?:extra-)?index-ur[l]|--find-link[s]", locks) == []
