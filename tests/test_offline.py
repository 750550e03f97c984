"""Deciding without a network says what the decide role would say, also where it decides nothing; line by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import orjson
import pytest

from pipeline.errors import ConfigurationError
from pipeline.messages.contracts import DECIDE_RESULT
from pipeline.offline import People, decide_lines
from pipeline.sandbox.project_data import PRODUCTION, datafile
from tests.decision.projects import document, flag, rule, variation
from tests.test_cli import errors, run


def decided(request: dict[str, Any], **datafile_fields: Any) -> dict[str, Any]:
    project = datafile(PRODUCTION, "https://odp.example") | datafile_fields
    (line,) = decide_lines(
        [orjson.dumps({"userId": "ada", "keys": ["dark_mode"]} | request)], orjson.dumps(project), People()
    )
    result: dict[str, Any] = orjson.loads(line)
    return result


def error(request: dict[str, Any], **datafile_fields: Any) -> str | None:
    result = decided(request, **datafile_fields)
    assert ("error" in result) == (result["decisions"] == [])
    return result.get("error")


@pytest.mark.parametrize(("sdk_key", "expected"), [(PRODUCTION, None), ("another", "unknown SDK key"), ("", None)])
def test_a_request_for_another_environment_is_not_decided_by_this_datafile(sdk_key: str, expected: str | None) -> None:
    assert error({"sdkKey": sdk_key}) == expected
    result = decided({"sdkKey": sdk_key})
    assert result["sdkKey"] == (sdk_key or PRODUCTION)


def test_a_datafile_that_names_no_key_decides_for_any() -> None:
    assert error({"sdkKey": "another"}, sdkKey="") is None


def test_segments_cannot_be_fetched_where_odp_is_not_integrated() -> None:
    assert error({"fetchSegments": True}) is None
    result = decided({"fetchSegments": True}, integrations=[], revision="12")
    # Of the datafile that says so, as a worker does.
    assert (result["error"], result["revision"]) == ("failed to fetch qualified segments", "12")
    assert error({}, integrations=[]) is None


def test_the_first_fault_of_a_request_is_the_one_told() -> None:
    faulty = {"fetchSegments": True, "sdkKey": "another", "decideOptions": ["NOPE"]}
    assert error(faulty, integrations=[]) == "invalid option: NOPE"
    assert error(faulty | {"decideOptions": []}, integrations=[]) == "unknown SDK key"


# Lines that cannot be decided

_DEEP = b"[" * 10**5 + b"]" * 10**5
BAD_LINES = {
    "empty": (b"", "the record has no value"),
    "blank": (b"  ", "input data is empty, at character 0"),
    "half a line": (b'{"userId": "ada"', "unexpected end of data, at character 16"),
    "two objects": (b'{"userId": "ada"}{"userId": "ada"}', "unexpected content after document, at character 17"),
    "no JSON": (b"userId=ada", "unexpected character, expected a JSON value, at character 0"),
    "NaN": (b'{"userId": "ada", "userAttributes": {"a": NaN}}', "unexpected character, expected a JSON value, at"),
    "lone surrogate": (b'{"userId": "ada", "userAttributes": {"a": "\\ud800"}}', "no low surrogate in string, at"),
    "no UTF-8": (b'{"userId": "\xff"}', "not UTF-8 at byte 12"),
    "BOM": (b'\xef\xbb\xbf{"userId": "ada"}', "UTF-8 byte order mark (BOM) is not supported"),
    "100,000 levels": (b'{"userId": "ada", "x": ' + _DEEP + b"}", "depth limit exceeded"),
    "50 MB": (b'{"userId": "ada", "x": "' + b"x" * 50 * 1024**2 + b'"}', "52428826 bytes; at most 1048576 are read"),
    "list": (b'[{"userId": "ada"}]', "a list in place of an object"),
    "null": (b"null", "null in place of an object"),
    "no user": (b'{"keys": ["dark_mode"]}', 'missing "userId" in request payload'),
    "user a number": (b'{"userId": 5}', "userId is no string"),
    "300 levels": (b'{"userId": "eve", "x": ' + b"[" * 300 + b"]" * 300 + b"}", "error parsing request body"),
    "wrong type": (b'{"userId": "eve", "keys": "dark_mode"}', "error parsing request body"),
    "unknown option": (b'{"userId": "eve", "decideOptions": ["NOPE"]}', "invalid option: NOPE"),
    "bad SDK key": (b'{"userId": "eve", "sdkKey": "a b"}', "sdkKey failed validation"),
    "another SDK key": (b'{"userId": "eve", "sdkKey": "another"}', "unknown SDK key"),
}  # fmt: skip


@pytest.fixture
def standing_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_767_225_600.123)


@pytest.mark.usefixtures("standing_clock")
@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_one_error_and_disturbs_no_other(kind: str) -> None:
    bad, told = BAD_LINES[kind]
    ending = b"\r\n" if kind in ("empty", "half a line", "no user") else b"\n"
    before = b'{"userId": "ada", "requestId": "r-1", "decideOptions": ["INCLUDE_REASONS"]}'
    after = b'{"userId": "bob", "requestId": "r-2", "userAttributes": {"age": 40}}'
    project = orjson.dumps(datafile(PRODUCTION, "https://odp.example"))

    def results(*lines: bytes) -> list[bytes]:
        return list(decide_lines([line + ending for line in lines], project, People(profiles=b"{}")))

    first, middle, last = results(before, bad, after)
    assert [first, last.replace(b'"source":"stdin-0-2"', b'"source":"stdin-0-1"', 1)] == results(before, after)
    result = orjson.loads(middle)
    assert DECIDE_RESULT.is_valid(result)
    assert result["error"].startswith(told)
    assert (result["decisions"], result["revision"], result["source"]) == ([], None, "stdin-0-1")
    assert result["requestId"] == "stdin-0-1"
    # Only a line in which a user was found names one.
    assert result["userId"] == ("eve" if b'"eve"' in bad else "")


def test_the_fault_of_a_line_is_named_by_its_detail() -> None:
    assert decided({"keys": ["a", 5]})["detail"] == "keys.1: type"
    assert "detail" not in decided({"decideOptions": ["NOPE"]})
    assert "detail" not in decided({"sdkKey": "another"})


def test_more_keys_than_the_contract_allows_are_an_error_and_a_workers_own_limit_does_not_count() -> None:
    assert len(decided({"keys": [f"k{number}" for number in range(1001)]})["decisions"]) == 1001
    result = decided({"keys": ["k"] * 10_001})
    assert (result["error"], result["detail"]) == ("error parsing request body", "keys: maxItems")


def test_one_key_sent_twice_is_several() -> None:
    options = ["ENABLED_FLAGS_ONLY"]
    off = {"featureFlags": [flag("off")], "experiments": [], "rollouts": [], "groups": []}
    assert len(decided({"keys": ["off"], "decideOptions": options}, **off)["decisions"]) == 1
    assert decided({"keys": ["off", "off"], "decideOptions": options}, **off)["decisions"] == []
    assert len(decided({"keys": ["off", "off"]}, **off)["decisions"]) == 1


# Byte order marks


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-32-be"])
def test_files_of_any_unicode_are_read_as_json_loads_reads_them(encoding: str) -> None:
    project = json.dumps(datafile(PRODUCTION, "https://odp.example")).encode(encoding)
    segments, others = json.dumps({"äda": []}).encode(encoding), "{}".encode(encoding)
    people = People(segments, others, others)
    (line,) = decide_lines([b'{"userId": "ada", "keys": ["dark_mode"]}'], project, people)
    assert "error" not in orjson.loads(line)


def test_a_mark_before_the_first_line_is_the_files_and_before_another_a_fault() -> None:
    line = b'\xef\xbb\xbf{"userId": "ada", "keys": ["dark_mode"]}'
    project = orjson.dumps(datafile(PRODUCTION, "https://odp.example"))
    first, second = map(orjson.loads, decide_lines([line, line], project, People()))
    assert (first["userId"], first.get("error")) == ("ada", None)
    assert second["error"].startswith("UTF-8 byte order mark (BOM) is not supported")


# Requests of every kind, through the command

_LEAF = {"name": "country", "type": "custom_attribute", "match": "exact", "value": "SI"}
_VIP = {"name": "odp.audiences", "type": "third_party_dimension", "match": "qualified", "value": "vip"}
_HALVES = [{"entityId": "101", "endOfRange": 5000}, {"entityId": "102", "endOfRange": 10000}]
_ON, _OFF = variation("101", "on", values={"v": "own"}), variation("102", "off", enabled=False)
_EXPERIMENTS = [
    rule("1", "ab", _ON, _OFF, audienceIds=["21"], trafficAllocation=_HALVES),
    rule("2", "vips", variation("103", "gold"), audienceIds=["22"]),
    rule("3", "bandit", variation("104", "left"), variation("105", "right"), cmab={"trafficAllocation": 10000}),
]
_SHOP = document(
    sdkKey="shopExample01",
    typedAudiences=[
        {"id": "21", "name": "Slovenia", "conditions": _LEAF},
        {"id": "22", "name": "vip", "conditions": _VIP},
    ],
    integrations=[{"key": "odp", "host": "https://odp.example", "publicKey": "k"}],
    experiments=_EXPERIMENTS,
    featureFlags=[
        flag("test", *_EXPERIMENTS[:2], variables=[{"id": "v", "key": "v", "type": "string", "defaultValue": "d"}]),
        flag("choice", _EXPERIMENTS[2]),
        flag("empty"),
    ],
)
_PREDICTIONS = {"ada": {"3": "105"}, "bob": {"3": "gone"}}
_SEGMENTS = {"ada": ["vip"], "bob": []}
# By bucketing id: the variations of `ab`.
_ON_ID, _OFF_ID = "b-2", "b-1"


def _halves() -> list[str]:
    chosen = (
        decide_lines([orjson.dumps(_slovenian(name, "test"))], orjson.dumps(_SHOP), People())
        for name in (_ON_ID, _OFF_ID)
    )
    return [orjson.loads(line)["decisions"][0]["variationKey"] for (line,) in chosen]


def _slovenian(bucketing_id: str, *keys: str, user: str = "ada", **more: Any) -> dict[str, Any]:
    attributes = {"country": "SI", "$opt_bucketing_id": bucketing_id}
    return {"userId": user, "userAttributes": attributes, "keys": list(keys), **more}


def _given(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(one["flagKey"], one["ruleKey"], one["variationKey"]) for one in result["decisions"]]


ON, OFF = ("test", "ab", "on"), ("test", "ab", "off")
GOLD, NONE, EMPTY = ("test", "vips", "gold"), ("test", "", ""), ("empty", "", "")
RIGHT, FAILED = ("choice", "bandit", "right"), ("choice", "", "")
KINDS: dict[str, tuple[dict[str, Any], list[tuple[str, str, str]]]] = {
    "one key": (_slovenian(_ON_ID, "test"), [ON]),
    "sticky: another bucketing id": (_slovenian(_OFF_ID, "test"), [ON]),
    "sticky: out of the audience": ({"userId": "ada", "keys": ["test"]}, [ON]),
    "sticky: not for others": (_slovenian(_OFF_ID, "test", user="new"), [OFF]),
    "sticky from the file": (_slovenian(_ON_ID, "test", user="old"), [OFF]),
    "profile ignored": (_slovenian(_OFF_ID, "test", decideOptions=["IGNORE_USER_PROFILE_SERVICE"]), [OFF]),
    "several keys": ({"userId": "eve", "keys": ["empty", "test", "gone", "empty"]}, [EMPTY, NONE, ("gone", "", "")]),
    "unknown flag": ({"userId": "eve", "keys": ["gone"]}, [("gone", "", "")]),
    "all flags": (_slovenian(_ON_ID), [ON, RIGHT, EMPTY]),
    "enabled ones": (_slovenian(_ON_ID, decideOptions=["ENABLED_FLAGS_ONLY"]), [ON, RIGHT]),
    "silent": (_slovenian(_ON_ID, decideOptions=["DISABLE_DECISION_EVENT"]), [ON, RIGHT, EMPTY]),
    "bare": (_slovenian(_ON_ID, "test", decideOptions=["EXCLUDE_VARIABLES"]), [ON]),
    "reasons": ({"userId": "eve", "keys": ["empty"], "decideOptions": ["INCLUDE_REASONS"]}, [EMPTY]),
    "cache options": (
        _slovenian(
            _ON_ID, "choice",
            decideOptions=["IGNORE_CMAB_CACHE", "RESET_CMAB_CACHE", "INVALIDATE_USER_CMAB_CACHE"],
        ),
        [RIGHT],
    ),
    "prediction gone": ({"userId": "bob", "keys": ["choice"]}, [FAILED]),
    "no prediction": ({"userId": "eve", "keys": ["choice"]}, [FAILED]),
    "forced flag": (
        {"userId": "eve", "keys": ["test"], "forcedDecisions": [{"flagKey": "test", "variationKey": "off"}]},
        [("test", "", "off")],
    ),
    "forced rule": (
        {"userId": "eve", "keys": ["test", "choice"], "forcedDecisions": [
            {"flagKey": "test", "ruleKey": "vips", "variationKey": "gold"}, None,
            {"flagKey": "choice", "ruleKey": "bandit", "variationKey": "left"},
        ]},
        [GOLD, ("choice", "bandit", "left")],
    ),
    "segments": ({"userId": "bob", "keys": ["test"], "fetchSegments": True}, [NONE]),
    "in a segment": (
        {"userId": "ada", "keys": ["test"], "fetchSegments": True, "fetchSegmentsOptions": ["IGNORE_CACHE"],
         "decideOptions": ["IGNORE_USER_PROFILE_SERVICE"]},
        [GOLD],
    ),
    "segments not asked for": (
        {"userId": "ada", "keys": ["test"], "decideOptions": ["IGNORE_USER_PROFILE_SERVICE"]}, [NONE],
    ),
    "user without segments": ({"userId": "eve", "keys": ["test"], "fetchSegments": True}, [NONE]),
    "own ids and a deadline": ({"userId": "eve", "keys": ["empty"], "requestId": "mine", "ttlMs": 1}, [EMPTY]),
}  # fmt: skip


@pytest.fixture(scope="module")
def of_every_kind(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The results of one call of the command, by kind."""
    directory = tmp_path_factory.mktemp("every-kind")
    told = {
        "datafile": _SHOP, "segments": _SEGMENTS, "predictions": _PREDICTIONS,
        "profiles": {"old": {"1": {"variation_id": "102"}, "gone": {"variation_id": "1"}}},
    }  # fmt: skip
    for name, content in told.items():
        (directory / name).write_bytes(orjson.dumps(content))
    lines = b"\n".join(orjson.dumps(request) for request, _ in KINDS.values())
    done = run("decide", *(part for name in told for part in (f"--{name}", str(directory / name))), given=lines)
    assert (done.returncode, done.stderr) == (0, b"")
    results = [orjson.loads(line) for line in done.stdout.splitlines()]
    assert [result["source"] for result in results] == [f"stdin-0-{number}" for number in range(len(KINDS))]
    return dict(zip(KINDS, results, strict=True))


