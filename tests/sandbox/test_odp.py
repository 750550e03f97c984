"""The stand-in for the data platform: segments by GraphQL, exact and fast, events, and who is who."""

from __future__ import annotations

import json
import os
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from graphql import parse
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.sandbox import project_data as data
from pipeline.sandbox.odp_fast import shape_of
from pipeline.sandbox.odp_people import People
from pipeline.sandbox.processes import StandIns
from tests.patience import PATIENCE
from tests.sandbox.calls import KEY, Answered, call

_TWO = """query($a:[String],$u0:String,$u1:String){
  u0:customer(fs_user_id:$u0){audiences(subset:$a){edges{node{name state}}}}
  u1:customer(fs_user_id:$u1){audiences(subset:$a){edges{node{name state}}}}
}"""


def _graphql(stand_ins: StandIns, query: str, variables: dict[str, Any], **headers: str) -> Answered:
    body = {"query": query, "variables": variables}
    return call(f"{stand_ins.odp_host}/v3/graphql", body, KEY | headers)


def test_odp_answers_for_each_alias(stand_ins: StandIns) -> None:
    subset = ["loyal_customers", "churn_risk"]
    answer = _graphql(stand_ins, _TWO, {"a": subset, "u0": "user-00001", "u1": "nobody"}).json
    nodes = [edge["node"] for edge in answer["data"]["u0"]["audiences"]["edges"]]
    known = data.segments_of("user-00001") or ()
    assert nodes == [{"name": name, "state": "qualified" if name in known else "unqualified"} for name in subset]
    assert answer["data"]["u1"] is None
    assert [(error["path"], error["extensions"]) for error in answer["errors"]] == [
        (["u1"], {"classification": "DataFetchingException", "code": "INVALID_IDENTIFIER_EXCEPTION"})
    ]
    counted = stand_ins.ledger("odp", query="full=1")
    assert (counted["graphql_requests"], counted["aliases"], counted["largest_query"]) == (1, 2, 2)
    assert (counted["unknown_users"], counted["asked"]) == (1, {"user-00001": 1, "nobody": 1})


def test_odp_takes_the_sdk_s_query_and_other_identifiers(stand_ins: StandIns) -> None:
    query = (
        "query($userId: String, $audiences: [String]) {customer(fs_user_id: $userId) "
        "{audiences(subset: $audiences) {edges {node {name state}}}}}"
    )
    answer = _graphql(stand_ins, query, {"userId": "user-00002", "audiences": ["mobile_users"]}).json
    assert answer["data"]["customer"]["audiences"]["edges"][0]["node"]["name"] == "mobile_users"
    by_mail = '{customer(email: "user-00002@shop.example") {audiences {edges {node {name}}}}}'
    names = [
        edge["node"]["name"] for edge in _graphql(stand_ins, by_mail, {}).json["data"]["customer"]["audiences"]["edges"]
    ]
    assert names == list(data.segments_of("user-00002") or ())


def test_odp_knows_users_it_is_told_of(stand_ins: StandIns) -> None:
    stand_ins.control("odp", users={"alice": ["beta"]})
    answer = _graphql(stand_ins, _TWO, {"a": ["beta", "gamma"], "u0": "alice", "u1": "alice"}).json
    states = [edge["node"]["state"] for edge in answer["data"]["u0"]["audiences"]["edges"]]
    assert states == ["qualified", "unqualified"]
    assert "errors" not in answer


@pytest.mark.parametrize(
    "query",
    [
        "{customer(fs_user_id: 7) {audiences {edges {node {name}}}}}",
        '{customer(fs_user_id: "a") {names}}',
        "{customer(",
    ],
)
def test_odp_refuses_a_query_its_schema_does_not_have(stand_ins: StandIns, query: str) -> None:
    answer = _graphql(stand_ins, query, {}).json
    assert "data" not in answer
    assert answer["errors"][0]["extensions"]["classification"] == "ValidationError"


def test_odp_checks_the_key_and_the_size_of_a_query(stand_ins: StandIns) -> None:
    variables = {"a": [], "u0": "user-00001", "u1": "user-00002"}
    assert _graphql(stand_ins, _TWO, variables, **{"x-api-key": "stolen"}).status == 403
    stand_ins.control("odp", max_aliases=1)
    assert _graphql(stand_ins, _TWO, variables).status == 400
    stand_ins.control("odp", refuse_status=200)
    assert "too complex" in _graphql(stand_ins, _TWO, variables).json["errors"][0]["message"]
    counted = stand_ins.ledger("odp")
    assert (counted["denied"], counted["refused"], counted["aliases"]) == (1, 2, 0)


