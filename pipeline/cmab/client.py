"""One question to the prediction service: which variation of a rule for this user.

The rule's id goes into the address, the user and the attributes that the rule depends on into the body, with a new id
for each question; the answer names one variation. `cmab/predictions.py` asks.
"""

from __future__ import annotations

import asyncio
import time
from urllib.parse import quote

import msgspec
import orjson
import structlog

from pipeline.decision import Wanted
from pipeline.errors import PredictionUnavailable, Unavailable, UpstreamError
from pipeline.limits import Backoff
from pipeline.metrics import Metrics
from pipeline.settings import CmabSettings
from pipeline.transport import Transport

OUTCOMES = ("ok", "retried", "failed")
_MAX_ANSWER_BYTES = 64 * 1024

log = structlog.get_logger("pipeline.cmab")


class _Predicted(msgspec.Struct):
    variation_id: str


class _Answer(msgspec.Struct):
    predictions: list[_Predicted]


_read = msgspec.json.Decoder(_Answer).decode


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
        self._failing = False

    async def predict(self, user_id: str, wanted: Wanted, uuid: str) -> str:
        """The variation id. Raises PredictionUnavailable when no try of `1 + cmab.retries` brought one."""
        url = self._settings.prediction_url_template.replace("%s", quote(wanted.rule_id, safe=""))
        try:
            body = _body(user_id, wanted, uuid)
        except TypeError as error:
            raise PredictionUnavailable(f"the user's attributes cannot be sent: {error}") from error
        tries = 0
        while True:
            try:
                async with self._slots:
                    variation_id = await self._post(url, body)
            except (Unavailable, PredictionUnavailable) as error:
                # A service that answers nonsense may answer better the next time, as one that does not answer at all.
                tries += 1
                if tries > self._settings.retries:
                    raise self._failed(error) from error
                self._outcomes["retried"].inc()
                asked = error.retry_after if isinstance(error, Unavailable) else None
                await asyncio.sleep(min(self._backoff.delay(tries, asked), self._settings.request_timeout))
            except UpstreamError as error:
                raise self._failed(error) from error
            else:
                self._outcomes["ok"].inc()
                self._show(failing=False)
                return variation_id

    async def _post(self, url: str, body: bytes) -> str:
        started = time.perf_counter()
        try:
            answer = await self._transport.post(
                url, body, headers={"Content-Type": "application/json"},
                timeout=self._settings.request_timeout, max_bytes=_MAX_ANSWER_BYTES,
            )  # fmt: skip
        finally:
            self._seconds.observe(time.perf_counter() - started)
        try:
            predictions = _read(answer.body).predictions
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise PredictionUnavailable(f"not an answer of the prediction service: {error}") from error
        if not predictions:
            raise PredictionUnavailable("the prediction service answered without a prediction")
        return predictions[0].variation_id

    def _failed(self, error: UpstreamError | PredictionUnavailable) -> PredictionUnavailable:
        self._outcomes["failed"].inc()
        self._show(failing=True, reason=str(error))
        return error if isinstance(error, PredictionUnavailable) else PredictionUnavailable(str(error))

    def _show(self, *, failing: bool, reason: str = "") -> None:
        """One line when it begins and one when it is over, however many users it meets."""
        if failing and not self._failing:
            log.warning("predictions fail: decisions that need one are errors", reason=reason)
        elif self._failing and not failing:
            log.info("predictions are back")
        self._failing = failing


def _body(user_id: str, wanted: Wanted, uuid: str) -> bytes:
    attributes = [
        {"id": attribute_id, "value": value, "type": "custom_attribute"}
        for attribute_id, value in wanted.attributes.items()
    ]
    instance = {"visitorId": user_id, "experimentId": wanted.rule_id, "attributes": attributes, "cmabUUID": uuid}
    return orjson.dumps({"instances": [instance]})
