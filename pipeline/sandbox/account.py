"""The account of a run: every record that was sent, and what became of it. Pure; fed and read by the demo.

A request is accounted for by exactly one of a result, a result with an error, a dead letter, as its sender expected;
an impression by logx once for each that the results owe. The account closes when nothing is missing and nothing is
there that nobody sent. Things that reached a service twice are no fault: they carry one identity and count once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import orjson

from pipeline.messages.dead_letters import REASON_HEADER
from pipeline.messages.delivery import SOURCE_HEADER
from pipeline.sandbox.traffic import Fate, Sent

_NAMED_AT_MOST = 5


class _Result(NamedTuple):
    fate: Fate
    impressions: int


class Account:
    """`book_*` what is seen, in any order and as often as it is seen; then ask what is `open`."""

    def __init__(self) -> None:
        self.sent: dict[str, Sent] = {}
        self._results: dict[str, _Result] = {}
        self._dead: dict[str, str] = {}
        self._second_results = 0
        self._second_dead_letters = 0
        self._logx: Mapping[str, Any] = {}
        self._odp: Mapping[str, Any] = {}

    def book_sent(self, source: str, record: Sent) -> None:
        """`source` is where the record is: topic-partition-offset."""
        self.sent[source] = record

    def book_result(self, value: bytes) -> None:
        """A record of decide.results. Of several with one source, the first counts."""
        result = orjson.loads(value)
        if result["source"] in self._results:
            self._second_results += 1
            return
        fate = Fate.ERROR if "error" in result else Fate.DECIDED
        owed = len(result.get("tracking", {}).get("impressions", ()))
        self._results[result["source"]] = _Result(fate, owed)

    def book_dead_letter(self, headers: Iterable[tuple[str, bytes]]) -> None:
        """The headers of a record of dead.letters."""
        known = {name: value.decode() for name, value in headers}
        source = known[SOURCE_HEADER]
        self._second_dead_letters += source in self._dead
        self._dead.setdefault(source, known[REASON_HEADER])

    def book_services(self, logx: Mapping[str, Any], odp: Mapping[str, Any]) -> None:
        """The ledgers of the stand-ins, as they are now."""
        self._logx, self._odp = logx, odp

    def take_over(self, later: Account) -> None:
        """Replace what was seen by what a later reading from the start saw."""
        self._results, self._dead = later._results, later._dead
        self._second_results = later._second_results
        self._logx, self._odp = later._logx, later._odp

    @property
    def answered(self) -> int:
        """Requests that have a result or are a dead letter."""
        dead = sum(1 for source in self._dead if self._stream(source) == "decide_requests")
        return len(self._results) + dead

    @property
    def progress(self) -> tuple[int, ...]:
        """Grows while anything happens."""
        return (
            len(self.sent),
            len(self._results),
            len(self._dead),
            self._logx.get("events", 0),
            self._odp.get("events", 0),
        )

    def open(self) -> list[str]:
        """What is missing, surplus or otherwise than expected, one sentence each; empty when the account closes."""
        return [*self._open_records(), *self._open_services()]

    def lines(self) -> list[tuple[str, str]]:
        """For people: (what, how it adds up)."""
        fates = self._fates("decide_requests")
        reasons = Counter(self._dead.values())
        logx, odp = self._logx, self._odp
        return [
            (
                "decide requests",
                f"{self._count('decide_requests'):,} sent = {fates[Fate.DECIDED]:,} decided + "
                f"{fates[Fate.ERROR]:,} answered with an error + {fates[Fate.DEAD_LETTER]:,} dead letters",
            ),
            (
                "impressions",
                f"{self.impressions_due:,} due = {logx.get('impressions', 0):,} at logx, each once "
                f"({self._repeats():,} repeats on the wire)",
            ),
            (
                "conversions",
                f"{self._count('track_events'):,} sent = {logx.get('conversions', 0):,} at logx + "
                f"{self._fates('track_events')[Fate.DEAD_LETTER]:,} dead letters",
            ),
            (
                "ODP events",
                f"{self._count('odp_events'):,} sent = {odp.get('distinct_events', 0):,} at ODP + "
                f"{self._fates('odp_events')[Fate.DEAD_LETTER]:,} dead letters",
            ),
            ("dead letters", ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common()) or "none"),
            (
                "segments",
                f"{odp.get('aliases', 0):,} users fetched by {odp.get('graphql_requests', 0):,} GraphQL requests, "
                f"at most {odp.get('largest_query', 0)} in one",
            ),
            (
                "logx",
                f"{logx.get('events', 0):,} events in {logx.get('dispatches', 0):,} dispatches, at most "
                f"{logx.get('largest_batch', 0):,} in one",
            ),
        ]

    def document(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "closed": not self.open(),
            "open": self.open(),
            "sent": {stream: self._count(stream) for stream in ("decide_requests", "track_events", "odp_events")},
            "requests": {fate.value: count for fate, count in self._fates("decide_requests").items()},
            "second_results": self._second_results,
            "impressions_due": self.impressions_due,
            "dead_letters": Counter(self._dead.values()),
            "logx": {name: value for name, value in self._logx.items() if isinstance(value, int)},
            "odp": {name: value for name, value in self._odp.items() if isinstance(value, int)},
        }

    @property
    def impressions_due(self) -> int:
        return sum(result.impressions for result in self._results.values())

    def _open_records(self) -> list[str]:
        missing: list[str] = []
        otherwise: list[str] = []
        for source, record in self.sent.items():
            fate = self._fate(source)
            if fate is record.fate or (fate is None and record.fate is Fate.DELIVERED):
                continue
            if fate is None:
                missing.append(f"{source} ({record.kind})")
            else:
                otherwise.append(f"{source} ({record.kind}: {fate} instead of {record.fate})")
        unknown = [source for source in {*self._results, *self._dead} if source not in self.sent]
        both = [source for source in self._results if source in self._dead]
        return [
            *_sentence("without an outcome", missing),
            *_sentence("with another outcome than expected", otherwise),
            *_sentence("that nobody sent", unknown),
            *_sentence("with a result and a dead letter", both),
        ]

    def _open_services(self) -> list[str]:
        due = (
            ("impressions at logx", self.impressions_due, self._logx.get("impressions", 0)),
            ("conversions at logx", self._delivered("track_events"), self._logx.get("conversions", 0)),
            ("events at ODP", self._delivered("odp_events"), self._odp.get("distinct_events", 0)),
            ("events at logx that contradict an earlier one", 0, self._logx.get("conflicts", 0)),
            ("requests refused by logx", 0, sum(self._logx.get("refused", {}).values())),
            ("event requests refused by ODP", 0, self._odp.get("refused_events", 0)),
        )
        return [f"{what}: {there:,}, should be {should:,}" for what, should, there in due if there != should]

    def _fate(self, source: str) -> Fate | None:
        if source in self._dead:
            return Fate.DEAD_LETTER
        result = self._results.get(source)
        return result.fate if result else None

    def _fates(self, stream: str) -> Counter[Fate]:
        fates = Counter(self._fate(source) for source, record in self.sent.items() if record.stream == stream)
        return Counter({fate: count for fate, count in fates.items() if fate is not None})

    def _count(self, stream: str) -> int:
        return sum(record.stream == stream for record in self.sent.values())

    def _delivered(self, stream: str) -> int:
        return sum(record.stream == stream and record.fate is Fate.DELIVERED for record in self.sent.values())

    def _stream(self, source: str) -> str | None:
        record = self.sent.get(source)
        return record.stream if record else None

    def _repeats(self) -> int:
        return int(self._logx.get("repeats", 0))


def _sentence(what: str, sources: list[str]) -> list[str]:
    if not sources:
        return []
    named = ", ".join(sources[:_NAMED_AT_MOST])
    more = ", ..." if len(sources) > _NAMED_AT_MOST else ""
    return [f"{len(sources):,} records {what}: {named}{more}"]
