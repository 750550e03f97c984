"""The figures of a run: one document, of which the JSON file is a copy and the printed summary a view. Pure.

Nothing is printed that is not in here, so the two cannot disagree. Made by the demo from its account.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import orjson

from pipeline.sandbox.account import Account
from pipeline.sandbox.traffic import STREAMS, UNKNOWN_TO_ODP, Fate, Sent

Figures = dict[str, Any]
_ENOUGH_REQUESTS = 5_000
_USERS_PER_QUERY = 10
_WORKERS = "the killed worker", "the last worker"


def figures(account: Account, *, faults: list[str], seconds: float) -> Figures:
    """`faults` are the reasons why the account does not close; `seconds` is the time until all were answered."""
    requests, segments = account.count("decide_requests"), _segments(account)
    faults = [*faults, *_too_many_queries(requests, segments)]
    return {
        "closed": not faults,
        "open": faults,
        "sent": {stream: account.count(stream) for stream in STREAMS},
        "requests": {
            fate.value: account.fates("decide_requests")[fate]
            for fate in (Fate.DECIDED, Fate.ERROR, Fate.EXPIRED, Fate.DEAD_LETTER)
        },
        "distinct_sources": account.answered,
        "second_results": account.second_results,
        "second_dead_letters": account.second_dead_letters,
        "errors": account.errors,
        "decisions": account.decisions,
        "impressions_due": account.impressions_due,
        "conversions_due": account.delivered("track_events"),
        "odp_events_due": account.delivered("odp_events"),
        "segments": segments,
        "dead_letters": sum((Counter(account.dead_letters(stream)) for stream in STREAMS), Counter()),
        "dead_letters_of": {stream: Counter(account.dead_letters(stream)) for stream in STREAMS},
        "logx": _numbers(account.logx),
        "odp": _numbers(account.odp),
        "kills": account.kills,
        "seconds": round(seconds, 1),
        "requests_per_second": round(requests / seconds) if seconds else 0,
    }


def _segments(account: Account) -> dict[str, Any]:
    wanted = Counter(user for record in account.sent.values() if (user := _user_to_look_up(record)) is not None)
    queries = int(account.odp.get("graphql_requests", 0))
    looked_up = int(account.odp.get("aliases", 0))
    return {
        "requests": wanted.total(),
        "cold_users": len(wanted),
        "environments": len({sdk_key for sdk_key, _ in wanted}),
        "graphql_requests": queries,
        "users_looked_up": looked_up,
        "users_looked_up_again": max(0, looked_up - len(wanted)),
        "users_per_request": round(looked_up / queries, 1) if queries else 0.0,
        "largest_request": int(account.odp.get("largest_query", 0)),
        "shared_lookups": account.shared_lookups,
        "cache_hits": account.cache_hits,
        "cache_hits_of": dict(
            zip(_WORKERS[len(_WORKERS) - len(account.cache_hits_of) :], account.cache_hits_of, strict=True)
        ),
    }


def _too_many_queries(requests: int, segments: Mapping[str, Any]) -> list[str]:
    """Users are looked up together: ten in a query at the least, once there are enough who wait."""
    queries, users = segments["graphql_requests"], segments["cold_users"]
    if requests < _ENOUGH_REQUESTS or not users or queries * _USERS_PER_QUERY < users:
        return []
    return [f"GraphQL requests: {queries:,}, should be fewer than a tenth of the {users:,} users they were for"]


def _user_to_look_up(record: Sent) -> tuple[str, str] | None:
    """SDK key and user id of a request that cannot be answered without segments: environments share no people."""
    if record.stream != "decide_requests" or not record.value:
        return None
    if record.fate is not Fate.DECIDED and record.kind != UNKNOWN_TO_ODP:
        return None
    body = orjson.loads(record.value)
    return (body["sdkKey"], body["userId"]) if body.get("fetchSegments") else None


def _numbers(ledger: Mapping[str, Any]) -> dict[str, int]:
    return {name: value for name, value in ledger.items() if isinstance(value, int)}
