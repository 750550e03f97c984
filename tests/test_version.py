"""The versions that logs, metrics and `--version` name."""

from __future__ import annotations

import platform
from importlib import metadata

import pytest

from pipeline import version


def test_versions_are_those_of_what_is_installed() -> None:
    assert version.versions() == {
        "version": metadata.version("decision-pipeline"), "python": platform.python_version(),
        "aiokafka": metadata.version("aiokafka"),
    }  # fmt: skip


def test_a_source_tree_that_was_never_installed_has_no_version_and_runs_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(version, "NAME", "decision-pipeline-that-nobody-installed")
    assert version.versions()["version"] == "unknown"
