"""Deciding without Kafka or network: `pipeline decide` reads requests as JSON lines and writes a result for each.

The same contract and the same code as the topic; `source` is `stdin-0-<line>`, counted from 0. What would be fetched is
given instead: segments, sticky profiles, predictions.
"""

from __future__ import annotations

import time
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar, get_args
from uuid import NAMESPACE_OID, uuid5

import msgspec
import orjson

from pipeline.decision import Facts, Prediction, Wanted, answer, failure
from pipeline.errors import ConfigurationError, DatafileRefused, Rejected
from pipeline.messages.contracts import in_utf8
from pipeline.messages.decide import DecideRequest, parse_decide_request
from pipeline.messages.words import FETCH_FAILED, UNKNOWN_KEY
from pipeline.project import ProjectConfig, compile_datafile

_MAX_LINE_BYTES = 1024**2
_NOBODY = b"{}"
_T = TypeVar("_T")


class People:
    """What is known of users beforehand, each document a JSON object by user id.

    `segments`: lists of segments. `profiles`: sticky profiles as the SDKs keep them, experiment id ->
    `{"variation_id": ...}`; None: no profiles are kept, otherwise what is learned on one line counts on the next.
    `predictions`: rule id -> variation id; one that is not there could not be had.

    Raises ConfigurationError naming the option of a document that cannot be used.
    """

    def __init__(
        self, segments: bytes | None = None, profiles: bytes | None = None, predictions: bytes | None = None
    ) -> None:
        self._segments = _read("--segments", segments, dict[str, list[Any]], "user id -> list of segments")
        kept = 'user id -> experiment id -> {"variation_id": ...}'
        told = _read("--profiles", profiles, dict[str, dict[str, _Kept]], kept)
        self._profiles = {user: {key: kept.variation_id for key, kept in one.items()} for user, one in told.items()}
        self._sticky = profiles is not None
        predicted = "user id -> rule id -> variation id"
        self._predictions = _read("--predictions", predictions, dict[str, dict[str, str]], predicted)

    def facts(self, request: DecideRequest) -> Facts:
        segments = None
        if request.fetch_segments:
            segments = frozenset(name for name in self._segments.get(request.user_id, ()) if isinstance(name, str))
        return Facts(segments, self._profiles.setdefault(request.user_id, {}) if self._sticky else None)

    def predict(self, user_id: str, wanted: Iterable[Wanted]) -> dict[str, Prediction | None]:
        known = self._predictions.get(user_id, {})
        return {
            one.rule_id: Prediction(known[one.rule_id], str(uuid5(NAMESPACE_OID, f"{user_id} {one.rule_id}")))
            if one.rule_id in known
            else None
            for one in wanted
        }

    def learn(self, user_id: str, learned: Mapping[str, str]) -> None:
        self._profiles[user_id].update(learned)


class _Kept(msgspec.Struct):
    variation_id: str


def decide_lines(lines: Iterable[bytes], datafile: bytes, people: People) -> Iterator[bytes]:
    """One result (JSON, no newline) for each line, in order.

    Raises ConfigurationError when the datafile cannot be used; a line that cannot be decided gives a result with
    `error`.
    """
    try:
        project = compile_datafile(datafile)
    except DatafileRefused as error:
        raise ConfigurationError([f"--datafile: {error}"]) from error
    for number, line in enumerate(lines):
        source, timestamp = f"stdin-0-{number}", int(time.time() * 1000)
        if number == 0:
            # Where a file begins with a byte order mark, its first line does; of a record it is a fault.
            line = line.removeprefix(BOM_UTF8)
        try:
            request = parse_decide_request(line.rstrip(b"\r\n"), max_bytes=_MAX_LINE_BYTES)
        except Rejected as why:
            yield failure(_nobody(), str(why), source=source, timestamp=timestamp, revision=None)
            continue
        fault = _fault(request, project)
        request.sdk_key = request.sdk_key or project.sdk_key or None
        if fault is not None:
            yield failure(request, fault, source=source, timestamp=timestamp, revision=None)
        elif request.fetch_segments and project.odp is None:
            yield failure(request, FETCH_FAILED, source=source, timestamp=timestamp, revision=project.revision)
        else:
            yield _decided(project, request, people, source, timestamp)


def _decided(project: ProjectConfig, request: DecideRequest, people: People, source: str, timestamp: int) -> bytes:
    facts = people.facts(request)
    found = answer(project, request, facts, source=source, timestamp=timestamp)
    while found.wanted:
        predictions = {**(facts.predictions or {}), **people.predict(request.user_id, found.wanted.values())}
        facts = msgspec.structs.replace(facts, predictions=predictions)
        found = answer(project, request, facts, source=source, timestamp=timestamp)
    if found.learned:
        people.learn(request.user_id, found.learned)
    return found.value


def _fault(request: DecideRequest, project: ProjectConfig) -> str | None:
    """Why this is no request for the project, as the decide role would say it."""
    if request.error is not None:
        return request.error
    if request.sdk_key and project.sdk_key and request.sdk_key != project.sdk_key:
        return UNKNOWN_KEY
    return None


def _read(option: str, document: bytes | None, shape: type[_T], text: str) -> _T:
    try:
        return msgspec.json.decode(_NOBODY if document is None else in_utf8(document), type=shape)
    except msgspec.ValidationError as error:
        raise ConfigurationError(
            [f"{option}: must be an object of {text}: {error}{_whose(document, shape)}"]
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError([f"{option}: not JSON: {error}"]) from error


def _whose(document: bytes | None, shape: Any) -> str:
    """The first user whose entry is none, in brackets: the place in the error has no names."""
    (_, one) = get_args(shape)
    with suppress(msgspec.DecodeError, RecursionError):
        for user, given in msgspec.json.decode(in_utf8(document or _NOBODY), type=dict[str, Any]).items():
            try:
                msgspec.convert(given, one)
            except msgspec.ValidationError:
                return f" (user {orjson.dumps(user).decode()})"
    return ""


def _nobody() -> DecideRequest:
    """The stand-in for a line in which no user could be found."""
    return DecideRequest("", None, None, {}, (), frozenset(), (), False, False, False, None, None)
