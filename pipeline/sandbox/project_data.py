"""A shop's project: two environments, fourteen flags of every kind, 5,000 people with their segments.

Written for this package; no customer's data. Everything is a function of its arguments, so the CDN, the ODP stand-in,
the traffic and a test that expects a certain decision agree without talking. Imports nothing of the worker.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import orjson

PRODUCTION, STAGING, REVOKED = "sandboxProduction01", "sandboxStaging0001", "sandboxRevoked0001"
SDK_KEYS = (PRODUCTION, STAGING, REVOKED)
"""The last one is denied by the CDN."""

API_KEYS = {PRODUCTION: "odp-public-key-production", STAGING: "odp-public-key-staging"}
PEOPLE = 5_000
SEGMENTS = {
    # name -> share of the people in percent
    "loyal_customers": 40,
    "recent_visitors": 60,
    "big_spenders": 15,
    "newsletter_readers": 35,
    "cart_abandoners": 25,
    "mobile_users": 70,
    "churn_risk": 10,
    "gift_buyers": 20,
}
EVENTS = {"purchase": "701", "add_to_cart": "702", "sign_up": "703"}
ATTRIBUTES = {"plan": "801", "country": "802", "age": "803", "app_version": "804", "staff": "805", "visits": "806"}
FLAGS = (
    "checkout_redesign",
    "search_ranking",
    "free_shipping_banner",
    "recommendations",
    "product_bundles",
    "dark_mode",
    "loyalty_points",
    "price_display",
    "onboarding_tour",
    "chat_widget",
    "gift_wrapping",
    "review_sorting",
    "express_delivery",
    "emergency_stop",
)

SEGMENTS_OF_RULES = {
    "checkout_loyal": ("checkout_redesign", {"loyal_customers"}),
    "banner_recent": ("free_shipping_banner", {"recent_visitors"}),
    "points_spenders": ("loyalty_points", {"big_spenders"}),
    "points_loyal": ("loyalty_points", {"loyal_customers"}),
    "wrapping_gifts": ("gift_wrapping", {"gift_buyers", "mobile_users"}),
}
"""Rules that only people with all of some segments are in -> flag and segments."""
FIRST_RULES = {"checkout_redesign": "checkout_loyal", "free_shipping_banner": "banner_recent"}
"""Flag -> its first rule, of which everyone with its segments gets a variation, holdouts apart."""

Document = dict[str, Any]


def user_id(number: int) -> str:
    """The person with this number, from 1."""
    return f"user-{number:05d}"


def email_of(user: str) -> str:
    """The address that the data platform knows a person by, beside the user id."""
    return f"{user}@shop.example"


@cache
def segments_of(user: str) -> tuple[str, ...] | None:
    """All segments of a person; None for someone the data platform has never seen."""
    number = user.removeprefix("user-")
    if not (number.isascii() and number.isdigit() and len(number) == 5 and 1 <= int(number) <= PEOPLE):
        return None
    digest = hashlib.sha256(user.encode()).digest()
    return tuple(name for place, (name, share) in enumerate(SEGMENTS.items()) if digest[place] * 100 < share * 256)


def datafiles(odp_host: str) -> dict[str, bytes]:
    """SDK key -> datafile, as the CDN serves them, naming `odp_host` as their data platform."""
    return {key: orjson.dumps(datafile(key, odp_host)) for key in (PRODUCTION, STAGING)}


def datafile(sdk_key: str, odp_host: str, *, revision: str = "42") -> Document:
    """One environment's datafile. Staging sends no impressions for rollouts and has no holdout."""
    production = sdk_key == PRODUCTION
    return {
        "version": "4",
        "accountId": "10001",
        "projectId": "20001",
        "revision": revision,
        "sdkKey": sdk_key,
        "environmentKey": "production" if production else "staging",
        "region": "US",
        "anonymizeIP": True,
        "botFiltering": production,
        "sendFlagDecisions": production,
        "attributes": [{"id": number, "key": key} for key, number in ATTRIBUTES.items()],
        "audiences": [{"id": number, "name": name, "conditions": _UNTYPED} for number, name, _ in _AUDIENCES],
        "typedAudiences": [
            {"id": number, "name": name, "conditions": conditions} for number, name, conditions in _AUDIENCES
        ],
        "events": [{"id": number, "key": key, "experimentIds": _MEASURED} for key, number in EVENTS.items()],
        "groups": [_group()],
        "experiments": _experiments(),
        "featureFlags": _flags(),
        "rollouts": _rollouts(),
        "holdouts": [_holdout()] if production else [],
        "localHoldouts": [_local_holdout()] if production else [],
        "integrations": [{"key": "odp", "host": odp_host, "publicKey": API_KEYS[sdk_key]}],
        "variables": [],
    }


