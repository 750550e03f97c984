"""Compiling beside the loop: no collection meanwhile, the collector as it was, and nothing left of what is let go."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from pipeline.datafile.compiling import compiled
from pipeline.errors import DatafileRefused
from pipeline.project import compile_datafile
from tests.benchmarks.project import datafile

RAW = datafile(50)


@pytest.fixture(autouse=True)
def _enabled() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_no_collection_runs_meanwhile_and_the_collector_goes_on_afterwards() -> None:
    collections: list[int] = []
    running = threading.Event()

    def counted(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and running.is_set():
            collections.append(info["generation"])

    def compile_it(raw: bytes) -> object:
        running.set()
        try:
            return [compile_datafile(raw) for _ in range(20)]
        finally:
            running.clear()

    gc.callbacks.append(counted)
    try:
        running.set()
        compile_datafile(RAW)
        assert collections, "a datafile of this size is otherwise met by the collector"
        collections.clear()
        running.clear()
        compiled(compile_it, RAW)
    finally:
        gc.callbacks.remove(counted)
    assert collections == []
    assert gc.isenabled()


def test_the_collector_goes_on_also_when_the_datafile_is_refused() -> None:
    with pytest.raises(DatafileRefused):
        compiled(compile_datafile, b"{")
    assert gc.isenabled()


def test_one_that_is_off_stays_off() -> None:
    gc.disable()
    compiled(compile_datafile, RAW)
    assert not gc.isenabled()


def test_a_project_that_is_let_go_leaves_no_cycle() -> None:
    # Out of the collector's sight, a cycle would stay for ever, at each revision.
    compile_datafile(RAW)
    gc.collect()
    gc.disable()
    compile_datafile(RAW)
    assert gc.collect() == 0
