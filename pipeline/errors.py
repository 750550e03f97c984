"""Every error this package raises on purpose. A leaf says what its receiver does, not where it arose.

PipelineError
├── ConfigurationError      the process does not start; `mistakes` lists all of them at once
├── DatafileRefused         the datafile is not taken; the last good one stays in use
├── PredictionUnavailable   a rule's prediction could not be had: the decision that needs it is an error
├── Rejected                this record can never be processed: it becomes a dead letter
├── SegmentsUnavailable     the user's segments could not be fetched: the request is answered with an error
├── StartFailed             the broker or a topic is not as needed; the message says what to do
└── UpstreamError           an HTTP service did not do what was asked
    ├── Unavailable         408, 425, 429, 5xx, sockets, time-outs: hold, back off, try again
    ├── AccessRefused       401, 403, 404: hold and alarm; a person must act, nothing is lost meanwhile
    └── PayloadRefused      400, 413, 422: split the payload until the one bad part is alone
"""

from __future__ import annotations

from collections.abc import Sequence


class PipelineError(Exception):
    """The root: `except PipelineError` catches everything this package raises on purpose."""


class ConfigurationError(PipelineError):
    """The settings cannot be used.

    `mistakes` holds one sentence for each, all of them, so that a person mends a file once and not line by line;
    `warnings` what else should be looked at meanwhile.
    """

    def __init__(self, mistakes: Sequence[str], warnings: Sequence[str] = ()) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)
        self.warnings = tuple(warnings)


class DatafileRefused(PipelineError):
    """A datafile is not taken. The text says what is wrong and where in the document."""


class PredictionUnavailable(PipelineError):
    """The prediction service gave no variation for a user. The text says why."""


class Rejected(PipelineError):
    """A record that can never be processed.

    `reason` is one of a small fixed set (it is a metric label and a header); `detail` is for people and in our words
    never quotes the record's values, which may be personal. What a service answered may, and follows them.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason
        self.detail = detail


class SegmentsUnavailable(PipelineError):
    """ODP gave no segments for a user. `reason` is a small fixed set, used as a metric label."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason
        self.detail = detail


class StartFailed(PipelineError):
    """The worker cannot start (broker, password, topics). The message says what is wrong and what to do."""


class UpstreamError(PipelineError):
    """An HTTP service answered with a failure or not at all.

    `status` is the HTTP status, 0 for a socket failure or a time-out; `body` the beginning of the answer.
    """

    def __init__(self, message: str, *, status: int = 0, body: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class Unavailable(UpstreamError):
    """Try again. `retry_after` is what the service asked for, in seconds, if it did."""

    def __init__(self, message: str, *, status: int = 0, body: bytes = b"", retry_after: float | None = None) -> None:
        super().__init__(message, status=status, body=body)
        self.retry_after = retry_after


class AccessRefused(UpstreamError):
    """401, 403, 404: the key or address is wrong. Held and alarmed; a revoked key loses nothing."""


class PayloadRefused(UpstreamError):
    """400, 413, 422: something in the payload is not acceptable. Split until it is alone."""