def test_the_bucketing_ids_of_these_tests_are_in_different_halves() -> None:
    assert _halves() == ["on", "off"]


@pytest.mark.parametrize("kind", KINDS)
def test_requests_of_every_kind(of_every_kind: dict[str, dict[str, Any]], kind: str) -> None:
    result = of_every_kind[kind]
    assert DECIDE_RESULT.is_valid(result), DECIDE_RESULT.first_fault(result)
    assert _given(result) == KINDS[kind][1]
    assert (result["sdkKey"], result["userId"]) == ("shopExample01", KINDS[kind][0]["userId"])
    assert "error" not in result


def test_what_the_options_do_to_the_answer(of_every_kind: dict[str, dict[str, Any]]) -> None:
    assert of_every_kind["one key"]["decisions"][0]["variables"] == {"v": "own"}
    assert "variables" not in of_every_kind["bare"]["decisions"][0]
    assert "tracking" not in of_every_kind["silent"]
    assert [one["ruleKey"] for one in of_every_kind["all flags"]["tracking"]["impressions"]] == ["ab", "bandit"]
    assert of_every_kind["reasons"]["decisions"][0]["reasons"] == ['Rollout with ID "" is not in the datafile.']
    assert of_every_kind["own ids and a deadline"]["requestId"] == "mine"


