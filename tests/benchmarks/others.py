"""The rows that have no contender of their own: the events' two ways out, latencies, cold users, scale.

Each gives a document for the JSON and says in it what bounded the figure.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import islice
from typing import Any
from uuid import uuid4

import orjson

from pipeline.sandbox.processes import Guarded, until
from tests.benchmarks.loads import CACHED, COLD, PEOPLE, Load, user_key
from tests.benchmarks.paced import latencies
from tests.benchmarks.rig import Part, Rig, Taken
from tests.benchmarks.rows import DECIDE, FLOOR, Stand

_MOST_BYTES, _MOST_EVENTS = 3_500_000, 10_000
_ODP_EVENTS, _ODP_BATCH = 300_000, 500
_READY_SECONDS = 60.0
_FILLS = 2
"""How often the load is written while several workers read it, so that there is enough for all measured seconds."""
_LATE_SECONDS = 0.05
_WARM_SECONDS = 4.0
"""Of a steady stream that are not counted: in its first ones the broker compiles its code and users are asked for."""

Document = dict[str, Any]


def impressions_out(rig: Rig, load: Load, seconds: float) -> Document:
    """Role logx alone, on results that are there already: impressions a second, and dispatches against the fewest."""
    with Stand(rig, load) as stand:
        results = stand.topic("results")
        stand.rig.measure([stand.worker(results, "decide")], seconds=math.inf)
        before = rig.sunk()
        (taken,) = rig.measure([stand.worker(results, "logx")], seconds=seconds)
        after = rig.sunk()
    sent = {name: after[name] - before[name] for name in ("requests", "events", "bytes")}
    fewest = max(math.ceil(sent["bytes"] / _MOST_BYTES), math.ceil(sent["events"] / _MOST_EVENTS))
    return _one(taken, "impressions", load.impressions) | {
        "dispatches": sent["requests"], "fewest_dispatches": fewest,
    }  # fmt: skip


def odp_events_out(rig: Rig, seconds: float) -> Document:
    """Role odp_events alone: events a second."""
    with Stand(rig, Load(name="odp-events", title="ODP events", requests=100)) as stand:
        stand.publish(stand.load.datafile(rig.sink))
        topic = stand.topic("odp-events", stand.partitions)
        count = rig.fill(topic, _odp_events())
        part = stand.worker(stand.topic("results"), "odp_events", TOPICS__ODP_EVENTS=topic)
        before = rig.sunk()["events"]
        part = Part(
            name=part.name, command=part.command, environment=part.environment,
            finished=lambda: rig.sunk()["events"] - before, total=count,
        )  # fmt: skip
        (taken,) = rig.measure([part], seconds=seconds)
    return _one(taken, "events", 1)


def _odp_events() -> Iterator[tuple[bytes, bytes]]:
    for number in range(1, _ODP_EVENTS + 1):
        key = user_key(number)
        event = {"action": "viewed", "identifiers": {"fs_user_id": key.decode()}, "data": {"page": f"/p/{number}"}}
        yield key, orjson.dumps(event)


def paced(rig: Rig, *, rates: dict[str, int], seconds: float) -> Iterator[Document]:
    """Latency of decide, and of the floor beside it, at each of these rates (share of the maximum -> requests/s)."""
    with Stand(rig, CACHED, filled=False) as stand:
        for share, rate in rates.items():
            for contender in (FLOOR, DECIDE):
                taken = _paced_run(stand, contender, rate, seconds)
                yield {"share": share, "rate": rate, "contender": contender, **taken}


def cold_users(rig: Rig, *, rate: int, seconds: float, odp_latency: float) -> Document:
    """Users nobody has asked for yet, so many a second: whether the worker keeps up shows in their latencies."""
    users = int(rate * (_WARM_SECONDS + seconds)) + PEOPLE
    if users > COLD.requests:
        raise ValueError(f"{users} users, and the data platform knows {COLD.requests}")
    rig.stand_ins.control("odp", latency=odp_latency)
    try:
        with Stand(rig, COLD, filled=False) as stand:
            taken = _paced_run(stand, DECIDE, rate, seconds, cold=True)
    finally:
        rig.stand_ins.control("odp", latency=0.0)
    return {"rate": rate, "seconds": seconds, "odp_latency_ms": odp_latency * 1000, **taken}


def _paced_run(stand: Stand, contender: str, rate: int, seconds: float, *, cold: bool = False) -> Document:
    rig = stand.rig
    with ExitStack() as stack:
        stand.requests = rig.new_topic("paced", stand.partitions)
        results = rig.new_topic("results", stand.partitions)
        stack.callback(rig.delete_topics, stand.requests, results)
        (part,) = stand.parts(contender, results)
        process = rig.start(part)
        stack.callback(process.kill)
        # The first requests, one of each user, show that it reads; until they are answered nothing is timed.
        users = rig.fill(stand.requests, islice(stand.load.values(), PEOPLE))
        _until_finished(part, process, users)
        whole = _WARM_SECONDS + seconds
        command = [sys.executable, "-m", "tests.benchmarks.paced", "--bootstrap-servers", rig.bootstrap_servers]
        command += ["--topic", stand.requests, "--rate", str(rate), "--seconds", str(whole)]
        command += ["--cold"] * cold
        generator = rig.start_beside("paced", command)
        stack.callback(generator.kill)
        if status := generator.wait(whole + _READY_SECONDS):
            raise RuntimeError(f"the generator ended with status {status}:\n{generator.log_tail()}")
        _until_finished(part, process, users + int(rate * whole))
        late = float(json.loads(generator.log_tail(1))["late"])
        taken = asdict(latencies(rig.bootstrap_servers, results, range(stand.partitions), seconds=seconds, late=late))
    return taken | _mark(late)


def _until_finished(part: Part, process: Guarded, count: int) -> None:
    """Wait for so many results. Raises TimeoutError, or RuntimeError when the contender is gone."""
    what = f"{count} results of {part.name}"
    until(lambda: part.finished() >= count or not process.running, timeout=_READY_SECONDS, what=what)
    if not process.running:
        raise RuntimeError(f"{part.name} ended by itself:\n{process.log_tail()}")


def _mark(late: float) -> Document:
    """Latencies are the generator's own where it could not keep its rate."""
    return {"note": "the generator was late"} if late > _LATE_SECONDS else {}


def scaled(rig: Rig, workers: int, seconds: float) -> Document:
    """Several processes of one group on one core: what each more costs in processor time for a request."""
    with Stand(rig, CACHED, filled=False) as stand:
        results = stand.topic("results")
        group = f"bench-{uuid4().hex[:6]}"
        parts = [stand.worker(results, "decide", group=group) for _ in range(workers)]
        parts = [replace(part, total=_FILLS * part.total) for part in parts]

        def fill() -> None:
            for _ in range(_FILLS):
                stand.fill()

        taken = rig.measure_together(parts, seconds=seconds, fill=fill)
    return {"workers": workers, **_one(taken, "requests", 1)}


def _one(taken: Taken, units: str, of_each: int) -> Document:
    return {
        "us": taken.us / of_each, f"{units}_per_second": taken.rate * of_each, "waited": taken.waited,
        "peak_mb": taken.peak_bytes / 1e6,
    }  # fmt: skip
