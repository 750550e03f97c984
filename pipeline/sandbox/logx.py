"""Stand-in for Optimizely's event endpoint: POST /v1/events, strict about every field, 204.

The real endpoint takes anything and says nothing; this one refuses (400) what its documentation does not describe, so
a wrong payload is seen. It counts an event once by (entity_id, uuid, timestamp), as Optimizely does, and repeats beside
it. Controls: `poison`, a list of visitor ids; a body with one of them gets `poison_status`. `unread`, true while a
benchmark runs: bodies are answered 204 unread and read when the ledger is asked for, so the reading (some 10 us an
event) does not compete with what is measured; what would have been refused is then counted as refused all the same.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import orjson
from aiohttp import web

from pipeline.sandbox.logx_payload import IMPRESSION, Event, Identity, Invalid, read_payload
from pipeline.sandbox.server import Handler, StandIn, answer_json, argument_parser, serve

MAX_BYTES = 3_500_000
_REFUSALS_KEPT = 20
_MOST_UNREAD_BYTES = 512 * 1024**2


class Logx(StandIn):
    service = "logx"
    controls: ClassVar[Mapping[str, Any]] = {"poison": [], "poison_status": 400, "unread": False}
    meanings: ClassVar[Mapping[str, str]] = {
        "poison": "visitor ids; a body with one of them gets poison_status",
        "poison_status": "status for poison",
        "unread": "true: bodies are answered 204 and read when the ledger is asked for, for load",
    }

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self._events: dict[Identity, Event] = {}
        self._names: dict[str, str] = {}
        self._dispatches = self._repeats = self._conflicts = self._conversions = 0
        self._largest_batch = self._largest_bytes = self._bytes = 0
        self._refused: Counter[int] = Counter()
        self._refusals: list[str] = []
        self._by_project: Counter[str] = Counter()
        self._unread: list[bytes] = []
        self._unread_bytes = 0

    def routes(self) -> Mapping[tuple[str, str], Handler]:
        return {("POST", "/v1/events"): self._post_events}

    def ledger(self, query: Mapping[str, str]) -> dict[str, Any]:
        self._read_all()
        distinct = len(self._events)
        counted: dict[str, Any] = {
            "dispatches": self._dispatches,  # accepted requests
            "events": distinct + self._repeats,  # on the wire
            "distinct": distinct,
            "repeats": self._repeats,
            "conflicts": self._conflicts,  # repeats that say something else than the first
            "impressions": distinct - self._conversions,
            "conversions": self._conversions,
            "largest_batch": self._largest_batch,
            "largest_bytes": self._largest_bytes,
            "bytes": self._bytes,
            "by_project": self._by_project,
            "refused": {str(status): count for status, count in self._refused.items()},
            "refusals": self._refusals,
        }
        if query.get("full"):
            counted["entries"] = [[*identity, *event[:5]] for identity, event in self._events.items()]
            counted["values"] = {
                identity[1]: orjson.Fragment(event[6]) for identity, event in self._events.items() if event[6]
            }  # uuid -> tags, revenue and value of a conversion that has any
        return counted

    async def _post_events(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.content_type != "application/json":
            return self._refuse(400, f"content type {request.content_type}")
        if not self.faults["unread"]:
            return self.take(body)
        self._unread.append(body)
        self._unread_bytes += len(body)
        if self._unread_bytes > _MOST_UNREAD_BYTES:
            self._read_all()
        return web.Response(status=204)

    def _read_all(self) -> None:
        for body in self._unread:
            self.take(body)
        self._unread.clear()
        self._unread_bytes = 0

    def take(self, body: bytes) -> web.Response:
        """Read a body and count its events; the answer to it."""
        if len(body) > MAX_BYTES:
            return self._refuse(413, f"{len(body)} bytes")
        try:
            payload = read_payload(orjson.loads(body))
        except (orjson.JSONDecodeError, Invalid) as error:
            return self._refuse(400, str(error))
        poison = set(self.faults["poison"])
        if poison and any(event[0] in poison for _, event in payload.events):
            return self._refuse(self.faults["poison_status"], "poison")
        self._count(payload.events, len(body))
        self._by_project[payload.project_id] += len(payload.events)
        return web.Response(status=204)

    def _refuse(self, status: int, why: str) -> web.Response:
        self._refused[status] += 1
        if len(self._refusals) < _REFUSALS_KEPT:
            self._refusals.append(why)
        return answer_json({"error": why}, status=status)

    def _count(self, events: list[tuple[Identity, Event]], size: int) -> None:
        self._dispatches += 1
        self._bytes += size
        self._largest_batch = max(self._largest_batch, len(events))
        self._largest_bytes = max(self._largest_bytes, size)
        known, name = self._events, self._names.setdefault
        for identity, event in events:
            before = known.get(identity)
            if before is None:
                # Names repeat in every event; kept once, half a million events fit in 220 MB.
                visitor, flag, rule, variation, key, rest, values = event
                entity = name(identity[0], identity[0])
                flag, rule, variation, key = (
                    name(flag, flag),
                    name(rule, rule),
                    name(variation, variation),
                    name(key, key),
                )
                known[(entity, identity[1], identity[2])] = (visitor, flag, rule, variation, key, rest, values)
                self._conversions += key != IMPRESSION
            else:
                self._repeats += 1
                self._conflicts += before != event


def main() -> None:
    options = argument_parser("Stand-in for Optimizely's event endpoint").parse_args()
    # Hundreds of thousands of kept tuples are no garbage, and looking through them again and again costs most of all.
    gc.set_threshold(200_000, 50, 1000)
    serve(Logx(), options.port)


if __name__ == "__main__":
    main()