def _odp_event(number: int, **changes: Any) -> dict[str, Any]:
    identifiers, known = {"fs_user_id": f"user-{number:05d}"}, {"idempotence_id": f"id-{number}"}
    return {"type": "fullstack", "action": "viewed", "identifiers": identifiers, "data": known} | changes


def test_odp_counts_events_once(stand_ins: StandIns) -> None:
    url = f"{stand_ins.odp_host}/v3/events"
    assert call(url, [_odp_event(1), _odp_event(2)], KEY).status == 202
    assert call(url, [_odp_event(2)], KEY).status == 202
    counted = stand_ins.ledger("odp", query="full=1")
    assert (counted["events"], counted["distinct_events"], counted["repeated_events"]) == (3, 2, 1)
    assert counted["largest_event_batch"] == 2
    assert counted["event_bodies"] == [_odp_event(1), _odp_event(2)]
    assert counted["event_accounts"] == [data.API_KEYS[data.PRODUCTION]] * 2
    assert counted["conflicting_events"] == 0


def test_odp_keeps_the_first_of_events_that_contradict_each_other(stand_ins: StandIns) -> None:
    url = f"{stand_ins.odp_host}/v3/events"
    assert call(url, [_odp_event(1), _odp_event(1, action="bought")], KEY).status == 202
    # Another account's event of the same id is another event.
    staging = {"x-api-key": data.API_KEYS[data.STAGING]}
    assert call(url, [_odp_event(1, action="bought")], KEY | staging).status == 202
    counted = stand_ins.ledger("odp", query="full=1")
    assert (counted["distinct_events"], counted["repeated_events"], counted["conflicting_events"]) == (2, 1, 1)
    assert [event["action"] for event in counted["event_bodies"]] == ["viewed", "bought"]
    assert counted["event_accounts"] == [data.API_KEYS[data.PRODUCTION], data.API_KEYS[data.STAGING]]


def test_odp_counts_users_by_account_and_as_unknown_only_those_it_does_not_know(stand_ins: StandIns) -> None:
    staging = {"x-api-key": data.API_KEYS[data.STAGING]}
    for headers in ({}, staging, staging):
        _graphql(stand_ins, _TWO, {"a": [], "u0": "user-00001", "u1": "user-00002"}, **headers)
    wrong = _graphql(stand_ins, "{customer {audiences {edges {node {name}}}}}", {}).json
    assert "exactly one identifier" in wrong["errors"][0]["message"]
    assert "errors" in _graphql(stand_ins, _TWO, {"a": [], "u0": 7, "u1": "user-00001"}).json
    counted = stand_ins.ledger("odp", query="full=1")
    assert (counted["users"], counted["unknown_users"]) == (4, 0)
    assert counted["asked"] == {"user-00001": 3, "user-00002": 3}


@pytest.mark.parametrize(
    "events",
    [
        [],
        {},
        [_odp_event(1)] * 501,
        [_odp_event(1, action="")],
        [_odp_event(1, type=None)],
        [_odp_event(1, identifiers={})],
        [_odp_event(1, identifiers={"fs_user_id": 7})],
        [_odp_event(1, data={"idempotence_id": "x", "nested": {}})],
        [_odp_event(1, data={})],
        [_odp_event(1, surplus=1)],
        [_odp_event(1), "text"],
    ],
)  # fmt: skip
def test_odp_refuses_events_that_are_not_as_documented(stand_ins: StandIns, events: Any) -> None:
    assert call(f"{stand_ins.odp_host}/v3/events", events, KEY).status == 400
    counted = stand_ins.ledger("odp")
    assert (counted["refused_events"], counted["events"]) == (1, 0)


def test_odp_refuses_poisoned_events_and_foreign_keys(stand_ins: StandIns) -> None:
    url = f"{stand_ins.odp_host}/v3/events"
    stand_ins.control("odp", poison=["user-00002"])
    assert call(url, [_odp_event(1), _odp_event(2)], KEY).status == 400
    assert call(url, [_odp_event(1)], KEY).status == 202
    assert call(url, [_odp_event(1)], KEY | {"x-api-key": "stolen"}).status == 403


# -- who is who


def _segments(stand_ins: StandIns, name: str, value: str, **headers: str) -> set[str] | None:
    """What a query by this identifier finds; None if nobody has it."""
    query = f"query($x:String){{customer({name}:$x){{audiences{{edges{{node{{name state}}}}}}}}}}"
    answer = _graphql(stand_ins, query, {"x": value}, **headers).json
    if "errors" in answer:
        assert answer["errors"][0]["extensions"]["code"] == "INVALID_IDENTIFIER_EXCEPTION"
        assert answer["data"]["customer"] is None
        return None
    return {edge["node"]["name"] for edge in answer["data"]["customer"]["audiences"]["edges"]}


