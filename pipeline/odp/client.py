"""One GraphQL request for many users' segments, and the rule which addresses of ODP may be called at all.

The address and key come from a datafile, which is another party's document: only hosts of `odp.allowed_hosts` are
called, and only over TLS unless told otherwise. `odp/coalescer.py` asks, `odp/events.py` uses the rule.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from yarl import URL

from pipeline.errors import AccessRefused, PipelineError, SegmentsUnavailable, Unavailable, UpstreamError
from pipeline.metrics import Metrics
from pipeline.odp.graphql import Outcome, QueryTooLarge, parse_answer, request_body
from pipeline.settings import OdpSettings
from pipeline.transport import Transport


class OdpAccount(Protocol):
    """Where a datafile says its ODP is: the public key and the segments its audiences use. Hashable by all three."""

    @property
    def host(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def segments_to_check(self) -> tuple[str, ...]: ...
    def __hash__(self) -> int: ...


class HostNotAllowed(PipelineError):
    """A datafile names a host as its ODP that the settings do not allow."""


def endpoint(host: str, path: str, settings: OdpSettings) -> str:
    """The address of `path` at a datafile's ODP host. Raises HostNotAllowed."""
    try:
        # The parser is the one the request is made with, so that the two cannot read an address differently.
        url = URL(host.rstrip("/") + path)
        name, port = (url.host or "").lower(), url.port
    except ValueError:
        raise HostNotAllowed("the datafile's ODP host is not a URL") from None
    if url.scheme not in ("https", "http") or url.user or url.password or url.query_string or url.fragment:
        raise HostNotAllowed("the datafile's ODP host is not a plain https URL")
    if url.scheme == "http" and not settings.allow_http:
        raise HostNotAllowed("the datafile's ODP host is without TLS, see odp.allow_http")
    if port is None or not any(_matches(name, allowed.lower()) for allowed in settings.allowed_hosts):
        raise HostNotAllowed(f"the datafile's ODP host {name} is not in odp.allowed_hosts")
    return str(url)


def _matches(name: str, allowed: str) -> bool:
    if allowed.startswith("*."):
        return name.endswith(allowed[1:]) and len(name) > len(allowed) - 1
    return name == allowed


class OdpClient:
    """Asks ODP which segments users qualify for."""

    def __init__(self, *, transport: Transport, settings: OdpSettings, metrics: Metrics) -> None:
        self._transport = transport
        self._settings = settings
        names = ("ok", "partial", "unavailable", "denied", "refused")
        self._outcomes = {name: metrics.odp_queries.labels(name) for name in names}
        self._seconds = metrics.odp_query_seconds
        self._users = metrics.odp_users_per_query
        self._in_flight = metrics.odp_queries_in_flight

    async def ask(self, account: OdpAccount, user_ids: Sequence[str]) -> list[Outcome]:
        """For each user, in order, the qualified segments or the failure that is the user's own.

        Raises SegmentsUnavailable (host_not_allowed), UpstreamError and its kinds, and QueryTooLarge, for all users.
        """
        try:
            url = endpoint(account.host, "/v3/graphql", self._settings)
        except HostNotAllowed as error:
            raise SegmentsUnavailable("host_not_allowed", str(error)) from error
        headers = {"Content-Type": "application/json", "x-api-key": account.key}
        body = request_body(user_ids, account.segments_to_check)
        self._users.observe(len(user_ids))
        started = time.perf_counter()
        try:
            with self._in_flight.track_inprogress():
                answer = await self._transport.post(url, body, headers=headers, timeout=self._settings.request_timeout)
            answers = parse_answer(answer.body, len(user_ids))
        except (UpstreamError, QueryTooLarge) as error:
            self._outcomes[_outcome_of(error)].inc()
            raise
        finally:
            self._seconds.observe(time.perf_counter() - started)
        self._outcomes["partial" if any(isinstance(one, SegmentsUnavailable) for one in answers) else "ok"].inc()
        return answers


def _outcome_of(error: UpstreamError | QueryTooLarge) -> str:
    if isinstance(error, Unavailable):
        return "unavailable"
    return "denied" if isinstance(error, AccessRefused) else "refused"
