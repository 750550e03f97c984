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


def figures(account: Account, *, faults: list[str], seconds: float) -> Figures:
    """`faults` are the reasons why the account does not close; `seconds` is the time until all were answered."""
    requests = account.count("decide_requests")
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
        "segments": _segments(account),
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
    return {
        "requests": wanted.total(),
        "cold_users": len(wanted),
        "graphql_requests": queries,
        "users_per_request": round(len(wanted) / queries, 1) if queries else 0.0,
        "largest_request": int(account.odp.get("largest_query", 0)),
        "cache_hits": account.cache_hits,
    }


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