def _send(stand_ins: StandIns, number: int, **identifiers: str) -> None:
    url = f"{stand_ins.odp_host}/v3/events"
    assert call(url, [_odp_event(number, identifiers=identifiers)], KEY).status == 202


def test_an_event_makes_an_unknown_user_known(stand_ins: StandIns) -> None:
    assert _segments(stand_ins, "fs_user_id", "newcomer") is None
    _send(stand_ins, 1, fs_user_id="newcomer")
    assert _segments(stand_ins, "fs_user_id", "newcomer") == set()
    # Each account has its own people.
    staging = {"x-api-key": data.API_KEYS[data.STAGING]}
    assert _segments(stand_ins, "fs_user_id", "newcomer", **staging) is None
    stand_ins.control("odp", reset=True)
    assert _segments(stand_ins, "fs_user_id", "newcomer") is None


def test_events_with_several_identifiers_stitch_a_person(stand_ins: StandIns) -> None:
    stand_ins.control("odp", users={"alice": ["beta"]})
    first, second = "user-00003", "user-00006"
    own = [set(data.segments_of(user) or ()) for user in (first, second)]
    assert own[0] != own[1], "the test needs two who differ"
    assert _segments(stand_ins, "vuid", "vuid_phone") is None
    _send(stand_ins, 1, fs_user_id=first, vuid="vuid_phone")
    assert _segments(stand_ins, "vuid", "vuid_phone") == own[0]
    # Through the telephone's id the two users are one, and so is who comes by mail.
    _send(stand_ins, 2, fs_user_id=second, vuid="vuid_phone")
    _send(stand_ins, 3, vuid="vuid_phone", email="alice@other.example", phone="+43 1 234")
    _send(stand_ins, 4, phone="+43 1 234", fs_user_id="alice")
    together = own[0] | own[1] | {"beta"}
    for name, value in (
        ("fs_user_id", first), ("fs_user_id", second), ("fs_user_id", "alice"), ("vuid", "vuid_phone"),
        ("email", "alice@other.example"), ("phone", "+43 1 234"), ("email", data.email_of(first)),
    ):  # fmt: skip
        assert _segments(stand_ins, name, value) == together, (name, value)
    assert stand_ins.ledger("odp")["stitched_persons"] == 1


def test_an_address_of_nobody_is_not_taken_for_a_user(stand_ins: StandIns) -> None:
    _send(stand_ins, 1, email=data.email_of("nobody"))
    assert _segments(stand_ins, "email", data.email_of("nobody")) == set()
    assert _segments(stand_ins, "fs_user_id", "nobody") is None
    assert _segments(stand_ins, "email", "user-00001@elsewhere.example") is None


_IDENTIFIERS = [
    ("fs_user_id", "a"),
    ("fs_user_id", "b"),
    ("fs_user_id", "c"),
    ("vuid", "a"),
    ("vuid", "b"),
    ("email", "a"),
]
_EVENTS = st.lists(st.sets(st.sampled_from(_IDENTIFIERS), min_size=1, max_size=2), min_size=1, max_size=6)


@given(_EVENTS)
@example([{_IDENTIFIERS[0], _IDENTIFIERS[3]}, {_IDENTIFIERS[1], _IDENTIFIERS[4]}, {_IDENTIFIERS[3], _IDENTIFIERS[4]}])
def test_persons_are_what_the_events_connect(events: list[set[tuple[str, str]]]) -> None:
    people = People({value: [f"of {value}"] for value in "abc"})
    for event in events:
        people.meet(event)
    for identifier in set().union(*events):
        person = {identifier}
        while more := {other for event in events if event & person for other in event} - person:
            person |= more
        expected = {f"of {value}" for name, value in person if name == "fs_user_id"}
        assert set(people.segments(identifier) or ()) == expected


def test_a_null_is_kept_as_an_empty_text(stand_ins: StandIns) -> None:
    event = _odp_event(1, data={"idempotence_id": "1", "campaign": None, "price": 0, "new": False})
    assert call(f"{stand_ins.odp_host}/v3/events", [event], KEY).status == 202
    (kept,) = stand_ins.ledger("odp", query="full=1")["event_bodies"]
    assert kept["data"] == {"idempotence_id": "1", "campaign": "", "price": 0, "new": False}


# -- the fast form


@pytest.fixture
def fast(stand_ins: StandIns) -> StandIns:
    stand_ins.control("odp", form="fast")
    return stand_ins


def _many(users: int) -> str:
    variables = "".join(f",$u{number}:String" for number in range(users))
    fields = " ".join(
        f"u{number}:customer(fs_user_id:$u{number}){{audiences(subset:$a){{edges{{node{{name state}}}}}}}}"
        for number in range(users)
    )
    return f"query($a:[String]{variables}){{{fields}}}"


