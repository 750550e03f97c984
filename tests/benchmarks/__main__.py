"""Times the steps one decide request passes through, without Kafka and network: `make bench`.

parse: bytes of a request to DecideRequest, schema checked. decide: evaluate and render the result, impression due.
impression: a published result to the visitor that is sent. One flag with a three-condition audience and three
variables, two thousand different users; the best of several rounds on one core, garbage collection off.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence

import orjson

from pipeline.decision import Facts, answer
from pipeline.logx.payload import impressions
from pipeline.messages.decide import DecideRequest, parse_decide_request
from pipeline.project import compile_datafile
from tests.benchmarks.project import FLAGS, datafile, request

USERS = 2_000
TIMESTAMP = 1_700_000_000_000
MAX_BYTES = 1024**2


def best_of(rounds: int, step: Callable[[], object], operations: int) -> float:
    """Microseconds of processor time an operation, of the quickest round: whatever else the machine does only adds."""
    taken = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            start = time.process_time()
            step()
            taken.append(time.process_time() - start)
    finally:
        gc.enable()
    return min(taken) / operations * 1e6


def measure(keys: Sequence[str], rounds: int) -> list[tuple[str, float]]:
    """Steps with their microseconds a request, for requests that name `keys` (none: all flags)."""
    project = compile_datafile(datafile())
    facts = Facts(segments=frozenset({"segment-1", "segment-7"}))
    raw = [request(number, keys) for number in range(USERS)]

    def parse() -> list[DecideRequest]:
        return [parse_decide_request(value, max_bytes=MAX_BYTES) for value in raw]

    parsed = parse()

    def decide() -> list[bytes]:
        return [
            answer(project, each, facts, source=f"decide.requests-3-{offset}", timestamp=TIMESTAMP + offset)
            for offset, each in enumerate(parsed)
        ]

    results = decide()

    def read() -> list[dict[str, object]]:
        return [orjson.loads(value) for value in results]

    loaded = read()

    def impression() -> None:
        for result in loaded:
            impressions(result, max_events=10_000, max_bytes=3_500_000)

    due = sum(impressions(result, max_events=10_000, max_bytes=3_500_000) is not None for result in loaded)
    if due < USERS // 2:
        raise SystemExit(f"only {due} of {USERS} requests owe an impression: this measures nothing")
    return [
        ("parse the request", best_of(rounds, parse, USERS)),
        ("decide and render the result", best_of(rounds, decide, USERS)),
        ("read the result (logx)", best_of(rounds, read, USERS)),
        ("render its impressions (logx)", best_of(rounds, impression, USERS)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of which the quickest counts (default 15)")
    rounds: int = parser.parse_args().rounds
    for title, keys in (("one flag", FLAGS[:1]), (f"all {len(FLAGS)} flags", ())):
        steps = measure(keys, rounds)
        total = sum(cost for _, cost in steps)
        print(f"{title:<32}{'us/request':>12}{'requests/s':>14}")
        for name, cost in [*steps, ("all of it", total)]:
            print(f"  {name:<30}{cost:>12.2f}{1e6 / cost:>14,.0f}")
        print()


if __name__ == "__main__":
    main()
