"""What optimizely-sdk itself decides, in the shape of our answers.

Decisions, ids and dispatched flags come from its notifications, impressions from the event payloads it would post,
profiles from a user profile service, predictions through its own CMAB service, all but the call over the network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from optimizely.cmab.cmab_service import CmabDecision, DefaultCmabService
from optimizely.decision_service import DecisionService
from optimizely.error_handler import NoOpErrorHandler
from optimizely.event.event_factory import EventFactory
from optimizely.helpers import condition
from optimizely.helpers.enums import NotificationTypes
from optimizely.helpers.sdk_settings import OptimizelySdkSettings
from optimizely.logger import BaseLogger
from optimizely.odp.lru_cache import LRUCache
from optimizely.optimizely import Optimizely
from optimizely.optimizely_user_context import OptimizelyUserContext
from optimizely.project_config import ProjectConfig
from optimizely.user_profile import UserProfileService

from pipeline.messages.decide import DecideRequest
from tests.conformance.dice import Json
from tests.conformance.observed import Tally, source_of
from tests.conformance.requests import Case

_LOGGER = BaseLogger()  # says nothing, and faster than NoOpLogger does


class Refused(Exception):
    """The SDK does not take the datafile."""


@dataclass
class Theirs:
    decisions: dict[str, Json]
    impressions: list[Json]
    envelope: Json | None
    """What is said once for all impressions of a request."""
    saved: dict[str, str] | None
    """The profile as it was saved; None if it was not."""
    asked: dict[str, Json]
    """Attributes by attribute id that a prediction was asked for with, by rule id."""


class _Manager:
    config: Any = None

    def get_config(self) -> Any:
        return self.config

    def get_sdk_key(self) -> None:
        return None


class _Recorder:
    """An event processor that keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def process(self, user_event: Any) -> None:
        self.events.append(user_event)


class _Profiles(UserProfileService):
    """A user profile service of one user."""

    def __init__(self, stored: dict[str, str]) -> None:
        self._stored = stored
        self.saved: dict[str, str] | None = None

    def lookup(self, user_id: str) -> Json:
        stored = {key: {"variation_id": value} for key, value in self._stored.items()}
        return {"user_id": user_id, "experiment_bucket_map": stored}

    def save(self, profile: Json) -> None:
        assert self.saved is None, "one save for a request"
        self.saved = {key: kept["variation_id"] for key, kept in profile["experiment_bucket_map"].items()}


class _Predictions(DefaultCmabService):
    """The SDK's service with its cache and its choice of attributes; only what it would fetch is given."""

    def __init__(self) -> None:
        nothing: Any = None  # there is no client: nothing is fetched
        super().__init__(LRUCache(1000, 1000), nothing, _LOGGER)
        self.known: Json = {}
        self.asked: dict[str, Json] = {}

    def begin(self, known: Json) -> None:
        self.cmab_cache.reset()
        self.known, self.asked = known, {}

    def _fetch_decision(self, rule_id: str, _user_id: str, attributes: Json) -> Any:
        assert self.asked.setdefault(rule_id, attributes) == attributes
        found = self.known.get(rule_id)
        if found is None:
            raise ConnectionError
        return CmabDecision(variation_id=found["variationId"], cmab_uuid=found["uuid"])


class _Decisions(DecisionService):
    """Keeps the result for each flag, with its reasons."""

    def __init__(self, predictions: _Predictions) -> None:
        super().__init__(_LOGGER, None, predictions)
        self.results: dict[str, Any] = {}

    def get_decision_for_flag(self, feature_flag: Any, *arguments: Any, **more: Any) -> Any:
        result = super().get_decision_for_flag(feature_flag, *arguments, **more)
        self.results[feature_flag.key] = result
        return result


def _watching(oracle: Oracle) -> type:
    """The SDK's evaluator of leaves, with its results counted."""

    class Evaluator(condition.CustomAttributeConditionEvaluator):
        def evaluate(self, index: int) -> bool | None:
            result: bool | None = super().evaluate(index)
            match = self.condition_data[index][3]
            oracle.tally.leaves["exact" if match is None else str(match), result] += 1
            return result

        def compare_user_version_with_target_version(self, target: str, user: str) -> Literal[0, 1, -1] | None:
            try:
                return super().compare_user_version_with_target_version(target, user)
            except ValueError:
                return -1  # the SDK does not survive a number compared with text; a number comes first

    return Evaluator


@contextmanager
def _in_use(evaluator: type) -> Iterator[None]:
    own = condition.CustomAttributeConditionEvaluator
    setattr(condition, own.__name__, evaluator)
    try:
        yield
    finally:
        setattr(condition, own.__name__, own)


