"""Deciding without Kafka or network: `pipeline decide` reads requests as JSON lines and writes a result for each.

The same contract and the same code as the topic; `source` is `stdin-0-<line>`, counted from 0.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import orjson

from pipeline.decision import Facts, answer, failure
from pipeline.errors import ConfigurationError, DatafileRefused, Rejected
from pipeline.messages.decide import DecideRequest, parse_decide_request
from pipeline.messages.words import FETCH_FAILED, UNKNOWN_KEY
from pipeline.project import ProjectConfig, compile_datafile

_MAX_LINE_BYTES = 1024**2


def decide_lines(lines: Iterable[bytes], datafile: bytes, segments: bytes) -> Iterator[bytes]:
    """One result (JSON, no newline) for each line, in order. `segments` is a JSON object: user id -> list of segments.

    Raises ConfigurationError when the datafile or the segments cannot be used; a line that cannot be decided gives a
    result with `error`.
    """
    try:
        project = compile_datafile(datafile)
    except DatafileRefused as error:
        raise ConfigurationError([f"--datafile: {error}"]) from error
    known = _segments(segments)
    nobody = Facts(segments=frozenset())
    for number, line in enumerate(lines):
        source, timestamp = f"stdin-0-{number}", int(time.time() * 1000)
        try:
            request = parse_decide_request(line.rstrip(b"\r\n"), max_bytes=_MAX_LINE_BYTES)
        except Rejected as why:
            yield failure(_nobody(), str(why), source=source, timestamp=timestamp, revision=None)
            continue
        fault = _fault(request, project)
        request.sdk_key = request.sdk_key or project.sdk_key or None
        if fault is not None:
            yield failure(request, fault, source=source, timestamp=timestamp, revision=None)
        else:
            facts = known.get(request.user_id, nobody) if request.fetch_segments else Facts()
            yield answer(project, request, facts, source=source, timestamp=timestamp)


def _fault(request: DecideRequest, project: ProjectConfig) -> str | None:
    """Why a request cannot be decided, as the decide role would say it."""
    if request.error is not None:
        return request.error
    if request.sdk_key and project.sdk_key and request.sdk_key != project.sdk_key:
        return UNKNOWN_KEY
    return FETCH_FAILED if request.fetch_segments and project.odp is None else None


def _segments(document: bytes) -> dict[str, Facts]:
    try:
        people = orjson.loads(document)
    except orjson.JSONDecodeError as error:
        raise ConfigurationError([f"--segments: not JSON: {error}"]) from error
    if not isinstance(people, dict) or not all(isinstance(names, list) for names in people.values()):
        raise ConfigurationError(["--segments: must be an object of user id -> list of segments"])
    return {
        user_id: Facts(segments=frozenset(name for name in names if isinstance(name, str)))
        for user_id, names in people.items()
    }


def _nobody() -> DecideRequest:
    """The stand-in for a line in which no user could be found."""
    return DecideRequest("", None, None, {}, (), frozenset(), (), False, False, False, None, None)