# Old SDKs read only this; the typed audiences of the same ids go before it.
_UNTYPED = '["or", {"type": "custom_attribute", "name": "$opt_dummy_attribute", "match": "exact", "value": "none"}]'


def _segment(name: str) -> Document:
    return {"type": "third_party_dimension", "name": "odp.audiences", "match": "qualified", "value": name}


def _attribute(name: str, match: str, value: object) -> Document:
    return {"type": "custom_attribute", "name": name, "match": match, "value": value}


_AUDIENCES: tuple[tuple[str, str, list[Any]], ...] = (
    ("901", "Loyal customers", ["or", _segment("loyal_customers")]),
    ("902", "Recent visitors", ["or", _segment("recent_visitors")]),
    ("903", "Premium big spenders", ["and", _attribute("plan", "exact", "premium"), _segment("big_spenders")]),
    ("904", "Adults", ["and", ["or", _attribute("age", "ge", 18)]]),
    ("905", "New app", ["and", ["or", _attribute("app_version", "semver_ge", "3.2.0")]]),
    ("906", "Not our staff", ["not", ["or", _attribute("staff", "exact", True)]]),
    ("907", "At risk", ["or", _segment("churn_risk"), _segment("cart_abandoners")]),
    ("908", "Germany or Austria", ["or", _attribute("country", "exact", "DE"), _attribute("country", "exact", "AT")]),
    ("909", "Gift buyers on a phone", ["and", _segment("gift_buyers"), _segment("mobile_users")]),
    ("910", "Newsletter or frequent", ["or", _segment("newsletter_readers"), _attribute("visits", "gt", 20)]),
)

# Variables of checkout_redesign: one of every type.
_VARIABLES: tuple[tuple[str, str, str, str], ...] = (
    ("1101", "button_text", "string", "Pay now"),
    ("1102", "steps", "integer", "3"),
    ("1103", "discount", "double", "0.0"),
    ("1104", "show_summary", "boolean", "false"),
    ("1105", "layout", "json", '{"columns":1,"colours":["grey"]}'),
)
_NEW_CHECKOUT = ("Buy", "1", "0.05", "true", '{"columns":2,"colours":["green","white"]}')


def _variation(number: str, key: str, enabled: bool, variables: tuple[tuple[str, str], ...] = ()) -> Document:
    values = [{"id": variable, "value": value} for variable, value in variables]
    return {"id": number, "key": key, "featureEnabled": enabled, "variables": values}


def _rule(number: str, key: str, variations: list[Document], ends: list[int], **more: Any) -> Document:
    """An experiment or a rollout rule; `ends` are the ends of the variations' ranges, of 10,000."""
    return {
        "id": number,
        "key": key,
        "layerId": f"9{number}",
        "status": "Running",
        "audienceIds": [],
        "forcedVariations": {},
        "variations": variations,
        "trafficAllocation": [
            {"entityId": variation["id"], "endOfRange": end} for variation, end in zip(variations, ends, strict=True)
        ],
        **more,
    }


def _off_and_on(number: str) -> list[Document]:
    return [_variation(f"{number}1", "off", False), _variation(f"{number}2", "on", True)]


def _experiments() -> list[Document]:
    new = tuple((number, value) for (number, *_), value in zip(_VARIABLES, _NEW_CHECKOUT, strict=True))
    checkout = [_variation("30011", "current", False), _variation("30012", "redesign", True, new)]
    ranking = [_variation(f"3002{n}", key, True) for n, key in enumerate(("control", "fresh_first", "popular_first"))]
    not_at_risk = ["and", ["or", "901", "902"], ["not", "907"]]
    return [
        _rule("3001", "checkout_loyal", checkout, [5000, 10_000], audienceIds=["901"], type="ab"),
        _rule("3002", "ranking_all", ranking, [3334, 6667, 10_000], type="ab"),
        _rule("3003", "banner_recent", _off_and_on("3003"), [5000, 10_000], audienceIds=["902"], type="ab"),
        _rule("3006", "price_safe", _off_and_on("3006"), [5000, 10_000], audienceConditions=not_at_risk, type="ab"),
        _rule(
            "3007", "tour_adults", _off_and_on("3007"), [5000, 10_000],
            audienceIds=["904"], forcedVariations={user_id(1): "on", user_id(2): "off"}, type="ab",
        ),
        # Four in ten take part; the others go on to the rollout.
        _rule("3008", "wrapping_gifts", _off_and_on("3008"), [2000, 4000], audienceIds=["909"], type="ab"),
        _rule("3009", "sorting_all", _off_and_on("3009"), [5000, 10_000], audienceIds=["906"], type="ab"),
    ]  # fmt: skip


