"""The answer to a request: the decisions it asked for, and what their impressions need, as one JSON document.

The same bytes for the same project, request, facts, source and time. Most of the document was written when the
datafile arrived; here it is put together. Called by every way in: the decide role, which makes the large ones by
`slices.py`, and the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import orjson

from pipeline.decision.decider import decide
from pipeline.decision.visitor import Facts, Visitor, Wanted, visitor_of
from pipeline.messages.decide import DecideRequest
from pipeline.project import ProjectConfig
from pipeline.project.outcomes import HOLDOUT, Outcome, unknown_flag

_SILENT = "DISABLE_DECISION_EVENT"
_ENABLED_ONLY = "ENABLED_FLAGS_ONLY"
_NO_VARIABLES = "EXCLUDE_VARIABLES"
_REASONS = "INCLUDE_REASONS"


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What a request comes to, as far as the facts reach.

    `value` is that of the decide result, `learned` what the user's sticky profile is to keep from now on (experiment id
    to variation id), to be saved before the result is sent. With `wanted` there is no answer yet: fetch these
    predictions, and decide again with them among the facts.
    """

    value: bytes
    learned: Mapping[str, str] | None = None
    wanted: Mapping[str, Wanted] | None = None


def answer(project: ProjectConfig, request: DecideRequest, facts: Facts, *, source: str, timestamp: int) -> Answer:
    """Decide a request.

    `source` is the identity of the request's record, `timestamp` its time in milliseconds. One key is decided as the
    SDK's `decide`, several as `decide_for_keys`, none as `decide_all`; a key that was sent twice is several. Raises
    nothing, whatever the attributes hold.
    """
    if request.error is not None:
        return Answer(failure(request, request.error, source=source, timestamp=timestamp, revision=project.revision))
    attributes, context = user_context(request)
    visitor = visitor_of(request, facts)
    pieces = [opening(request, source, timestamp), project.written.decisions]
    impressions: list[bytes] = []
    decide_flags(project, request, visitor, context, request.keys or project.flags, pieces, impressions)
    if visitor.wanted:
        return Answer(b"", None, visitor.wanted)
    return Answer(joined(project, request, attributes, pieces, impressions), visitor.learned)


def failure(request: DecideRequest, message: str, *, source: str, timestamp: int, revision: str | None) -> bytes:
    """The value of a result for a request that could not be decided; `message` is in the Agent's words."""
    rest: dict[str, object] = {"revision": revision, "decisions": [], "error": message}
    if request.detail is not None and message == request.error:
        rest["detail"] = request.detail
    return opening(request, source, timestamp) + b"," + orjson.dumps(rest)[1:]


# The parts of an answer, for those who put it together: `answer` in one step, `slices.py` in several.


def opening(request: DecideRequest, source: str, timestamp: int) -> bytes:
    fields = {
        "requestId": source if request.request_id is None else request.request_id,
        "source": source,
        "timestamp": timestamp,
        "sdkKey": request.sdk_key,
        "userId": request.user_id,
    }
    return orjson.dumps(fields)[:-1]


def user_context(request: DecideRequest) -> tuple[bytes, bytes]:
    """The attributes, and the user context that each decision repeats."""
    try:
        attributes = orjson.dumps(request.attributes)
    except TypeError:
        attributes = _in_part(request.attributes)
    return attributes, b'{"userId":' + orjson.dumps(request.user_id) + b',"attributes":' + attributes + b"}"


def joined(
    project: ProjectConfig, request: DecideRequest, attributes: bytes, pieces: list[bytes], impressions: list[bytes]
) -> bytes:
    """The whole document of pieces that end with the last decision."""
    if impressions:
        tracked = project.attributes.written(request.attributes, attributes)
        pieces += (project.written.tracking, tracked, b'],"impressions":[', b",".join(impressions), b"]}}")
    else:
        pieces.append(b"]}")
    return b"".join(pieces)


def _in_part(attributes: Mapping[str, Any]) -> bytes:
    """The attributes as asked for, but null for one too deep or too large to be written again."""
    return orjson.dumps({key: value if _writable(value) else None for key, value in attributes.items()})


def _writable(value: object) -> bool:
    try:
        orjson.dumps([value])  # one level down, as it will be: depth is limited
    except TypeError:
        return False
    return True


def decide_flags(
    project: ProjectConfig, request: DecideRequest, visitor: Visitor, context: bytes, keys: Iterable[str],
    pieces: list[bytes], impressions: list[bytes], separator: bytes = b"",
) -> None:  # fmt: skip
    """Add the decisions about these flags to `pieces`, and an entry of `tracking.impressions` for each one due.

    `separator` is a comma where a decision stands before the first one.
    """
    options = request.options
    explained = _REASONS in options
    for key in keys:
        flag = project.flags.get(key)
        if flag is None:
            before, after = unknown_flag(key)
            pieces += (separator, before, context, after)
            separator = b","
            continue
        visitor.infos = [] if explained else None
        visitor.bypassed = None
        outcome = decide(flag, visitor)
        if not options and visitor.bypassed is None:
            # The common case: all but the user context was written when the datafile arrived.
            rest = outcome.plain
            if outcome.tracked:
                impressions.append(outcome.impression)
        else:
            due = [] if _SILENT in options else _due(outcome, visitor.bypassed)
            # What is filtered from the answer was still decided: without its impression the experiment is biased.
            impressions += due
            if _filtered(outcome, request):
                continue
            rest = _rest(outcome, visitor.infos, options, dispatched=bool(due))
        pieces += (separator, outcome.opening, context, rest)
        separator = b","


def _filtered(outcome: Outcome, request: DecideRequest) -> bool:
    """A single key is answered whatever comes of it, and an error always is. A key that was sent twice is several."""
    if outcome.enabled or outcome.failed or (len(request.keys) == 1 and not request.keys_repeated):
        return False
    return _ENABLED_ONLY in request.options


def _due(outcome: Outcome, bypassed: Outcome | None) -> list[bytes]:
    """The impressions owed, in the SDK's order: of a holdout that let the decision through, then its own."""
    due = [outcome.impression] if outcome.tracked else []
    if bypassed is not None and outcome.kind != HOLDOUT and not outcome.failed:
        return [bypassed.impression, *due]
    return due


def _rest(outcome: Outcome, infos: list[str] | None, options: frozenset[str], *, dispatched: bool) -> bytes:
    """What follows the user context of one decision. Reasons are all errors, then all infos."""
    bare = _NO_VARIABLES in options and not outcome.failed
    reasons = [] if bare else list(outcome.variables.errors)
    if infos is not None and not outcome.failed:
        reasons += infos
    variables = b"" if bare else outcome.variables.member
    return b',"reasons":' + orjson.dumps(reasons) + variables + (outcome.sent if dispatched else outcome.unsent)
