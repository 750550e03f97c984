"""One question to the prediction service: which variation of a rule for this user.

The rule's id goes into the address, the user and the attributes that the rule depends on into the body, with a new id
for each question; the answer names one variation. A service that does not answer is asked by one user now and then,
and the others go without: nobody waits for what is down. `cmab/predictions.py` asks.
"""

from __future__ import annotations

import asyncio
import time
from urllib.parse import quote

import orjson
import structlog

from pipeline.decision import Wanted
from pipeline.errors import PredictionUnavailable, Unavailable, UpstreamError
from pipeline.limits import Backoff
from pipeline.metrics import Metrics
from pipeline.settings import CmabSettings
from pipeline.transport import Transport

OUTCOMES = ("ok", "retried", "failed", "overloaded", "held")
_MAX_ANSWER_BYTES = 64 * 1024
# One user's bad luck is not an outage; these in a row, of many asked at once, are.
_FAILURES = 5
_TOLD_SECONDS = 30.0

log = structlog.get_logger("pipeline.cmab")


class CmabClient:
    """Asks for predictions; at most `cmab.max_in_flight` requests of the process are under way."""

    def __init__(
        self, *, transport: Transport, settings: CmabSettings, metrics: Metrics, backoff: Backoff | None = None
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._backoff = backoff or Backoff(first=0.1, cap=10.0)
        self._slots = asyncio.Semaphore(settings.max_in_flight)
        self._outcomes = {name: metrics.cmab_requests.labels(name) for name in OUTCOMES}
        self._seconds = metrics.cmab_request_seconds
        self._outage = _Outage(self._backoff)

    async def predict(self, user_id: str, wanted: Wanted, uuid: str) -> str:
        """The variation id. Raises PredictionUnavailable, at the latest after `cmab.fetch_deadline`."""
        url = self._settings.prediction_url_template.replace("%s", quote(wanted.rule_id, safe=""))
        try:
            body = _body(user_id, wanted, uuid)
        except TypeError as error:
            raise PredictionUnavailable(f"the user's attributes cannot be sent: {error}") from None
        try:
            async with asyncio.timeout(self._settings.fetch_deadline):
                variation_id = await self._tried(url, body)
        except TimeoutError:
            raise self._failed(f"no prediction within {self._settings.fetch_deadline:g} s", outage=True) from None
        self._outcomes["ok"].inc()
        self._outage.over()
        return variation_id

    async def _tried(self, url: str, body: bytes) -> str:
        """The answer of the first try that brought one, of `1 + cmab.retries`."""
        tries = 0
        while True:
            try:
                async with self._slots:
                    if not self._outage.may_ask():
                        self._outcomes["held"].inc()
                        raise PredictionUnavailable("the prediction service does not answer")
                    return await self._post(url, body)
            except (Unavailable, _Nonsense) as error:
                # A service that answers nonsense may answer better the next time, as one that does not answer at all.
                tries += 1
                if tries > self._settings.retries:
                    raise self._failed(str(error), outage=isinstance(error, Unavailable)) from None
                asked = error.retry_after if isinstance(error, Unavailable) else None
            except UpstreamError as error:
                raise self._failed(str(error), outage=False) from None
            self._outcomes["retried"].inc()
            await asyncio.sleep(min(self._backoff.delay(tries, asked), self._settings.request_timeout))

    async def _post(self, url: str, body: bytes) -> str:
        started = time.perf_counter()
        try:
            answer = await self._transport.post(
                url, body, headers={"Content-Type": "application/json"},
                timeout=self._settings.request_timeout, max_bytes=_MAX_ANSWER_BYTES,
            )  # fmt: skip
        finally:
            self._seconds.observe(time.perf_counter() - started)
        return _variation_id(answer.body)

    def _failed(self, reason: str, *, outage: bool) -> PredictionUnavailable:
        self._outcomes["failed"].inc()
        self._outage.failed(reason, counts=outage)
        return PredictionUnavailable(reason)


class _Nonsense(Exception):
    """An answer that names no variation."""


class _Outage:
    """Whether the service answers at all. After some failures in a row one request now and then finds out."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._failures = 0
        self._until = 0.0
        self._untold = 0
        self._told_at = -_TOLD_SECONDS

    def may_ask(self) -> bool:
        if self._failures < _FAILURES:
            return True
        now = time.monotonic()
        if now < self._until:
            return False
        # Whoever comes first asks for all; the next one may when that has failed, or is overdue.
        self._until = now + self._backoff.cap
        return True

    def failed(self, reason: str, *, counts: bool) -> None:
        """`counts`: it was the service's doing, and not what it was asked."""
        self._untold += 1
        if counts:
            self._failures += 1
            self._until = time.monotonic() + self._backoff.delay(max(1, self._failures - _FAILURES + 1))
        if time.monotonic() - self._told_at >= _TOLD_SECONDS:
            log.warning("predictions fail: decisions that need one are errors", reason=reason, failures=self._untold)
            self._told_at, self._untold = time.monotonic(), 0

    def over(self) -> None:
        if self._failures >= _FAILURES:
            log.info("predictions are back", failures=self._untold)
            self._untold = 0
        self._failures = 0


def _variation_id(body: bytes) -> str:
    """What an answer says, read as the Python SDK reads it: the first prediction alone, whatever type its id is of."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _Nonsense("the prediction service did not answer with JSON") from None
    predictions = document.get("predictions") if isinstance(document, dict) else None
    first = predictions[0] if isinstance(predictions, list) and predictions else None
    if not isinstance(first, dict) or "variation_id" not in first:
        raise _Nonsense("the prediction service answered without a variation")
    return str(first["variation_id"])


def _body(user_id: str, wanted: Wanted, uuid: str) -> bytes:
    attributes = [
        {"id": attribute_id, "value": value, "type": "custom_attribute"}
        for attribute_id, value in wanted.attributes.items()
    ]
    instance = {"visitorId": user_id, "experimentId": wanted.rule_id, "attributes": attributes, "cmabUUID": uuid}
    return orjson.dumps({"instances": [instance]})