def test_what_predictions_do_to_the_answer(of_every_kind: dict[str, dict[str, Any]]) -> None:
    (impression,) = of_every_kind["cache options"]["tracking"]["impressions"]
    # The id of a choice is the same at each call: a function of user and rule.
    assert impression["cmabUuid"] == str(uuid5(NAMESPACE_OID, "ada 3"))
    assert of_every_kind["no prediction"]["decisions"][0]["reasons"] == [
        "Failed to fetch CMAB data for experiment bandit."
    ]
    assert of_every_kind["prediction gone"]["decisions"][0]["reasons"] == []
    (forced,) = of_every_kind["forced rule"]["tracking"]["impressions"][1:]
    assert forced["cmabUuid"] is None


def test_without_profiles_nobody_keeps_anything() -> None:
    lines = [orjson.dumps(_slovenian(name, "test")) for name in (_ON_ID, _OFF_ID)]
    results = [orjson.loads(line) for line in decide_lines(lines, orjson.dumps(_SHOP), People())]
    assert [_given(result) for result in results] == [[ON], [OFF]]


def test_predictions_fall_through_to_the_next_bandit() -> None:
    """What is wanted is given step by step, on one line."""
    second = rule("4", "second", variation("106", "up"), cmab={"trafficAllocation": 10000})
    shop = _SHOP | {
        "experiments": [*_EXPERIMENTS, second], "featureFlags": [flag("choice", _EXPERIMENTS[2], second)],
    }  # fmt: skip
    people = People(predictions=b'{"bob": {"3": "gone", "4": "106"}}')
    (line,) = decide_lines([b'{"userId": "bob"}'], orjson.dumps(shop), people)
    assert _given(orjson.loads(line)) == [("choice", "second", "up")]


