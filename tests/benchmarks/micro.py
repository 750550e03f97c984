"""Steps of a request and of a datafile one by one, beside what the official SDK takes for the same. No Kafka.

Both sides do the same for the same users, in turns in one process, with garbage collection off: `test_micro.py` holds
them to the same decisions and the same events. Figures are processor time. Called by `make bench`.

Ours, deciding: from a parsed request to the bytes of a result, variables, reasons and impressions in it; where a row
says `alone`, to what the evaluator gives, from which nothing is written yet. The SDK's: a user context, segments set on
it, `decide` to a decision object, events to an event processor that only keeps them; its logger does nothing, it polls
nothing, its data platform is off. It is never made to write its decisions as JSON.

A call handles as many users as a poll may bring, and lets go of what it made before the next.
"""

from __future__ import annotations

import gc
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple, cast

import orjson
from optimizely.event.event_factory import EventFactory
from optimizely.helpers.audience import does_user_meet_audience_conditions
from optimizely.helpers.enums import ExperimentAudienceEvaluationLogs
from optimizely.helpers.sdk_settings import OptimizelySdkSettings
from optimizely.logger import NoOpLogger
from optimizely.optimizely import Optimizely
from prometheus_client import CollectorRegistry, Histogram

from pipeline.decision import Facts, answer
from pipeline.decision.decider import decide
from pipeline.decision.visitor import visitor_of
from pipeline.kafka.sink import waits
from pipeline.logx.payload import envelope_bytes, impressions
from pipeline.messages.decide import DecideRequest, parse_decide_request
from pipeline.messages.delivery import Result
from pipeline.messages.results import parse_result
from pipeline.metrics import Metrics
from pipeline.project import compile_datafile
from pipeline.project.attributes import MOST_REMEMBERED
from pipeline.project.outcomes import Outcome
from tests.benchmarks.project import FLAGS, SEGMENT, datafile, flag_keys, request

SDK_DECIDE, SDK_AUDIENCE = "optimizely-sdk decide", "optimizely-sdk audience"
SDK_EVENT = "create_log_event + json.dumps"
LOADS = "orjson.loads"
OBSERVE = "prometheus_client observe"

_TIMESTAMP = 1_700_000_000_000
_MAX_BYTES = 1024**2
_BODY_BYTES = 3_500_000
_SEGMENTS = ("loyal_customers", SEGMENT)
_SILENT, _REASONS = "DISABLE_DECISION_EVENT", "INCLUDE_REASONS"
# A leaf for each kind of match, true of some of the users and, where users differ in it, false of the others.
_MATCHES = {
    "exact": ("custom_attribute", "country", "exact", "DE"),
    "exists": ("custom_attribute", "plan", "exists", None),
    "substring": ("custom_attribute", "country", "substring", "E"),
    "number": ("custom_attribute", "age", "ge", 24),
    "semver": ("custom_attribute", "app_version", "semver_ge", "3.0.0"),
    "qualified": ("third_party_dimension", "odp.audiences", "qualified", SEGMENT),
}


@dataclass(frozen=True, slots=True)
class Row:
    """Microseconds an operation. The quickest round counts, for whatever else a machine does only adds."""

    name: str
    ours_us: float
    theirs_us: float | None
    """None for a step of ours that they have no like of."""
    theirs: str
    ours_median_us: float
    theirs_median_us: float | None

    @property
    def ratio(self) -> float | None:
        """Theirs to ours: how many times cheaper ours is."""
        return None if self.theirs_us is None else self.theirs_us / self.ours_us


class Size(NamedTuple):
    """Users in a call of the rows of one flag, of 12 flags and of 100; calls in a round; bytes of the two datafiles."""

    one: int
    twelve: int
    hundred: int
    calls: int
    small: int
    large: int