def test_the_fast_form_answers_as_the_exact_one(fast: StandIns) -> None:
    users = [data.user_id(number) for number in (1, 17, 17, 4711)] + ["nobody", "", "user-0001"]
    variables: dict[str, Any] = {f"u{number}": user for number, user in enumerate(users)}
    variables["a"] = [*data.SEGMENTS, "no_such_segment"]
    quick = _graphql(fast, _many(len(users)), variables).json
    counted = fast.ledger("odp", query="full=1")
    fast.control("odp", form="exact")
    exact = _graphql(fast, _many(len(users)), variables).json
    for error in exact["errors"]:
        del error["locations"]
    assert quick == exact
    twice = fast.ledger("odp", query="full=1")
    for name in ("graphql_requests", "aliases", "unknown_users"):
        assert twice[name] == 2 * counted[name] > 0, name
    assert twice["asked"] == {user: 2 * count for user, count in counted["asked"].items()}


def test_the_fast_form_knows_what_events_and_controls_say(fast: StandIns) -> None:
    def states() -> list[str] | None:
        answer = _graphql(fast, _many(1), {"a": ["beta", "gamma"], "u0": "alice"}).json["data"]["u0"]
        return answer and [edge["node"]["state"] for edge in answer["audiences"]["edges"]]

    assert states() is None
    _send(fast, 1, fs_user_id="alice")
    assert states() == ["unqualified", "unqualified"]
    fast.control("odp", users={"alice": ["beta"]})
    assert states() == ["qualified", "unqualified"]
    fast.control("odp", users={"alice": ["gamma"]})
    assert states() == ["unqualified", "qualified"]


@pytest.mark.parametrize(
    ("text", "recognised"),
    [
        (_TWO, True),
        (_many(50), True),
        ("query($x:String,$a:[String]){customer(fs_user_id:$x){audiences(subset:$a){edges{node{name state}}}}}", True),
        ("query($x:String,$a:[String]){customer(vuid:$x){audiences(subset:$a){edges{node{name state}}}}}", False),
        ("query($x:String,$a:[String]){customer(fs_user_id:$x){audiences(subset:$a){edges{node{name}}}}}", False),
        ("query($x:String){customer(fs_user_id:$x){audiences{edges{node{name state}}}}}", False),
        ('{customer(fs_user_id:"x"){audiences(subset:["a"]){edges{node{name state}}}}}', False),
        ("query($x:String,$a:[String],$b:Boolean!){customer(fs_user_id:$x)@skip(if:$b)"
         "{audiences(subset:$a){edges{node{name state}}}}}", False),
        (_TWO.replace("u1:customer(fs_user_id:$u1){audiences(subset:$a)", "u1:customer(fs_user_id:$u1)"
         "{audiences(subset:$b)"), False),
        (_TWO + " fragment F on Customer { audiences { edges { node { name } } } }", False),
    ],
)  # fmt: skip
def test_only_one_kind_of_query_is_recognised(text: str, recognised: bool) -> None:
    assert (shape_of(parse(text)) is not None) is recognised


@pytest.mark.parametrize("variables", [{"a": ["beta"], "u0": 7}, {"a": None, "u0": "x"}, {"a": ["beta"]}])
def test_odd_variables_are_left_to_the_exact_form(fast: StandIns, variables: dict[str, Any]) -> None:
    quick = _graphql(fast, _many(1), variables).json
    fast.control("odp", form="exact")
    assert quick == _graphql(fast, _many(1), variables).json


def test_ten_thousand_users_take_less_than_a_second_of_one_core(fast: StandIns) -> None:
    people = [data.user_id(1 + number % data.PEOPLE) for number in range(10_000)]
    bodies = []
    for start in range(0, len(people), 50):
        variables = {f"u{place}": user for place, user in enumerate(people[start : start + 50])}
        bodies.append(json.dumps({"query": _many(50), "variables": variables | {"a": list(data.SEGMENTS)}}))
    connection = HTTPConnection(fast.odp_host.removeprefix("http://"), timeout=PATIENCE)
    with closing(connection):
        spent = _cpu_seconds(fast.pid("odp"))
        for body in bodies:
            connection.request("POST", "/v3/graphql", body, KEY)
            assert len(connection.getresponse().read()) > 1000
        spent = _cpu_seconds(fast.pid("odp")) - spent
    assert fast.ledger("odp")["aliases"] == 10_000
    assert spent < 1


def _cpu_seconds(pid: int) -> float:
    """What a process has used of the processors, however busy the machine is besides."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