# Files that cannot be used

_SHAPES = {
    "--segments": "user id -> list of segments",
    "--profiles": 'user id -> experiment id -> {"variation_id": ...}',
    "--predictions": "user id -> rule id -> variation id",
}
_NO_JSON = (
    b" ", b"{", b"{} x", b"ada", b"\xff\xfe{}?", b'\xef\xbb\xbf\xef\xbb\xbf{}', b'{"\\ud800": {}}', b'{"\xff": {}}',
)  # fmt: skip


def mistake(option: str, raw: bytes) -> str:
    with pytest.raises(ConfigurationError) as wrong:
        People(**{option.removeprefix("--"): raw})
    (told,) = wrong.value.mistakes
    return told


@pytest.mark.parametrize("option", _SHAPES)
@pytest.mark.parametrize("raw", _NO_JSON)
def test_a_file_about_people_that_is_no_json(option: str, raw: bytes) -> None:
    assert mistake(option, raw).startswith(f"{option}: not JSON: ")


@pytest.mark.parametrize(
    ("option", "raw", "place"),
    [
        ("--segments", b'{"ada": "vip"}', "$[...]"),
        ("--segments", b'{"ada": ["vip"], "ada": null}', "$[...]"),
        ("--profiles", b'{"ada": []}', "$[...]"),
        ("--profiles", b'{"ada": {"1": "101"}}', "$[...][...]"),
        ("--profiles", b'{"ada": {"1": {}}}', "$[...][...]"),
        ("--profiles", b'{"ada": {"1": {"variation_id": 101}}}', "$[...][...].variation_id"),
        ("--profiles", b'{"ada": {"1": {"variation_id": null}}}', "$[...][...].variation_id"),
        ("--predictions", b'{"ada": "101"}', "$[...]"),
        ("--predictions", b'{"ada": {"1": 101}}', "$[...][...]"),
        ("--predictions", b'{"ada": {"1": null}}', "$[...][...]"),
        *((option, raw, "") for option in _SHAPES for raw in (b"[]", b"null", b"5")),
    ],
)
def test_a_file_about_people_of_another_shape(option: str, raw: bytes, place: str) -> None:
    told = mistake(option, raw)
    assert told.startswith(f"{option}: must be an object of {_SHAPES[option]}: ")
    assert told.endswith(f' - at `{place}` (user "ada")' if place else "`")