FULL = Size(250, 50, 10, 8, 500_000, 5_000_000)
QUICK = Size(250, 50, 10, 2, 500_000, 5_000_000)
SMALLEST = Size(8, 3, 2, 1, 20_000, 60_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row before it is timed. Each side does `operations` a call and returns what has come of them."""

    name: str
    operations: int
    calls: int
    """In a round."""
    ours: Callable[[], Any]
    theirs: Callable[[], Any] | None = None
    says: str = ""
    """What `theirs` is."""


class Work(NamedTuple):
    """What the SDK has made: for each user a decision, or decisions by flag key, and the events of all of them."""

    decisions: list[Any]
    events: list[Any]


def rows(rounds: int, quick: bool) -> list[Row]:
    """All rows, each of `rounds` rounds; quick ones have fewer users, the same flags and the same datafiles."""
    return [_timed(case, rounds) for case in cases(QUICK if quick else FULL)]


def cases(size: Size) -> Iterator[Case]:
    yield from _steps("1 flag", 4, FLAGS[:1], size.one, size.calls)
    yield from _decisions_of_one(size.one, size.calls)
    yield from _steps("all of 12 flags", 12, (), size.twelve, size.calls)
    yield from _steps("all of 100 flags", 100, (), size.hundred, size.calls)
    yield from _audiences(size.one, size.calls)
    yield _latency(size.one, size.calls)
    for octets in (size.small, size.large):
        yield _compiling(datafile(pad_bytes=octets), f"compile a datafile of {octets / 1e6:g} MB")


def _timed(case: Case, rounds: int) -> Row:
    ours: list[float] = []
    theirs: list[float] = []

    def once(step: Callable[[], Any]) -> float:
        gc.collect()
        start = time.process_time()
        for _ in range(case.calls):
            step()
        return (time.process_time() - start) / (case.calls * case.operations) * 1e6

    for step in (case.ours, case.theirs):
        if step is not None:
            step()  # caches fill, code specialises
    gc.collect()
    gc.freeze()  # or each collection between rounds looks through all of the case
    gc.disable()
    try:
        for _ in range(rounds):
            taken = once(case.ours)
            if case.theirs is not None:
                theirs.append(once(case.theirs))
                # Before and after: it is over so soon that a bad moment of the machine would be all of it.
                taken = (taken + once(case.ours)) / 2
            ours.append(taken)
    finally:
        gc.enable()
        gc.unfreeze()
    return Row(
        case.name, min(ours), min(theirs, default=None), case.says,
        ours_median_us=median(ours), theirs_median_us=median(theirs) if theirs else None,
    )  # fmt: skip


def _steps(title: str, flags: int, keys: Sequence[str], users: int, calls: int) -> Iterator[Case]:
    """What a request goes through: parsed, decided, its result read by the event role, its impressions written."""
    raw = datafile(flags)
    values = [request(number, keys) for number in range(1, users + 1)]

    def parse() -> list[DecideRequest]:
        return [parse_decide_request(value, max_bytes=_MAX_BYTES) for value in values]

    yield Case(name=f"{title}: parse the request", operations=users, calls=calls, ours=parse)
    windows = [_requests(keys, users, first=1 + users * call) for call in range(calls)]
    yield _deciding(f"{title}: decide and write the result", raw, windows)
    yield _deciding_alone(f"{title}: decide alone, no impression", raw, windows)
    one_call = _deciding("", raw, windows[:1])
    assert one_call.theirs is not None
    yield from _impressions(title, one_call.ours(), one_call.theirs().events, calls)


def _decisions_of_one(users: int, calls: int) -> Iterator[Case]:
    raw, keys = datafile(), FLAGS[:1]
    for name, option in (("no impression", _SILENT), ("all reasons", _REASONS)):
        windows = [_requests(keys, users, option, first=1 + users * call) for call in range(calls)]
        yield _deciding(f"1 flag: decide and write, {name}", raw, windows)
    # By the time a user comes again, more attributes have been seen since than are remembered.
    unlike = [_requests(keys, users, first=1 + at) for at in range(0, MOST_REMEMBERED + 2 * users, users)]
    for number, each in enumerate(itertools.chain.from_iterable(unlike)):
        each.attributes["age"] = 20 + number / 10_000
    yield _deciding("1 flag: decide and write, attributes seen for the first time", raw, unlike, calls=calls)
    windows = [_requests(keys, users, first=1 + users * call) for call in range(calls)]
    without = datafile(segments=False)
    yield _deciding("1 flag: decide and write, no segments", without, windows, segments=None)


def _deciding(
    name: str,
    raw: bytes,
    windows: Sequence[list[DecideRequest]],
    *,
    segments: tuple[str, ...] | None = _SEGMENTS,
    calls: int | None = None,
) -> Case:
    """Each call decides the next of `windows`, of equal length; all requests have the same keys and options."""
    project = compile_datafile(raw)
    known = None if segments is None else frozenset(segments)
    following = itertools.cycle(windows)

    def ours() -> list[bytes]:
        return [
            answer(project, each, Facts(known), source=f"decide.requests-3-{at}", timestamp=_TIMESTAMP + at).value
            for at, each in enumerate(next(following))
        ]

    options = sorted(windows[0][0].options)
    theirs = _decided_by_sdk(raw, windows, None if segments is None else list(segments), options)
    return Case(
        name=name, operations=len(windows[0]), calls=calls or len(windows), ours=ours, theirs=theirs, says=SDK_DECIDE
    )


def _deciding_alone(name: str, raw: bytes, windows: Sequence[list[DecideRequest]]) -> Case:
    project = compile_datafile(raw)
    known = frozenset(_SEGMENTS)
    following = itertools.cycle(windows)
    flags = [project.flags[key] for key in windows[0][0].keys or project.flags]

    def ours() -> list[list[Outcome]]:
        decided = []
        for each in next(following):
            visitor = visitor_of(each, Facts(known))
            decided.append([decide(flag, visitor) for flag in flags])
        return decided

    theirs = _decided_by_sdk(raw, windows, list(_SEGMENTS), [_SILENT])
    return Case(name=name, operations=len(windows[0]), calls=len(windows), ours=ours, theirs=theirs, says=SDK_DECIDE)


def _decided_by_sdk(
    raw: bytes, windows: Sequence[list[DecideRequest]], segments: list[str] | None, options: list[str]
) -> Callable[[], Work]:
    client, events = sdk(raw)
    keys = windows[0][0].keys
    following = itertools.cycle(windows)

    def theirs() -> Work:
        decisions = []
        for each in next(following):
            user = client.create_user_context(each.user_id, each.attributes)
            if segments is not None:
                user.set_qualified_segments(segments)
            decisions.append(user.decide(keys[0], options) if keys else user.decide_all(options))
        work = Work(decisions, events.copy())
        events.clear()
        return work

    return theirs


def _impressions(title: str, results: list[bytes], events: list[Any], calls: int) -> Iterator[Case]:
    """From the results of the topic to one body for Optimizely; the SDK from the events its decisions have left.

    Theirs is `create_log_event` of all of the events and `json.dumps` of what it makes; identities and times were given
    to them before. Ours reads the results and gives them here.
    """
    users = len(results)
    logger = NoOpLogger()

    def read() -> int:
        for value in results:  # one at a time, as they are handled
            parse_result(value)
        return users

    def written() -> str:
        return json.dumps(cast(Any, EventFactory.create_log_event(events, logger)).params)

    yield Case(name=f"{title}: read the result", operations=users, calls=calls, ours=read)
    yield Case(
        name=f"{title}: read the result, write its impressions", operations=users, calls=calls,
        ours=lambda: _body(results), theirs=written, says=SDK_EVENT,
    )  # fmt: skip


def _body(results: Iterable[bytes]) -> bytes:
    """All the results owe, in one body: they are of one revision."""
    visitors: list[bytes] = []
    envelope = None
    for value in results:
        due = impressions(value, max_events=10_000, max_bytes=_BODY_BYTES)
        assert due is not None
        envelope = due[0]
        visitors += [visitor for visitor, _ in due[1]]
    assert envelope is not None
    before, after = envelope_bytes(envelope)
    return b"".join((before, b",".join(visitors), after))


def _audiences(users: int, calls: int) -> Iterator[Case]:
    """An audience of one condition, without the decision around it: the closure, and the SDK's evaluation of it."""
    document = orjson.loads(datafile(len(_MATCHES)))
    for audience, (kind, name, match, value) in zip(document["typedAudiences"], _MATCHES.values(), strict=True):
        leaf = {"type": kind, "name": name, "match": match, "value": value}
        audience["conditions"] = ["and", ["or", ["or", leaf]]]
    raw = orjson.dumps(document)
    project = compile_datafile(raw)
    client, _ = sdk(raw)
    config: Any = client.config_manager.get_config()
    requests = _requests((), users)
    for family, flag in zip(_MATCHES, flag_keys(len(_MATCHES)), strict=True):
        rule = config.get_experiment_from_key(project.flags[flag].experiments[0].key)
        yield _audience(family, project.flags[flag].experiments[0].audience, rule, client, requests, calls)


def _audience(family: str, test: Any, rule: Any, client: Any, requests: list[DecideRequest], calls: int) -> Case:
    config, logger = client.config_manager.get_config(), NoOpLogger()
    known = frozenset(_SEGMENTS)
    attributes = [each.attributes for each in requests]
    contexts = [client.create_user_context(each.user_id, each.attributes) for each in requests]
    for context in contexts:
        context.set_qualified_segments(list(_SEGMENTS))

    def ours() -> list[bool]:
        return [test(each, known) is True for each in attributes]

    def theirs() -> list[bool]:
        conditions = rule.get_audience_conditions_or_ids()
        logs = ExperimentAudienceEvaluationLogs
        return [
            does_user_meet_audience_conditions(config, conditions, logs, rule.key, context, logger)[0]
            for context in contexts
        ]

    return Case(
        name=f"audience: {family}", operations=len(requests), calls=calls, ours=ours, theirs=theirs, says=SDK_AUDIENCE
    )


def _compiling(raw: bytes, name: str) -> Case:
    """Ours loads the bytes too, and both let go of what they have made within the time."""
    return Case(
        name=name,
        operations=1,
        calls=1,
        ours=lambda: compile_datafile(raw),
        theirs=lambda: orjson.loads(raw),
        says=LOADS,
    )


def _latency(users: int, calls: int) -> Case:
    """The cost of a result beside its writing: its request's time is noted, and counted when it is acknowledged."""
    results = [Result(b"key", b"value", [], _TIMESTAMP + number) for number in range(users)]
    bulk = Metrics(CollectorRegistry()).decide_latency
    single = Histogram("latency_seconds", "By the library.", registry=CollectorRegistry(), buckets=bulk.bounds)
    now = _TIMESTAMP + users + 20

    def noted() -> list[int]:
        requested_at: list[int] = []
        for result in results:
            if result.requested_at is not None:
                requested_at.append(result.requested_at)  # noqa: PERF401 - as in the loop that appends to a batch
        return requested_at

    def theirs() -> None:
        for waited in waits(noted(), now):
            single.observe(waited)

    return Case(
        name="count the latency of a result", operations=users, calls=calls,
        ours=lambda: bulk.observe_all(waits(noted(), now)), theirs=theirs, says=OBSERVE,
    )  # fmt: skip


def _requests(keys: Sequence[str], users: int, *options: str, first: int = 1) -> list[DecideRequest]:
    numbers = range(first, first + users)
    requests = [parse_decide_request(request(number, keys), max_bytes=_MAX_BYTES) for number in numbers]
    for each in requests:
        each.options = frozenset(options)
    return requests


class _Keeper:
    """An event processor that keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def process(self, event: Any) -> None:
        self.events.append(event)


def sdk(raw: bytes) -> tuple[Any, list[Any]]:
    """A client of the official SDK for a datafile, and the list its events come to."""
    keeper = _Keeper()
    client: Any = Optimizely(
        datafile=raw.decode(),
        logger=NoOpLogger(),
        event_processor=cast(Any, keeper),
        settings=OptimizelySdkSettings(odp_disabled=True),
    )
    if client.config_manager.get_config() is None:
        raise ValueError("the SDK refused the datafile")
    return client, keeper.events
