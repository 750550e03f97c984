"""The commit position and the floor: examples, then laws over every interleaving hypothesis can think of."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.kafka.progress import Progress, Span


def test_position_waits_for_the_first_unfinished_chunk() -> None:
    progress = Progress(10)
    first, second, third = progress.take(10, 15), progress.take(15, 20), progress.take(22, 30)
    assert not progress.finish(second)
    assert progress.position == 10
    assert progress.finish(first)
    assert progress.position == 20
    assert progress.finish(third)
    assert progress.position == 30
    assert progress.window == 0


def test_offsets_never_go_back() -> None:
    progress = Progress(10)
    progress.take(10, 15)
    with pytest.raises(ValueError, match=r"\[14, 16\)"):
        progress.take(14, 16)


def test_results_of_a_chunk_behind_an_unfinished_one_hold_the_floor() -> None:
    progress = Progress(0)
    slow, quick = progress.take(0, 5), progress.take(5, 10)
    quick.published(100)
    progress.finish(quick)
    assert progress.floor(105) == 100
    slow.published(105)
    progress.finish(slow)
    assert progress.floor(110) == 110


def test_what_a_scan_found_holds_the_floor_until_it_is_committed() -> None:
    progress = Progress(0, scan_floor=40, recovered_end=7)
    found = progress.take(0, 5)
    progress.finish(found)
    assert progress.floor(60) == 40
    rest = progress.take(5, 10)
    progress.finish(rest)
    assert progress.floor(60) == 60


def test_what_no_poll_brings_is_passed_over_when_nothing_is_under_way() -> None:
    progress = Progress(10)
    progress.pass_over(20)
    assert (progress.position, progress.window) == (20, 0)
    progress.pass_over(15)
    assert progress.position == 20
    with pytest.raises(ValueError, match=r"\[19, 21\)"):
        progress.take(19, 21)
    assert progress.finish(progress.take(20, 25))
    assert progress.position == 25


def test_nothing_is_passed_over_while_a_chunk_is_under_way() -> None:
    progress = Progress(10)
    first, second = progress.take(10, 15), progress.take(15, 20)
    progress.pass_over(30)
    progress.finish(second)
    progress.pass_over(30)
    assert (progress.position, progress.window) == (10, 10)
    progress.finish(first)
    progress.pass_over(30)
    assert (progress.position, progress.window) == (30, 0)


def test_passing_over_sources_that_a_scan_found_frees_the_floor_no_sooner_than_committing_them() -> None:
    progress = Progress(0, scan_floor=40, recovered_end=7)
    progress.pass_over(6)
    assert progress.floor(60) == 40
    progress.pass_over(7)
    assert progress.floor(60) == 60


class Log:
    """A results partition, some chunks under way, and the crash that may come after any step."""

    def __init__(self, log: list[int], position: int, floor: int) -> None:
        self.log = log
        found = [(offset, source) for offset, source in enumerate(log) if offset >= floor and source >= position]
        self.recovered = {source for _, source in found}
        end = max(self.recovered, default=-1) + 1
        self.progress = Progress(position, scan_floor=floor, recovered_end=end)
        self.acknowledged_end = len(log)
        self.chunks: list[tuple[Span, list[int], list[int]]] = []
        self.in_flight: list[tuple[Span, int]] = []

    def take(self, count: int) -> None:
        first = self.progress.position + self.progress.window
        span = self.progress.take(first, first + count)
        todo = [source for source in range(first, first + count) if source not in self.recovered]
        self.chunks.append((span, todo, list(todo)))

    def append(self, which: int) -> None:
        """One result reaches the log; its acknowledgement is still on the way."""
        open_chunks = [chunk for chunk in self.chunks if chunk[1]]
        if open_chunks:
            span, todo, _ = open_chunks[which % len(open_chunks)]
            self.log.append(todo.pop(0))
            self.in_flight.append((span, len(self.log) - 1))

    def acknowledge(self) -> None:
        if self.in_flight:
            span, offset = self.in_flight.pop(0)
            self.acknowledged_end = offset + 1
            span.published(offset)
        for span, todo, _ in self.chunks:
            if not todo and not span.finished and all(span is not other for other, _ in self.in_flight):
                self.progress.finish(span)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(1, 4)),
        st.tuples(st.just("append"), st.integers(0, 5)),
        st.tuples(st.just("acknowledge"), st.just(0)),
        st.tuples(st.just("commit"), st.just(0)),
        st.tuples(st.just("crash"), st.just(0)),
    ),
    max_size=80,
)


@settings(max_examples=400, deadline=None)
@given(STEPS)
def test_no_source_has_a_second_result_however_often_the_worker_crashes(steps: list[tuple[str, int]]) -> None:
    log: list[int] = []
    committed = (0, 0)
    worker = Log(log, *committed)
    for step, argument in steps:
        if step == "take":
            worker.take(argument)
        elif step == "append":
            worker.append(argument)
        elif step == "acknowledge":
            worker.acknowledge()
        elif step == "commit":
            committed = (worker.progress.position, worker.progress.floor(worker.acknowledged_end))
            uncovered = [offset for offset, source in enumerate(log) if source >= committed[0]]
            assert all(offset >= committed[1] for offset in uncovered)
        else:
            worker = Log(log, *committed)
    assert len(set(log)) == len(log)
