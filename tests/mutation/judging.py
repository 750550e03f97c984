"""One mutant judged: in a process of its own, that sees the mutated module in place of the real one, tests are run.

The parent has imported all that is heavy and nothing of the packages under test; a child is a fork of it, so that a
mutant costs little more than its tests. The first test that fails ends it: fast ones come first, the comparison with
the SDK after them, the slowest tests last.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

_SEED = 1
_HEAVY = (
    "aiokafka.admin", "hypothesis.strategies", "jsonschema_rs", "mmh3", "msgspec", "multiprocessing.pool",
    "optimizely.optimizely", "orjson", "pipeline.messages.decide", "pipeline.messages.results",
    "pipeline.sandbox.kafka", "pipeline.sandbox.processes", "pipeline.sandbox.worker", "pytest_asyncio.plugin",
    "redis", "concurrent.futures.process",
)  # fmt: skip


@dataclass(frozen=True)
class Suite:
    """What a mutant must survive. Paths are below the root; `decisions` is the number compared with the SDK."""

    root: Path
    packages: tuple[str, ...]
    fast: tuple[str, ...]
    decisions: int = 0
    slow: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Of all that stands beside the tests: what they say depends on it."""
        paths = [self.root / test.split("::")[0] for test in (*self.fast, *self.slow)]
        folders = {path if path.is_dir() else path.parent for path in paths}
        files = sorted({file for folder in folders for file in folder.rglob("*.py")})
        return sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(package.replace("/", ".") for package in self.packages)


def prepare(suite: Suite) -> None:
    """Import what every child needs. Whatever would bring a package under test with it is left to the children."""
    sys.path.insert(0, str(suite.root))
    with _refusing(suite.modules):
        for name in _HEAVY:
            # One that imports a package under test is imported by each child instead.
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    seen = [name for name in sys.modules if name.startswith(suite.modules)]
    assert not seen, f"imported before it could be mutated: {seen}"
    # The same examples for every mutant: a verdict must not be a matter of luck.
    hypothesis_settings.register_profile("mutants", derandomize=True, database=None, deadline=None)
    hypothesis_settings.load_profile("mutants")


class _Refusal(MetaPathFinder):
    def __init__(self, modules: tuple[str, ...]) -> None:
        self._modules = modules

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        if name.startswith(self._modules):
            raise ImportError(name)
        return None


@contextlib.contextmanager
def _refusing(modules: tuple[str, ...]) -> Iterator[None]:
    finder = _Refusal(modules)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Mutation(MetaPathFinder, Loader):
    """Loads one module from a tree that is not in its file."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self._name, self._path, self._tree = name, path, tree

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self._path, loader=self) if name == self._name else None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._tree, str(self._path), "exec"), vars(module))


def put_in_place(suite: Suite, file: str, tree: ast.Module) -> None:
    """From now on this process imports the module of `file` as it is in `tree`."""
    name = file.removesuffix(".py").replace("/", ".")
    sys.meta_path.insert(0, _Mutation(name, suite.root / file, tree))


class _FirstFailure:
    """A plugin of pytest."""

    def __init__(self) -> None:
        self.name = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._note(report)

    def pytest_collectreport(self, report: Any) -> None:
        self._note(report)

    def _note(self, report: Any) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid


def judge(suite: Suite) -> str:
    """What finds the mutant; empty if it survives. In the child, once the mutation is in place."""
    os.chdir(suite.root)
    return _tests(suite, suite.fast) or _comparison(suite.decisions) or _tests(suite, suite.slow)


def _tests(suite: Suite, paths: Sequence[str]) -> str:
    if not paths:
        return ""
    failure = _FirstFailure()
    settings = suite.root / "pyproject.toml"
    # Plugins were imported by the parent, and pytest would rather have been the first.
    options = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    options += ["--rootdir", str(suite.root)]
    code = pytest.main([*options, "-c", str(settings if settings.exists() else os.devnull), *paths], plugins=[failure])
    return "" if code == pytest.ExitCode.OK else failure.name or f"pytest: {pytest.ExitCode(code).name}"


def _comparison(decisions: int) -> str:
    """Decisions compared with the SDK's, as `tests/conformance` does, the first difference left as large as it is."""
    if not decisions:
        return ""
    try:
        running: Any = importlib.import_module("tests.conformance.running")
        running.explained = lambda where, case, found: running.Failure(where, case, found)
        failure = running.run(_SEED, decisions, 1, lambda _tally: None).failure
    except Exception as error:  # noqa: BLE001 - whatever a mutant makes of it
        return f"comparison with the SDK: {error!r}"
    return "" if failure is None else f"comparison with the SDK: {failure.found[0].what}"
