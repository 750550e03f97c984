"""The account of a run: every record that was sent, and what became of it. Pure; fed and read by the demo.

A request is accounted for by exactly one of a result, a result with an error, a dead letter, as its sender expected; a
result says what `contents` can tell; a dead letter says where its record lay and why, and holds its bytes; what the
results owe and what was sent is at the services once. The account closes when nothing is missing and nothing is there
that nobody sent. What reached a service twice is no fault: it carries one identity and counts once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import orjson

from pipeline.messages import dead_letters
from pipeline.messages.contracts import DECIDE_RESULT
from pipeline.messages.delivery import RESULT_SOURCE_HEADER, SOURCE_HEADER, Headers
from pipeline.sandbox.contents import (
    Impression,
    Published,
    conversions_at,
    conversions_due,
    impressions_at,
    impressions_of,
    odp_events_at,
    odp_events_due,
    result_faults,
)
from pipeline.sandbox.traffic import EXPIRED, Fate, Sent, Stream

_NAMED_AT_MOST = 5
_SHOWN_AT_MOST = 120
_Told = TypeVar("_Told")
_ANSWERED = (Fate.DECIDED, Fate.ERROR, Fate.EXPIRED)


class _DeadLetter(NamedTuple):
    reason: str
    place: tuple[str, str, str]
    """Topic, partition and offset, as its headers say."""
    key: bytes
    value: bytes


class Account:
    """`book_*` what is seen, in any order and as often as it is seen; then ask what is `open`."""

    def __init__(self) -> None:
        self.sent: dict[str, Sent] = {}
        self.decisions: dict[str, Counter[str]] = {}
        """Flag -> variation -> decisions; of results that count."""
        self.errors: Counter[str] = Counter()
        self.cache_hits_of: list[int] = []
        """Of each worker, in the order of their ends."""
        self.shared_lookups = 0
        self.kills = 0
        self.logx: Mapping[str, Any] = {}
        self.odp: Mapping[str, Any] = {}
        self._results: dict[str, Fate] = {}
        self._impressions: Counter[Impression] = Counter()
        self._dead: dict[str, _DeadLetter] = {}
        self._twice: list[str] = []
        self._dead_twice: list[str] = []
        self._unreadable: list[str] = []
        self._unchecked: dict[str, Published] = {}
        """Results whose requests are not booked yet."""
        self._faults: defaultdict[str, list[str]] = defaultdict(list)
        """What is wrong with results -> their sources."""

    def book_sent(self, source: str, record: Sent) -> None:
        """`source` is where the record is: topic-partition-offset."""
        self.sent[source] = record
        if source in self._unchecked:
            self._check(source, self._unchecked.pop(source))

    def book_result(self, key: bytes | None, value: bytes | None, headers: Headers, *, partition: int) -> None:
        """A record of decide.results. Of several with one source, the first counts."""
        named = {name: text.decode() for name, text in headers}.get(RESULT_SOURCE_HEADER, "")
        document = _document(value)
        if document is None:
            self._unreadable.append(named or "without a source")
            return
        source = document["source"]
        if source in self._results:
            self._twice.append(source)
            return
        self._results[source] = self._count_result(document)
        published = Published(key, document, partition, named)
        if source in self.sent:
            self._check(source, published)
        else:
            self._unchecked[source] = published

    def _count_result(self, document: Mapping[str, Any]) -> Fate:
        self._impressions.update(impressions_of(document))
        error = document.get("error")
        if error is not None:
            self.errors[error] += 1
            return Fate.EXPIRED if error == EXPIRED else Fate.ERROR
        for decision in document["decisions"]:
            self.decisions.setdefault(decision["flagKey"], Counter())[decision["variationKey"]] += 1
        return Fate.DECIDED

    def _check(self, source: str, published: Published) -> None:
        record = self.sent[source]
        if record.fate in _ANSWERED:
            for fault in result_faults(source, record, published):
                self._faults[fault].append(source)

    def book_dead_letter(self, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        """A record of dead.letters. Of several with one source, the first counts."""
        known = {name: text.decode() for name, text in headers}
        source = known.get(SOURCE_HEADER, "")
        if source in self._dead:
            self._dead_twice.append(source)
        names = (dead_letters.TOPIC_HEADER, dead_letters.PARTITION_HEADER, dead_letters.OFFSET_HEADER)
        place = known.get(names[0], ""), known.get(names[1], ""), known.get(names[2], "")
        letter = _DeadLetter(known.get(dead_letters.REASON_HEADER, ""), place, key or b"", value or b"")
        self._dead.setdefault(source, letter)

    def book_services(self, logx: Mapping[str, Any], odp: Mapping[str, Any]) -> None:
        """The ledgers of the stand-ins, as they are now. Where both are full, `open` compares what they hold."""
        self.logx, self.odp = logx, odp

    def book_worker(self, cache_hits: float, shared_lookups: float) -> None:
        """The look-ups that a worker counted: remembered, or answered with another's. Once in its life, at its end."""
        self.cache_hits_of.append(int(cache_hits))
        self.shared_lookups += int(shared_lookups)

    @property
    def cache_hits(self) -> int:
        return sum(self.cache_hits_of)

    @property
    def impressions_due(self) -> int:
        return self._impressions.total()

    @property
    def second_results(self) -> int:
        return len(self._twice)

    @property
    def second_dead_letters(self) -> int:
        return len(self._dead_twice)

    @property
    def answered(self) -> int:
        """Requests that have a result or are a dead letter."""
        dead = (source for source in self._dead if source not in self._results and source in self.sent)
        letters = sum(self.sent[source].stream == "decide_requests" for source in dead)
        return len(self._results) + letters

    @property
    def progress(self) -> tuple[int, ...]:
        """Grows while anything happens."""
        return (
            len(self.sent), len(self._results), len(self._dead), self.logx.get("events", 0), self.odp.get("events", 0)
        )  # fmt: skip

    def count(self, stream: Stream) -> int:
        """Records sent to a stream."""
        return sum(record.stream == stream for record in self.sent.values())

    def fates(self, stream: Stream) -> Counter[Fate]:
        """What became of the records of a stream, as far as it is known."""
        fates = (self._fate(source) for source, record in self.sent.items() if record.stream == stream)
        return Counter(fate for fate in fates if fate is not None)

    def dead_letters(self, stream: Stream) -> list[str]:
        """The reasons of a stream's dead letters."""
        return [
            letter.reason
            for source, letter in self._dead.items()
            if (record := self.sent.get(source)) is not None and record.stream == stream
        ]

    def delivered(self, stream: Stream) -> int:
        """Records of a stream that a service must have."""
        return sum(record.stream == stream and record.fate is Fate.DELIVERED for record in self.sent.values())

    def open(self) -> list[str]:
        """What is missing, surplus or otherwise than expected, one sentence each; empty when the account closes."""
        return [
            *self._open_records(),
            *self._open_results(),
            *self._open_dead_letters(),
            *self._open_services(),
            *self._open_contents(),
        ]

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
            # A published decision is final, whatever was killed in between.
            *_sentence("with a second result", self._twice),
            # Who is killed between the letter and the commit writes it again; nobody else does.
            *_sentence("with a second dead letter", [] if self.kills else self._dead_twice),
        ]

    def _open_results(self) -> list[str]:
        unreadable = _sentence("with a result that is none by its schema", self._unreadable)
        faults = (_sentence(f"whose result {fault}", sources) for fault, sources in self._faults.items())
        return [*unreadable, *(sentence for sentences in faults for sentence in sentences)]

    def _open_dead_letters(self) -> list[str]:
        reasons: list[str] = []
        places: list[str] = []
        contents: list[str] = []
        for source, letter in self._dead.items():
            record = self.sent.get(source)
            if record is None:
                continue
            if letter.reason != record.reason or letter.reason not in dead_letters.REASONS:
                reasons.append(f"{source} ({letter.reason or 'none'} instead of {record.reason or 'no dead letter'})")
            if "-".join(letter.place) != source:
                places.append(source)
            if (letter.key, letter.value) != (record.key or b"", record.value or b""):
                contents.append(source)
        return [
            *_sentence("whose dead letter has another reason", reasons),
            *_sentence("whose dead letter does not say where they lay", places),
            *_sentence("whose dead letter has other bytes", contents),
        ]

    def _open_services(self) -> list[str]:
        due = (
            ("impressions at logx", self.impressions_due, self.logx.get("impressions", 0)),
            ("conversions at logx", self.delivered("track_events"), self.logx.get("conversions", 0)),
            ("events at ODP", self.delivered("odp_events"), self.odp.get("distinct_events", 0)),
            ("events at logx that contradict an earlier one", 0, self.logx.get("conflicts", 0)),
            ("requests refused by logx", 0, sum(self.logx.get("refused", {}).values())),
            ("events at ODP that contradict an earlier one", 0, self.odp.get("conflicting_events", 0)),
            ("event requests refused by ODP", 0, self.odp.get("refused_events", 0)),
        )
        return [f"{what}: {there:,}, should be {should:,}" for what, should, there in due if there != should]

    def _open_contents(self) -> list[str]:
        """What the services have that is not what they should have, though its number may be right."""
        if "entries" not in self.logx or "event_bodies" not in self.odp:
            return []
        records = self.sent.values()
        return [
            *_surplus("impressions at logx that no result owes", impressions_at(self.logx), self._impressions),
            *_surplus("conversions at logx that nobody sent", conversions_at(self.logx), conversions_due(records)),
            *_surplus("events at ODP that nobody sent", odp_events_at(self.odp), odp_events_due(records)),
        ]

    def _fate(self, source: str) -> Fate | None:
        return Fate.DEAD_LETTER if source in self._dead else self._results.get(source)


def _document(value: bytes | None) -> dict[str, Any] | None:
    """The result in a record's value; None if it is none."""
    try:
        document: dict[str, Any] = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return None
    return document if DECIDE_RESULT.is_valid(document) else None


def _surplus(what: str, there: Counter[_Told], due: Counter[_Told]) -> list[str]:
    surplus = there - due
    return [f"{what}: {surplus.total():,}, such as {_shown(next(iter(surplus)))}"] if surplus else []


def _shown(told: object) -> str:
    text = told.decode() if isinstance(told, bytes) else " ".join(map(str, told)) if isinstance(told, tuple) else ""
    return text if len(text) <= _SHOWN_AT_MOST else f"{text[:_SHOWN_AT_MOST]}..."


def _sentence(what: str, sources: list[str]) -> list[str]:
    if not sources:
        return []
    named = ", ".join(sources[:_NAMED_AT_MOST])
    more = ", ..." if len(sources) > _NAMED_AT_MOST else ""
    return [f"{len(sources):,} records {what}: {named}{more}"]
