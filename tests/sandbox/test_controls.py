"""What the stand-ins make of mistakes in an order, and of requests that a browser or a proxy would make."""

from __future__ import annotations

import json
import socket
import urllib.request

import pytest

from pipeline.sandbox import project_data as data
from pipeline.sandbox.processes import SERVICES, StandIns, until
from tests.patience import PATIENCE
from tests.sandbox.calls import KEY, Answered, call
from tests.sandbox.test_stand_ins import GOOD, event, payload, visitor

RETRY_AFTER = "retry_after is to be a number, or a short text without control characters"


def control(stand_ins: StandIns, service: str, document: object) -> Answered:
    return call(f"{stand_ins.address(service)}/control", document)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("service", "document", "told"),
    [
        ("cdn", ["latency"], "not an object"),
        ("cdn", {"latency": "x"}, "latency is to be a whole number or a number"),
        ("cdn", {"latency": True}, "latency is to be a whole number or a number"),
        ("cdn", {"latency": -1}, "latency is to be 0 or more"),
        ("cdn", {"status": "503"}, "status is to be a whole number or null"),
        ("cdn", {"status": 199}, "status is to be from 200 to 599"),
        ("cdn", {"fail_status": 600}, "fail_status is to be from 200 to 599"),
        ("logx", {"poison_status": 0}, "poison_status is to be from 200 to 599"),
        ("cdn", {"latency": 60.5}, "latency is to be at most 60"),
        ("cdn", {"retry_after": "1\r\nX: y"}, RETRY_AFTER),
        ("cdn", {"retry_after": "1" * 101}, RETRY_AFTER),
        ("cdn", {"hold_answers": 1}, "hold_answers is to be true or false"),
        ("cdn", {"denied": "key"}, "denied is to be a list"),
        ("cdn", {"revision": {"nobody's": "7"}}, "revision of an unknown key: nobody's"),
        ("cdn", {"reset": True, "revision": {"newKey": "7"}}, "revision of an unknown key: newKey"),
        ("odp", {"users": [], "reset": True}, "users is to be an object"),
        ("cmab", {"rule_status": {"7001": "500"}}, "rule_status is to be statuses from 200 to 599"),
        ("cmab", {"rule_status": {"7001": 99}}, "rule_status is to be statuses from 200 to 599"),
        ("logx", {"unread": None}, "unread is to be true or false"),
        ("odp", {"form": "quick"}, "form is to be exact or fast"),
        ("logx", {"reset": 1}, "reset is to be true or false"),
    ],
)
def test_of_an_order_with_a_mistake_nothing_is_done_and_the_mistake_is_told(
    stand_ins: StandIns, service: str, document: object, told: str
) -> None:
    stand_ins.put_datafile("newKey", b'{"revision":"1"}')
    before = stand_ins.control(service, latency=0.001)  # type: ignore[arg-type]
    answer = control(stand_ins, service, document)
    assert (answer.status, answer.json) == (400, {"error": told})
    assert stand_ins.control(service) == before  # type: ignore[arg-type]


def test_an_order_that_is_no_json_is_told(stand_ins: StandIns) -> None:
    request = urllib.request.Request(f"{stand_ins.address('cdn')}/control", data=b"{")
    with pytest.raises(urllib.request.HTTPError, match="400") as refused:
        urllib.request.urlopen(request, timeout=PATIENCE)
    with refused.value as answer:
        assert json.load(answer)["error"].startswith("not JSON: ")


@pytest.mark.parametrize("service", SERVICES)
def test_what_is_in_force_can_be_ordered(service: str) -> None:
    with StandIns([service]) as running:  # type: ignore[list-item]
        initial = running.control(service)  # type: ignore[arg-type]
        assert "latency" in initial
        assert running.control(service, **initial) == initial  # type: ignore[arg-type]


@pytest.mark.parametrize("service", SERVICES)
def test_a_get_lists_every_control_with_its_value_now_and_the_values_allowed(service: str) -> None:
    with StandIns([service]) as running:  # type: ignore[list-item]
        now = running.control(service, latency=0.25)  # type: ignore[arg-type]
        answer = call(f"{running.address(service)}/control")  # type: ignore[arg-type]
    assert answer.status == 200
    assert {name: told["value"] for name, told in answer.json.items()} == {**now, "reset": False}
    assert answer.json["latency"] == {
        "value": 0.25, "allowed": "a whole number or a number, from 0 to 60", "meaning": "seconds before every answer",
    }  # fmt: skip
    assert answer.json["status"]["allowed"] == "a whole number or null, from 200 to 599"
    assert answer.json["fail_next"]["allowed"] == "a whole number, 0 or more"
    assert answer.json["hold_answers"]["allowed"] == answer.json["reset"]["allowed"] == "true or false"


def test_a_datafile_is_published_at_the_address_it_is_read_from(stand_ins: StandIns) -> None:
    url = stand_ins.cdn_url_template % "newKey"
    assert call(url, {"revision": "8"}).status == 200
    assert call(url).json == {"revision": "8"}


def _raw(stand_ins: StandIns, method: str, **headers: str) -> tuple[int, bytes]:
    url = stand_ins.cdn_url_template % data.PRODUCTION
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    request = urllib.request.Request(url, headers=named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read()
    except urllib.request.HTTPError as error:
        with error:
            return error.code, error.read()


def test_the_cdn_takes_every_condition_as_http_means_it(stand_ins: StandIns) -> None:
    assert _raw(stand_ins, "HEAD") == (200, b"")
    assert _raw(stand_ins, "GET", If_None_Match="*") == (304, b"")
    assert _raw(stand_ins, "GET", If_Modified_Since="yesterday")[0] == 200


@pytest.mark.parametrize("wrong", [{"query": [1]}, {"query": "{ __typename }", "variables": [1]}, {"query": None}])
def test_graphql_of_another_type_is_refused(stand_ins: StandIns, wrong: dict[str, object]) -> None:
    answer = call(f"{stand_ins.odp_host}/v3/graphql", wrong, KEY)
    assert answer.status == 400
    assert answer.json["errors"][0]["message"].startswith("not a GraphQL request: ")


@pytest.mark.parametrize("uuid", ["zzzzzzzz-0000-4000-8000-000000000001", "000000-0000-0000-4000-8000-0000000000"])
def test_logx_refuses_what_only_looks_like_a_uuid(stand_ins: StandIns, uuid: str) -> None:
    assert call(stand_ins.logx_url, payload(visitor(event(1) | {"uuid": uuid}))).status == 400
    assert call(stand_ins.logx_url, GOOD | {"client_name": ""}).status == 400
    assert call(stand_ins.logx_url, GOOD | {"client_version": ""}).status == 400


def test_a_held_request_whose_client_hung_up_is_not_unanswered(stand_ins: StandIns) -> None:
    stand_ins.control("logx", hold_answers=True)
    body = json.dumps(GOOD).encode()
    port = int(stand_ins.address("logx").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as client:
        head = "POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: stand_ins.ledger("logx")["unanswered"] == 1, timeout=PATIENCE, what="a held answer")
    until(lambda: stand_ins.ledger("logx")["unanswered"] == 0, timeout=PATIENCE, what="nobody waiting")
    assert stand_ins.ledger("logx")["distinct"] == 2, "what was taken stays taken"
    assert stand_ins.control("logx")["hold_answers"] is True
