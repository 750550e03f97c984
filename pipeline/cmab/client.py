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
from pipeline.outage import Upstream
from pipeline.settings import CmabSettings
from pipeline.transport import Transport

OUTCOMES = ("ok", "retried", "failed", "overloaded", "held")
_MAX_ANSWER_BYTES = 64 * 1024
# Only decisions ask: after an experiment was stopped, or without traffic, nobody finds out.
_FORGET_SECONDS = 300.0


class _Nonsense(Exception):
    """An answer that names no variation."""


@dataclass(slots=True)
class _Question:
    """`unanswered`: its last try brought no answer to go by, or is under way. `probes`: it finds out for others."""

    rule_id: str
    url: str
    body: bytes
    tries: int = 0
    unanswered: bool = False
    probes: bool = False


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
        # Half of the slots stay for rules that are answered, however many others hang.
        most_probes = max(1, settings.max_in_flight // 2)
        self.upstream = Upstream("cmab", metrics, forget_after=_FORGET_SECONDS)
        self._circuits = Circuits(
            self._backoff, overdue=settings.fetch_deadline, most_probes=most_probes, upstream=self.upstream
        )

    async def predict(self, user_id: str, wanted: Wanted, uuid: str) -> str:
        """The variation id. Raises PredictionUnavailable, at the latest after `cmab.fetch_deadline`."""
        url = self._settings.prediction_url_template.replace("%s", quote(wanted.rule_id, safe=""))
        try:
            question = _Question(wanted.rule_id, url, _body(user_id, wanted, uuid))
        except TypeError as error:
            raise PredictionUnavailable(f"the user's attributes cannot be sent: {error}") from None
        self._refuse_if_held(question)
        try:
            async with asyncio.timeout(self._settings.fetch_deadline):
                variation_id = await self._tried(question)
        except TimeoutError:
            raise self._given_up(question, f"no prediction within {self._settings.fetch_deadline:g} s") from None
        finally:
            if question.probes:
                self._circuits.probed()
        self._outcomes["ok"].inc()
        return variation_id

    async def _tried(self, question: _Question) -> str:
        """The answer of the first try that brought one, of `1 + cmab.retries`."""
        while True:
            try:
                async with self._slots:
                    return await self._try(question)
            except (Unavailable, _Nonsense) as error:
                # A service that answers nonsense may answer better the next time, as one that does not answer at all.
                if question.tries > self._settings.retries:
                    raise self._given_up(question, str(error)) from None
                asked = error.retry_after if isinstance(error, Unavailable) else None
            except UpstreamError as error:
                raise self._given_up(question, str(error)) from None
            await asyncio.sleep(min(self._backoff.delay(question.tries, asked), self._settings.request_timeout))

    async def _try(self, question: _Question) -> str:
        if question.tries:
            # Whoever was asked has all its tries: five that fail at once are no outage yet.
            self._outcomes["retried"].inc()
        else:
            self._refuse_if_held(question)  # it may have waited for long
            question.probes = self._circuits.probes(question.rule_id)
        question.tries += 1
        question.unanswered = True
        answer = await self._post(question)
        question.unanswered = False
        variation_id = _variation_id(answer)
        self._circuits.answered(question.rule_id, well=True)
        return variation_id

    def _refuse_if_held(self, question: _Question) -> None:
        if self._circuits.holds(question.rule_id):
            self._outcomes["held"].inc()
            raise PredictionUnavailable("the prediction service does not answer for this rule")

    def _given_up(self, question: _Question, reason: str) -> PredictionUnavailable:
        if question.unanswered:
            self._circuits.failed(question.rule_id, probed=question.probes, reason=reason)
        elif question.tries:
            # With a refusal, or with nonsense.
            self._circuits.answered(question.rule_id, well=False)
        self._outcomes["failed"].inc()
        self._circuits.tell(question.rule_id, reason)
        return PredictionUnavailable(reason)

    async def _post(self, question: _Question) -> bytes:
        started = time.perf_counter()
        try:
            answer = await self._transport.post(
                question.url, question.body, headers={"Content-Type": "application/json"},
                timeout=self._settings.request_timeout, max_bytes=_MAX_ANSWER_BYTES,
            )  # fmt: skip
        except UpstreamError as error:
            question.unanswered = isinstance(error, Unavailable)
            raise
        finally:
            self._seconds.observe(time.perf_counter() - started)
        return answer.body


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