def test_the_user_of_a_wrong_entry_is_named_among_many() -> None:
    assert mistake("--segments", b'{"ada": [], "eva\\n": "vip", "bob": 5}').endswith(' (user "eva\\n")')
    assert mistake("--segments", b'{"ada": "vip", "ada": []}').endswith("`$[...]`")
    assert mistake("--segments", b'{"ada": "vip", "bob": ').startswith("--segments: ")


@pytest.mark.parametrize("option", _SHAPES)
def test_a_file_about_people_nested_without_end(option: str) -> None:
    inner = {"--segments": b"[", "--profiles": b'{"1": {"variation_id": "1", "x": [', "--predictions": b'{"1": ['}
    told = mistake(option, b'{"ada": ' + inner[option] + b"[" * 10**5)
    assert told.startswith(f"{option}: ")


@pytest.mark.parametrize("option", ["--profiles", "--predictions"])
@pytest.mark.parametrize(("raw", "told"), [(b"{", "not JSON: "), (b'{"ada": 5}', "must be an object of ")])
def test_the_command_names_the_option_of_a_bad_file(option: str, raw: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "shop.json").write_bytes(orjson.dumps(_SHOP))
    (tmp_path / "people.json").write_bytes(raw)
    done = run(
        "decide", "--datafile", str(tmp_path / "shop.json"), option, str(tmp_path / "people.json"), given=b"{}\n"
    )
    (line,) = errors(done)
    assert (done.returncode, done.stdout) == (2, b"")
    assert line.startswith(f"{option}: {told}")
