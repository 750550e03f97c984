"""Runs of many cases, in several processes, and what becomes of one that differs.

Every part has its own seed, made of the run's and its number, so that a run is the same however many processes share
it, and no two parts are alike.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache
from itertools import count

from tests.conformance.comparison import Comparison, Difference
from tests.conformance.datafiles import datafile as generated
from tests.conformance.deviations import DATAFILES, SHARED_KEY, looks_up_by_a_shared_key, shared_keys
from tests.conformance.dice import Dice, Json, user_ids
from tests.conformance.observed import Tally
from tests.conformance.oracle import Oracle, Refused
from tests.conformance.requests import Case, Requests
from tests.conformance.shrinking import differences, shrunk

_DATAFILES_OF_A_PART = 8
_REQUESTS_OF_A_DATAFILE = 40


@dataclass
class Failure:
    """A case in which the two sides differ, made as small as it goes, and how."""

    where: str
    case: Case
    found: list[Difference]

    def as_json(self) -> Json:
        return {"where": self.where, "differences": [one.text for one in self.found], "case": self.case.as_json()}


@dataclass
class Part:
    tally: Tally = field(default_factory=Tally)
    failure: Failure | None = None


@cache
def _comparison() -> Comparison:
    """One for a process: a client of the SDK is costly to make."""
    return Comparison()


def cases(seed: str) -> Iterator[tuple[Json, Requests]]:
    """The datafiles of a part and the requests on each."""
    for number in range(_DATAFILES_OF_A_PART):
        dice = Dice(f"{seed} {number}")
        users = user_ids(dice, 20)
        document = generated(dice, users)
        yield document, Requests(dice, document, users)


def compared(seed: int, number: int) -> Part:
    """One part of the run with this seed."""
    comparison, part = _comparison(), Part()
    comparison.oracle.tally = part.tally
    for document, requests in cases(f"{seed} {number}"):
        part.tally.datafiles += 1
        part.failure = _compare(comparison, document, requests, part.tally, f"seed {seed}, part {number}")
        if part.failure is not None:
            break
    return part


def _compare(comparison: Comparison, document: Json, requests: Requests, tally: Tally, where: str) -> Failure | None:
    reason = next((reason for reason, applies in DATAFILES.items() if applies(document)), None)
    if reason is not None:
        tally.left_out[reason] += _REQUESTS_OF_A_DATAFILE
        return None
    try:
        read = comparison.take(document)
    except Refused:
        tally.refused += 1
        return None
    shared = shared_keys(document)
    for _ in range(_REQUESTS_OF_A_DATAFILE):
        case = requests.case()
        if shared and looks_up_by_a_shared_key(case, shared):
            tally.left_out[SHARED_KEY] += 1
        elif found := read or comparison.differences(case):
            return explained(where, case, found)
    return None


def explained(where: str, case: Case, found: list[Difference]) -> Failure:
    """The failure, shrunk; counted apart from the run."""
    own = Comparison(Oracle())
    small = shrunk(own, case, {one.what for one in found})
    return Failure(where, small, differences(own, small))


def replayed(document: Json) -> list[Difference]:
    """The differences in a case that was kept."""
    return differences(Comparison(), Case(**document["case"]))


def load(text: str) -> Json:
    document: Json = json.loads(text)
    return document


def run(seed: int, decisions: int, jobs: int, progress: Callable[[Tally], None]) -> Part:
    """At least so many decisions, or the first failure; `progress` is told after every part."""
    whole = Part()
    if jobs == 1:
        parts: Iterator[Part] = (compared(seed, number) for number in count())
    else:
        parts = _in_processes(seed, jobs)
    for part in parts:
        whole.tally.add(part.tally)
        progress(whole.tally)
        whole.failure = part.failure
        if whole.failure is not None or whole.tally.decisions >= decisions:
            break
    return whole


def _in_processes(seed: int, jobs: int) -> Iterator[Part]:
    """Parts as they are done, a few ahead of who takes them; the rest is dropped with the iterator."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        numbers = count()
        under_way: set[Future[Part]] = {pool.submit(compared, seed, next(numbers)) for _ in range(2 * jobs)}
        try:
            while True:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                under_way |= {pool.submit(compared, seed, next(numbers)) for _ in done}
                yield from (future.result() for future in done)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
