"""Compiling beside the loop: no collection meanwhile, the collector as it was, and nothing left of what is let go."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from pipeline.datafile.compiling import compiled, let_go
from pipeline.errors import DatafileRefused
from pipeline.project import ProjectConfig, compile_datafile
from pipeline.sandbox.processes import until as wait_for
from tests.benchmarks.project import datafile
from tests.datafile.test_poller import Flag, Shelf, bench, compile_small
from tests.datafile.test_poller import datafile as small
from tests.patience import PATIENCE
from tests.settled import until

RAW = datafile(50)


class Freed(list[bool]):
    """Of each project that is gone, whether it went in the thread that made it."""

    def __init__(self) -> None:
        super().__init__()
        self._made = threading.local()

    def watched(self, project: ProjectConfig) -> ProjectConfig:
        """The project, which was made in this thread."""
        self._made.here = True
        weakref.finalize(project.flags["flag"], lambda: self.append(hasattr(self._made, "here")))
        return project


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


def test_only_the_youngest_garbage_is_looked_for() -> None:
    generations: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            generations.append(info["generation"])

    gc.callbacks.append(note)
    try:
        compiled(lambda raw: generations.append(-1), RAW)
    finally:
        gc.callbacks.remove(note)
    # An older one is walked while thousands of requests wait.
    assert generations[: generations.index(-1)] == [0]


def test_what_was_made_is_out_of_the_collectors_sight() -> None:
    made = compiled(lambda raw: [compile_datafile(raw)], RAW)
    assert gc.is_tracked(made)
    assert all(one is not made for one in gc.get_objects())


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


@pytest.mark.asyncio
async def test_the_poller_compiles_without_a_collection() -> None:
    collected: list[bool] = []

    def noting(raw: bytes) -> ProjectConfig:
        collected.append(gc.isenabled())
        return compile_small(raw)

    async with bench(Shelf(small("42")), compile=noting) as b:
        await b.settled()
    assert collected == [False]


@pytest.mark.asyncio
async def test_one_datafile_is_compiled_at_a_time_and_a_stop_waits_for_none() -> None:
    threads: list[threading.Thread] = []
    begun, go_on = threading.Event(), threading.Event()

    def held(raw: bytes) -> ProjectConfig:
        threads.append(threading.current_thread())
        begun.set()
        go_on.wait(PATIENCE)
        return compile_small(raw)

    try:
        async with bench(Shelf(small("42")), Shelf(small("7")), compile=held) as b:
            await until(begun.is_set)
            # The other one was fetched and stands in line.
            await until(lambda: b.datafiles._thread._work_queue.qsize() == 1)
            assert len(threads) == 1
        # Closed, with the thread still at it.
        assert threads[0].is_alive()
    finally:
        go_on.set()
    await until(lambda: not threads[0].is_alive())
    assert len(threads) == 1, "what stood in line is not compiled after the stop"


@pytest.mark.asyncio
async def test_a_compilation_waits_for_nobody_else_who_uses_threads() -> None:
    # As a slow look-up of a name, which is asyncio's own use of them.
    busy, go_on = ThreadPoolExecutor(1), threading.Event()
    asyncio.get_running_loop().set_default_executor(busy)
    held = asyncio.get_running_loop().run_in_executor(None, go_on.wait, PATIENCE)
    try:
        async with bench(Shelf(small("42"))) as b:
            await b.settled()
            assert b.revision() == "42"
    finally:
        go_on.set()
        await held


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "document",
    [
        pytest.param(small("43"), id="replaced"),
        pytest.param(small("42", more="of the same"), id="the same revision"),
        pytest.param(small("41"), id="older"),
        pytest.param(small("43", accountId="another"), id="another account"),
    ],
)
async def test_what_is_not_used_is_freed_where_it_was_made(document: bytes) -> None:
    freed = Freed()
    shelf = Shelf(small("42"))
    async with bench(shelf, compile=lambda raw: freed.watched(compile_small(raw))) as b:
        await b.settled()
        shelf.body = document
        await until(lambda: freed != [])
        assert freed == [True]


@pytest.mark.asyncio
async def test_what_the_compiler_refuses_is_freed_where_it_was_made() -> None:
    freed = Freed()

    def half_done(raw: bytes) -> ProjectConfig:
        # Its traceback refers to this frame, and so to what was made.
        made = freed.watched(compile_small(raw))
        raise DatafileRefused(f"in the middle of {made.revision}")

    async with bench(Shelf(small("42")), compile=half_done) as b:
        await until(lambda: b.polls("refused") >= 2)
    assert freed == [True], "the same again is not compiled again"


def test_a_project_is_let_go_flag_by_flag() -> None:
    gone: list[str] = []
    project = compile_small(small("42"))
    flags = cast("dict[str, object]", project.flags)
    flags.clear()
    flags.update({key: Flag() for key in "abc"})
    for key, flag in project.flags.items():
        weakref.finalize(flag, gone.append, key)
    projects = [project]
    del project, flags, flag
    let_go(projects)
    # A dictionary that goes at once lets its first one go first.
    assert (projects, gone) == ([], ["c", "b", "a"])


def test_meanwhile_the_loop_has_its_turn_soon_also_where_two_overlap() -> None:
    wait_for(lambda: sys.getswitchinterval() > 0.004, timeout=PATIENCE, what="who compiled before")
    begun, go_on = threading.Event(), threading.Event()
    meanwhile: list[tuple[float, bool]] = []

    def first(raw: bytes) -> None:
        meanwhile.append((round(sys.getswitchinterval(), 4), gc.isenabled()))
        go_on.wait(PATIENCE)
        raise DatafileRefused("the first")

    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(compiled, first, RAW)
        wait_for(lambda: meanwhile != [], timeout=PATIENCE, what="the first")
        two = threads.submit(compiled, lambda _: begun.set(), RAW)
        assert not begun.wait(0.2), "one at a time"
        go_on.set()
        assert isinstance(one.exception(PATIENCE), DatafileRefused)
        assert two.exception(PATIENCE) is None
    assert meanwhile == [(0.0005, False)]
    assert (round(sys.getswitchinterval(), 4), gc.isenabled()) == (0.005, True)