@dataclass
class Oracle:
    """One client, given one datafile after another."""

    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self._manager, self._recorder, self._predictions = _Manager(), _Recorder(), _Predictions()
        # Typed as Any: what is handed in here is not of the SDK's own classes.
        manager: Any = self._manager
        recorder: Any = self._recorder
        self._client: Any = Optimizely(
            logger=_LOGGER, config_manager=manager, event_processor=recorder,
            settings=OptimizelySdkSettings(odp_disabled=True), cmab_service=self._predictions,
        )  # fmt: skip
        self._decisions = self._client.decision_service = _Decisions(self._predictions)
        self._evaluator = _watching(self)
        self._notified: dict[str, Json] = {}
        self._client.notification_center.add_notification_listener(NotificationTypes.DECISION, self._notify)

    def take(self, datafile: Json) -> Any:
        """The SDK's own reading of a datafile, used from now on. Raises Refused."""
        try:
            self._manager.config = ProjectConfig(json.dumps(datafile), _LOGGER, NoOpErrorHandler)
        except Exception as error:
            raise Refused(repr(error)) from error
        return self._manager.config

    def _notify(self, _kind: str, _user: str, _attributes: Json, info: Json) -> None:
        self._notified[info["flag_key"]] = info

    def answer(self, case: Case, request: DecideRequest) -> Theirs:
        self._notified.clear()
        self._recorder.events.clear()
        self._decisions.results.clear()
        self._predictions.begin(case.predictions or {})
        profiles = None if case.profile is None else _Profiles(case.profile)
        self._decisions.user_profile_service = profiles
        with _in_use(self._evaluator):
            decided = self._decide(self._context(case, request), request, case.request.get("keys") or [])
        events = self._recorder.events
        return Theirs(
            {key: self._decision(key, decision) for key, decision in decided.items()},
            _of_each_key(events, repeated=request.keys_repeated),
            _envelope(events[0]) if events else None,
            None if profiles is None else profiles.saved,
            self._predictions.asked,
        )

    def _context(self, case: Case, request: DecideRequest) -> Any:
        context = self._client.create_user_context(request.user_id, request.attributes)
        if case.segments is not None:
            context.set_qualified_segments(case.segments)
        for forced in request.forced:
            context.set_forced_decision(
                OptimizelyUserContext.OptimizelyDecisionContext(forced.flag_key, forced.rule_key or None),
                OptimizelyUserContext.OptimizelyForcedDecision(forced.variation_key),
            )
        return context

    def _decide(self, context: Any, request: DecideRequest, sent: list[str]) -> dict[str, Any]:
        """`sent` are the keys as they were sent, repeats and all."""
        options = sorted(request.options)
        flags = self._manager.config.feature_key_map
        every = len(flags) == len(self._manager.config.feature_flags)
        # The SDK decides a key twice that stands in the datafile twice, and sends two impressions.
        asked = list(request.keys or flags)
        if len(sent) == 1:
            decided = {asked[0]: context.decide(asked[0], options)}
        elif sent or not every:
            decided = context.decide_for_keys(sent or asked, options)
        else:
            decided = context.decide_all(options)
        self.tally.requests += 1
        self.tally.decisions += len(asked)
        results = self._decisions.results
        self.tally.sources.update(source_of(results.get(key), known=key in flags) for key in asked)
        return decided

    def _decision(self, key: str, decision: Any) -> Json:
        info = self._notified.get(key, {})
        result = self._decisions.results.get(key)
        failed = result is not None and result["error"]
        context = decision.user_context.as_json()
        return {
            "variationKey": decision.variation_key or "",
            "enabled": decision.enabled,
            "ruleKey": decision.rule_key or "",
            "flagKey": decision.flag_key,
            "userContext": {"userId": context["user_id"], "attributes": context["attributes"]},
            "variables": {name: _finite(value) for name, value in (decision.variables or {}).items()},
            "experimentId": info.get("experiment_id") or "",
            "variationId": info.get("variation_id") or "",
            "ruleType": "" if failed or not info else "feature-test" if result is None else result["decision"].source,
            "decisionEventDispatched": info.get("decision_event_dispatched", False),
            "failure": decision.reasons[-1] if failed else None,
        }


def _of_each_key(events: list[Any], *, repeated: bool) -> list[Json]:
    """The impressions; of a key that is sent twice the SDK sends them twice, and here they are sent once."""
    found: list[Json] = []
    for event in map(_impression, events):
        if not repeated or event not in found:
            found.append(event)
    return found


def _finite(value: object) -> object:
    """JSON has neither infinity nor NaN; a value that holds one is null in an answer."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return None
    return value


def _payload(event: Any) -> Json:
    created: Any = EventFactory.create_log_event([event], _LOGGER)
    found: Json = created.params
    return found


def _envelope(event: Any) -> Json:
    payload = _payload(event)
    return {
        "revision": payload["revision"],
        "accountId": payload["account_id"],
        "projectId": payload["project_id"],
        "region": event.event_context.region.upper(),
        "anonymizeIp": payload["anonymize_ip"],
        "attributes": [
            {name: one[name] for name in ("entity_id", "key", "value")} | {"type": one["type"]}
            for one in payload["visitors"][0]["attributes"]
        ],
    }


def _impression(event: Any) -> Json:
    (visitor,) = _payload(event)["visitors"]
    (decision,) = visitor["snapshots"][0]["decisions"]
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
