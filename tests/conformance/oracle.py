"""What optimizely-sdk itself decides, in the shape of our answers.

Its decisions, ids and dispatched flags come from its notifications, its impressions from the event payloads it would
post. Nothing is patched but the CMAB service, which fails as an unreachable one does.
"""

from __future__ import annotations

import json
import math
from typing import Any, cast

from optimizely.event.event_factory import EventFactory
from optimizely.helpers.enums import NotificationTypes
from optimizely.helpers.sdk_settings import OptimizelySdkSettings
from optimizely.logger import NoOpLogger
from optimizely.optimizely import Optimizely
from optimizely.optimizely_user_context import OptimizelyUserContext

from tests.conformance.generator import Case, Json


class _Recorder:
    """An event processor that keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def process(self, user_event: Any) -> None:
        self.events.append(user_event)


class _Unreachable:
    def get_decision(self, *_: object) -> None:
        raise ConnectionError


class Oracle:
    def __init__(self, project: Json) -> None:
        self._recorder = _Recorder()
        self._logger = NoOpLogger()
        # Typed as Any: what is handed in here is not of the SDK's own classes.
        self._client: Any = Optimizely(
            datafile=json.dumps(project),
            logger=self._logger,
            skip_json_validation=True,
            event_processor=cast(Any, self._recorder),
            settings=OptimizelySdkSettings(odp_disabled=True),
        )
        if not self._client.config_manager.get_config():
            raise ValueError("the SDK refused the datafile")
        self._client.decision_service.cmab_service = cast(Any, _Unreachable())
        self._notified: dict[str, Json] = {}
        self._client.notification_center.add_notification_listener(NotificationTypes.DECISION, self._notify)

    def _notify(self, _kind: str, _user: str, _attributes: Json, info: Json) -> None:
        self._notified[info["flag_key"]] = info

    def answer(self, case: Case) -> tuple[dict[str, Json], list[Json], list[Json] | None]:
        """Decisions by flag key, impressions in order, and the visitor attributes of the first one."""
        request = case.request
        self._notified.clear()
        self._recorder.events.clear()
        context = self._client.create_user_context(request.user_id, request.attributes)
        if case.segments is not None:
            context.set_qualified_segments(sorted(case.segments))
        for forced in request.forced:
            context.set_forced_decision(
                OptimizelyUserContext.OptimizelyDecisionContext(forced.flag_key, forced.rule_key or None),
                OptimizelyUserContext.OptimizelyForcedDecision(forced.variation_key),
            )
        options = sorted(request.options)
        if len(request.keys) == 1:
            decided = {request.keys[0]: context.decide(request.keys[0], options)}
        elif request.keys:
            decided = context.decide_for_keys(list(request.keys), options)
        else:
            decided = context.decide_all(options)
        decisions = {key: self._decision(key, decision) for key, decision in decided.items()}
        visitors = [
            cast(Any, EventFactory.create_log_event([event], self._logger)).params["visitors"][0]
            for event in self._recorder.events
        ]
        attributes = visitors[0]["attributes"] if visitors else None
        return decisions, [_impression(visitor) for visitor in visitors], attributes

    def _decision(self, key: str, decision: Any) -> Json:
        info = self._notified.get(key, {})
        return {
            "variationKey": decision.variation_key or "",
            "enabled": decision.enabled,
            "ruleKey": decision.rule_key or "",
            "flagKey": decision.flag_key,
            "variables": {name: _finite(value) for name, value in (decision.variables or {}).items()},
            "experimentId": info.get("experiment_id") or "",
            "variationId": info.get("variation_id") or "",
            "decisionEventDispatched": info.get("decision_event_dispatched", False),
        }


def _finite(value: object) -> object:
    """JSON has no infinity; an answer holds null there."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _impression(visitor: Json) -> Json:
    decision = visitor["snapshots"][0]["decisions"][0]
    metadata = decision["metadata"]
    assert visitor["snapshots"][0]["events"][0]["entity_id"] == decision["campaign_id"]
    return {
        "flagKey": metadata["flag_key"],
        "ruleKey": metadata["rule_key"],
        "ruleType": metadata["rule_type"],
        "variationKey": metadata["variation_key"],
        "enabled": metadata["enabled"],
        "campaignId": decision["campaign_id"],
        "experimentId": decision["experiment_id"],
        "variationId": decision.get("variation_id"),
        "cmabUuid": metadata.get("cmab_uuid"),
    }
