"""Stand-in for the service that predicts variations of contextual bandits: POST /predict/<rule id>.

Takes exactly what is documented, refuses (400) the rest, and gives a visitor the same variation each time. A rule has
the variations that the control `variations` (rule id -> variation ids) names; one it does not name has two, numbered
as the sandbox's project numbers them: the rule's id with 1 and with 2 behind it. Control `answer`, a document that is
answered in place of predictions; control `rule_status` (rule id -> status), what rules are answered with instead.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar
from uuid import UUID

import orjson
from aiohttp import web

from pipeline.sandbox.server import STATUSES, Handler, StandIn, answer_json, argument_parser, serve

_REFUSALS_KEPT = 20


class Cmab(StandIn):
    service = "cmab"
    controls: ClassVar[Mapping[str, Any]] = {"variations": {}, "answer": None, "rule_status": {}}
    meanings: ClassVar[Mapping[str, str]] = {
        "variations": "rule id -> list of variation ids that the rule predicts",
        "answer": "a document answered in place of every prediction; null: none",
        "rule_status": f"rule id -> status from {STATUSES[0]} to {STATUSES[-1]} that the rule's requests get",
    }

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self._by_rule: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()
        self._uuids: Counter[str] = Counter()
        self._given: Counter[str] = Counter()
        self._instances: list[dict[str, Any]] = []
        self._refused = self._answered_otherwise = 0
        self._refusals: list[str] = []

    def routes(self) -> Mapping[tuple[str, str], Handler]:
        return {("POST", "/predict/{rule_id}"): self._post_predict}

    def refusal(self, controls: Mapping[str, Any]) -> str | None:
        fault = super().refusal(controls)
        statuses = controls.get("rule_status", {}).values() if fault is None else ()
        if any(type(status) is not int or status not in STATUSES for status in statuses):
            return f"rule_status is to be statuses from {STATUSES[0]} to {STATUSES[-1]}"
        return fault

    def ledger(self, query: Mapping[str, str]) -> dict[str, Any]:
        counted: dict[str, Any] = {
            "predictions": self._by_rule.total(),
            "by_rule": self._by_rule,
            "by_variation": self._given,
            "visitors": len(self._asked),
            "repeated_uuids": self._uuids.total() - len(self._uuids),
            "answered_otherwise": self._answered_otherwise,  # requests that got the control `answer`
            "refused": self._refused,
            "refusals": self._refusals,
        }
        if query.get("full"):
            counted |= {"asked": self._asked, "instances": self._instances}
        return counted

    async def _post_predict(self, request: web.Request) -> web.Response:
        rule_id = request.match_info["rule_id"]
        body = await request.read()
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            return self._refuse("not JSON")
        fault = _fault(document, rule_id)
        if fault is not None:
            return self._refuse(fault)
        if rule_id in self.faults["rule_status"]:
            return answer_json({}, status=self.faults["rule_status"][rule_id])
        if self.faults["answer"] is not None:
            self._answered_otherwise += 1
            return answer_json(self.faults["answer"])
        return answer_json({"predictions": [self._predict(rule_id, instance) for instance in document["instances"]]})

    def _predict(self, rule_id: str, instance: dict[str, Any]) -> dict[str, str]:
        visitor = instance["visitorId"]
        variations = self.faults["variations"].get(rule_id) or [f"{rule_id}1", f"{rule_id}2"]
        digest = hashlib.sha256(f"{rule_id}:{visitor}".encode()).digest()
        variation = variations[int.from_bytes(digest[:4]) % len(variations)]
        self._by_rule[rule_id] += 1
        self._asked[visitor] += 1
        self._uuids[instance["cmabUUID"]] += 1
        self._given[variation] += 1
        self._instances.append(instance)
        return {"variation_id": variation}

    def _refuse(self, why: str) -> web.Response:
        self._refused += 1
        if len(self._refusals) < _REFUSALS_KEPT:
            self._refusals.append(why)
        return answer_json({"error": why}, status=400)


def _fault(document: Any, rule_id: str) -> str | None:
    """What is not as documented, None if nothing."""
    if type(document) is not dict or document.keys() != {"instances"}:
        return "not exactly instances"
    instances = document["instances"]
    if type(instances) is not list or not instances:
        return "instances is empty"
    for number, instance in enumerate(instances):
        fault = _instance_fault(instance, rule_id)
        if fault is not None:
            return f"instances[{number}]: {fault}"
    return None


def _instance_fault(instance: Any, rule_id: str) -> str | None:
    if type(instance) is not dict or instance.keys() != {"visitorId", "experimentId", "attributes", "cmabUUID"}:
        return "not exactly visitorId, experimentId, attributes, cmabUUID"
    if type(instance["visitorId"]) is not str or not instance["visitorId"]:
        return "visitorId is no text"
    if instance["experimentId"] != rule_id:
        return "experimentId is not the rule of the path"
    if type(instance["cmabUUID"]) is not str or not _is_uuid(instance["cmabUUID"]):
        return "cmabUUID is no UUID"
    if type(instance["attributes"]) is not list:
        return "attributes is no list"
    for attribute in instance["attributes"]:
        if type(attribute) is not dict or attribute.keys() != {"id", "value", "type"}:
            return "an attribute is not exactly id, value, type"
        if type(attribute["id"]) is not str or attribute["type"] != "custom_attribute":
            return "an attribute's id is no text, or its type not custom_attribute"
        if type(attribute["value"]) not in (str, int, float, bool):
            return "an attribute's value is no text, number or boolean"
    return None


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def main() -> None:
    options = argument_parser("Stand-in for the prediction service of contextual bandits").parse_args()
    serve(Cmab(), options.port)


if __name__ == "__main__":
    main()
