"""A worker without Kafka and network: what an honest one makes of the sandbox's traffic, and what a wrong one would.

The deciding and the rendering are the real ones; each field of `Worker` is a place where a wrong one differs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any
from zlib import crc32

import orjson

from pipeline.decision import Facts, failure
from pipeline.errors import Rejected
from pipeline.logx.payload import conversion, envelope_bytes, impressions
from pipeline.messages.decide import parse_decide_request
from pipeline.messages.delivery import RESULT_SOURCE_HEADER
from pipeline.messages.events import parse_odp_event, parse_track_event
from pipeline.odp.events import render_event
from pipeline.project import ProjectConfig, compile_datafile
from pipeline.sandbox import project_data as data
from pipeline.sandbox.account import Account
from pipeline.sandbox.logx import Logx
from pipeline.sandbox.odp_events import as_kept
from pipeline.sandbox.traffic import Fate, Sent, decide_requests, odp_events, track_events
from tests.decision.deciding import settled

Document = dict[str, Any]
Address = tuple[bytes | None, str, int]
"""Key, header `source` and partition of a result."""

_WIDE = {"max_events": 10_000, "max_bytes": 3_500_000}
_NOW = 1_790_000_000_000


def _as_it_is(document: Document) -> Document:
    return document


@dataclass(kw_only=True)
class Worker:
    """Honest unless told otherwise."""

    request: Callable[[Document], Document] = _as_it_is
    """What it reads of a request."""
    segments: Callable[[str], tuple[str, ...] | None] = data.segments_of
    result: Callable[[Document], Document] = _as_it_is
    """What it publishes."""
    address: Callable[[Address], Address] = lambda address: address
    visitor: Callable[[Document], Document] = _as_it_is
    """What it posts to logx."""
    odp_event: Callable[[Document], Document] = _as_it_is
    """What it posts to ODP."""
    odp_account: Callable[[str], str] = lambda api_key: api_key

    def account(self, requests: int = 300) -> Account:
        """The account of its work, with full ledgers."""
        account = Account()
        logx, bodies, accounts = Logx(), [], []
        for source, record in _sent(requests):
            account.book_sent(source, record)
            if record.fate is Fate.DEAD_LETTER:
                _book_dead_letter(account, source, record)
            elif record.stream == "decide_requests":
                self._decide(account, logx, source, record)
            elif record.stream == "track_events":
                envelope, visitor, _ = conversion(
                    _project(orjson.loads(record.value or b"")["sdkKey"]),
                    parse_track_event(record.value, max_bytes=10**6), source=source, timestamp=_NOW,
                )  # fmt: skip
                self._post(logx, envelope, visitor)
            else:
                body = render_event(
                    parse_odp_event(record.value, max_bytes=10**6), idempotence_id=source, version="1"
                )  # fmt: skip
                bodies.append(as_kept(self.odp_event(orjson.loads(body))))
                accounts.append(self.odp_account(data.API_KEYS[orjson.loads(record.value or b"")["sdkKey"]]))
        counted = {"distinct_events": len(bodies), "event_bodies": bodies, "event_accounts": accounts}
        account.book_services(orjson.loads(orjson.dumps(logx.ledger({"full": "1"}))), counted)
        return account

    def _decide(self, account: Account, logx: Logx, source: str, record: Sent) -> None:
        result = self.result(orjson.loads(self._answer(source, record)))
        user = orjson.loads(record.value or b"")["userId"]
        key, header, partition = self.address((record.key or user.encode(), source, int(source.rsplit("-", 2)[1])))
        account.book_result(
            key, orjson.dumps(result), [(RESULT_SOURCE_HEADER, header.encode())], partition=partition
        )  # fmt: skip
        try:
            owed = impressions(orjson.dumps(result), **_WIDE)
        except Rejected:
            return
        for visitor, _ in owed[1] if owed else ():
            self._post(logx, owed[0] if owed else None, visitor)

    def _answer(self, source: str, record: Sent) -> bytes:
        body = self.request(orjson.loads(record.value or b""))
        request = parse_decide_request(orjson.dumps(body), max_bytes=10**6)
        known = self.segments(request.user_id)
        if record.error:
            return failure(request, record.error, source=source, timestamp=_NOW, revision=None)
        facts = Facts(segments=frozenset(known or ())) if request.fetch_segments else Facts()
        return settled(_project(request.sdk_key or ""), request, facts, source=source, timestamp=_NOW).value

    def _post(self, logx: Logx, envelope: Any, visitor: bytes) -> None:
        before, after = envelope_bytes(envelope)
        body = before + orjson.dumps(self.visitor(orjson.loads(visitor))) + after
        assert logx.take(body).status == 204


@cache
def _project(sdk_key: str) -> ProjectConfig:
    return compile_datafile(orjson.dumps(data.datafile(sdk_key, "http://127.0.0.1:1")))


def _sent(requests: int) -> Iterator[tuple[str, Sent]]:
    offsets: dict[tuple[str, int], int] = {}
    for record in chain(decide_requests(requests), track_events(requests // 4), odp_events(requests // 4)):
        place = record.stream.replace("_", "."), crc32(record.key or b"") % 8
        offsets[place] = offsets.get(place, -1) + 1
        yield f"{place[0]}-{place[1]}-{offsets[place]}", copy.copy(record)


def _book_dead_letter(account: Account, source: str, record: Sent) -> None:
    topic, partition, offset = source.rsplit("-", 2)
    headers = {
        "pipeline-source": source, "pipeline-reason": record.reason, "pipeline-source-topic": topic,
        "pipeline-source-partition": partition, "pipeline-source-offset": offset,
    }  # fmt: skip
    account.book_dead_letter(record.key, record.value, [(name, text.encode()) for name, text in headers.items()])
