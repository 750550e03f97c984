"""One question to the prediction service: which variation of a rule for this user.

The rule's id goes into the address, the user and the attributes that the rule depends on into the body, with a new id
for each question; the answer names one variation. `cmab/circuits.py` says whether there is any use in asking;
`cmab/predictions.py` asks.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from urllib.parse import quote

import orjson

from pipeline.cmab.circuits import Circuits
from pipeline.decision import Wanted
from pipeline.errors import PredictionUnavailable, Unavailable, UpstreamError
from pipeline.limits import Backoff
from pipeline.metrics import Metrics
from pipeline.settings import CmabSettings
from pipeline.transport import Transport

OUTCOMES = ("ok", "retried", "failed", "overloaded", "held")
_MAX_ANSWER_BYTES = 64 * 1024


class _Nonsense(Exception):
    """An answer that names no variation."""


@dataclass(slots=True)
class _Question:
    """`fault` is what its last try met, if any; `probes`: it finds out for others whether there are answers again."""

    rule_id: str
    url: str
    body: bytes
    tries: int = 0
    fault: str = ""
    probes: bool = False
    under_way: bool = False


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
        self._circuits = Circuits(self._backoff)

    async def predict(self, user_id: str, wanted: Wanted, uuid: str) -> str:
        """The variation id. Raises PredictionUnavailable, at the latest after `cmab.fetch_deadline`."""
        url = self._settings.prediction_url_template.replace("%s", quote(wanted.rule_id, safe=""))
        try:
            question = _Question(wanted.rule_id, url, _body(user_id, wanted, uuid))
        except TypeError as error:
            raise PredictionUnavailable(f"the user's attributes cannot be sent: {error}") from None
        try:
            async with asyncio.timeout(self._settings.fetch_deadline):
                variation_id = await self._tried(question)
        except TimeoutError:
            reason = f"no prediction within {self._settings.fetch_deadline:g} s"
            if question.under_way or question.probes:
                self._circuits.failed(question.rule_id, probed=question.probes)
            raise self._given_up(question, reason) from None
        self._outcomes["ok"].inc()
        return variation_id

    async def _tried(self, question: _Question) -> str:
        """The answer of the first try that brought one, of `1 + cmab.retries`."""
        while True:
            try:
                async with self._slots:
                    self._admit(question)
                    if question.tries:
                        self._outcomes["retried"].inc()
                    question.tries += 1
                    return await self._post(question)
            except (Unavailable, _Nonsense) as error:
                # A service that answers nonsense may answer better the next time, as one that does not answer at all.
                question.fault = str(error)
                if question.tries > self._settings.retries:
                    raise self._given_up(question, question.fault) from None
                asked = error.retry_after if isinstance(error, Unavailable) else None
            except UpstreamError as error:
                raise self._given_up(question, str(error)) from None
            await asyncio.sleep(min(self._backoff.delay(question.tries, asked), self._settings.request_timeout))

    def _admit(self, question: _Question) -> None:
        """Raises PredictionUnavailable while there is no use in asking."""
        # One that finds out for others goes on to its last try: it is only then that it has found out.
        if question.probes:
            return
        if self._circuits.holds(question.rule_id):
            if question.fault:
                raise self._given_up(question, question.fault)
            self._outcomes["held"].inc()
            raise PredictionUnavailable("the prediction service does not answer for this rule")
        question.probes = self._circuits.probes(question.rule_id)

    def _given_up(self, question: _Question, reason: str) -> PredictionUnavailable:
        self._outcomes["failed"].inc()
        self._circuits.tell(question.rule_id, reason)
        return PredictionUnavailable(reason)

    async def _post(self, question: _Question) -> str:
        question.under_way = True
        started = time.perf_counter()
        try:
            answer = await self._transport.post(
                question.url, question.body, headers={"Content-Type": "application/json"},
                timeout=self._settings.request_timeout, max_bytes=_MAX_ANSWER_BYTES,
            )  # fmt: skip
        except Unavailable:
            question.under_way = False
            if not question.probes or question.tries > self._settings.retries:
                self._circuits.failed(question.rule_id, probed=question.probes)
            raise
        except UpstreamError:
            self._circuits.answered(question.rule_id)
            raise
        finally:
            self._seconds.observe(time.perf_counter() - started)
        question.under_way = False
        self._circuits.answered(question.rule_id)
        return _variation_id(answer.body)


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
