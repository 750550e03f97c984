"""The account of a run: every record that was sent, and what became of it. Pure; fed and read by the demo.

A request is accounted for by exactly one of a result, a result with an error, a dead letter, as its sender expected; a
dead letter says where its record lay and why, and holds its bytes; an impression is at logx once for each that the
results owe. The account closes when nothing is missing and nothing is there that nobody sent. Things that reached a
service twice are no fault: they carry one identity and count once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import orjson

from pipeline.messages import dead_letters
from pipeline.messages.delivery import SOURCE_HEADER
from pipeline.sandbox.traffic import Fate, Sent, Stream

_NAMED_AT_MOST = 5
# What the contract says, not what the worker's code says.
_EXPIRED = "request expired"
_ENABLED_ONLY = b"ENABLED_FLAGS_ONLY"


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
        self.impressions_due = 0
        self._twice: list[str] = []
        self._undecided: set[str] = set()
        self.second_dead_letters = 0
        self.cache_hits = 0
        self.kills = 0
        self.logx: Mapping[str, Any] = {}
        self.odp: Mapping[str, Any] = {}
        self._results: dict[str, Fate] = {}
        self._dead: dict[str, _DeadLetter] = {}

    def book_sent(self, source: str, record: Sent) -> None:
        """`source` is where the record is: topic-partition-offset."""
        self.sent[source] = record

    def book_result(self, value: bytes) -> None:
        """A record of decide.results. Of several with one source, the first counts."""
        result = orjson.loads(value)
        if result["source"] in self._results:
            self._twice.append(result["source"])
            return
        error = result.get("error")
        if error is None:
            fate = Fate.DECIDED
            if not result["decisions"]:
                self._undecided.add(result["source"])
            for decision in result["decisions"]:
                self.decisions.setdefault(decision["flagKey"], Counter())[decision["variationKey"]] += 1
        else:
            fate = Fate.EXPIRED if error == _EXPIRED else Fate.ERROR
            self.errors[error] += 1
        self._results[result["source"]] = fate
        self.impressions_due += len(result.get("tracking", {}).get("impressions", ()))

    def book_dead_letter(self, key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes]]) -> None:
        """A record of dead.letters. Of several with one source, the first counts."""
        known = {name: text.decode() for name, text in headers}
        source = known[SOURCE_HEADER]
        self.second_dead_letters += source in self._dead
        names = (dead_letters.TOPIC_HEADER, dead_letters.PARTITION_HEADER, dead_letters.OFFSET_HEADER)
        place = known.get(names[0], ""), known.get(names[1], ""), known.get(names[2], "")
        letter = _DeadLetter(known.get(dead_letters.REASON_HEADER, ""), place, key or b"", value or b"")
        self._dead.setdefault(source, letter)

    def book_services(self, logx: Mapping[str, Any], odp: Mapping[str, Any]) -> None:
        """The ledgers of the stand-ins, as they are now."""
        self.logx, self.odp = logx, odp

    def book_worker(self, cache_hits: float) -> None:
        """What a worker counted, once in its life, at its end."""
        self.cache_hits += int(cache_hits)

    @property
    def second_results(self) -> int:
        return len(self._twice)

    @property
    def answered(self) -> int:
        """Requests that have a result or are a dead letter."""
        return len(self._results) + len(self.dead_letters("decide_requests"))

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
        return [*self._open_records(), *self._open_dead_letters(), *self._open_services()]

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
            *_sentence("answered without a decision", self._without_decision()),
        ]

    def _without_decision(self) -> list[str]:
        """Answers that name no flag, though the request did not ask to leave disabled flags out."""
        asked = {source: self.sent[source].value or b"" for source in self._undecided if source in self.sent}
        return [source for source, value in asked.items() if _ENABLED_ONLY not in value]

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
            ("event requests refused by ODP", 0, self.odp.get("refused_events", 0)),
        )
        return [f"{what}: {there:,}, should be {should:,}" for what, should, there in due if there != should]

    def _fate(self, source: str) -> Fate | None:
        return Fate.DEAD_LETTER if source in self._dead else self._results.get(source)


def _sentence(what: str, sources: list[str]) -> list[str]:
    if not sources:
        return []
    named = ", ".join(sources[:_NAMED_AT_MOST])
    more = ", ..." if len(sources) > _NAMED_AT_MOST else ""
    return [f"{len(sources):,} records {what}: {named}{more}"]
