"""The command `pipeline` in a terminal, and a directory for temporary files that is the test's own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.sandbox.terminal import Terminal


@pytest.fixture
def own_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """So that what the demo leaves there can be seen."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


@pytest.fixture
def pipeline(own_temporary_directory: Path) -> Iterator[Callable[..., Terminal]]:
    """`pipeline("demo", "--kill")` runs the command; it leaves nothing in the directory, and nothing running."""
    running: list[Terminal] = []

    def run(*arguments: str, before: Sequence[str] = ()) -> Terminal:
        running.append(Terminal(*arguments, before=before))
        return running[-1]

    yield run
    # Python itself tries a directory out with an empty file of a name without a prefix, for a moment in which a process
    # may be killed.
    left = [path for path in own_temporary_directory.iterdir() if "-" in path.name or path.is_dir()]
    for terminal in running:
        terminal.close()
    assert left == []