# Experiments that the events count for.
_MEASURED = ["3001", "3002", "3003", "3004", "3005", "3006", "3007", "3008", "3009"]


def _group() -> Document:
    """Two experiments of which a person is in at most one."""
    return {
        "id": "4001",
        "policy": "random",
        "trafficAllocation": [
            {"entityId": "3004", "endOfRange": 5000},
            {"entityId": "3005", "endOfRange": 10_000},
        ],
        "experiments": [
            _rule("3004", "recommendations_test", _off_and_on("3004"), [5000, 10_000], type="ab"),
            _rule("3005", "bundles_test", _off_and_on("3005"), [5000, 10_000], audienceIds=["910"], type="ab"),
        ],
    }


_EXPERIMENTS_OF = {
    "checkout_redesign": ["3001"],
    "search_ranking": ["3002"],
    "free_shipping_banner": ["3003"],
    "recommendations": ["3004"],
    "product_bundles": ["3005"],
    "price_display": ["3006"],
    "onboarding_tour": ["3007"],
    "gift_wrapping": ["3008"],
    "review_sorting": ["3009"],
}
# Targeted deliveries before Everyone Else: (key, audience, share of 10,000).
_DELIVERIES = {
    "free_shipping_banner": [("banner_germany", "908", 10_000)],
    "dark_mode": [("dark_new_app", "905", 10_000)],
    "loyalty_points": [("points_spenders", "903", 10_000), ("points_loyal", "901", 5000)],
    "chat_widget": [("chat_readers", "910", 5000)],
    "express_delivery": [("express_adults", "904", 8000)],
}
# Flags that are on for everyone else.
_ON_FOR_ALL = {"express_delivery", "gift_wrapping"}
_WITHOUT_ROLLOUT = {"review_sorting"}


def _flags() -> list[Document]:
    variables = [
        {"id": number, "key": key, "defaultValue": default}
        | ({"type": "string", "subType": "json"} if kind == "json" else {"type": kind})
        for number, key, kind, default in _VARIABLES
    ]
    return [
        {
            "id": str(5000 + number),
            "key": key,
            "rolloutId": "" if key in _WITHOUT_ROLLOUT else str(6000 + number),
            "experimentIds": _EXPERIMENTS_OF.get(key, []),
            "variables": variables if key == "checkout_redesign" else [],
        }
        for number, key in enumerate(FLAGS, 1)
    ]


def _rollouts() -> list[Document]:
    return [
        {"id": str(6000 + number), "experiments": _deliveries(key, 7000 + 10 * number)}
        for number, key in enumerate(FLAGS, 1)
        if key not in _WITHOUT_ROLLOUT
    ]


def _deliveries(flag: str, first: int) -> list[Document]:
    rules = []
    for place, (key, audience, end) in enumerate(_DELIVERIES.get(flag, [])):
        on = [_variation(f"{first + place}2", "on", True)]
        rules.append(_rule(str(first + place), key, on, [end], audienceIds=[audience]))
    last = f"default-rollout-{first}-everyone"
    enabled = flag in _ON_FOR_ALL
    rules.append(_rule(last, last, [_variation(f"{first}9", "on" if enabled else "off", enabled)], [10_000]))
    return rules


def _holdout() -> Document:
    """Five in a hundred see no experiment at all, so that all of them together can be measured."""
    return {
        "id": "8001",
        "key": "holdout_of_the_year",
        "status": "Running",
        "audienceIds": [],
        "variations": [{"id": "$opt_dummy_variation_id", "key": "off", "featureEnabled": False, "variables": []}],
        "trafficAllocation": [{"entityId": "$opt_dummy_variation_id", "endOfRange": 500}],
    }


def _local_holdout() -> Document:
    """One in ten is kept out of the review sorting alone."""
    return _holdout() | {
        "id": "8002",
        "key": "holdout_of_sorting",
        "includedRules": ["3009"],
        "trafficAllocation": [{"entityId": "$opt_dummy_variation_id", "endOfRange": 1000}],
    }
