"""Whatever stands in a datafile: it is taken or refused with place and fault, soon, and nothing else is raised."""

from __future__ import annotations

import json
import re
import resource
import time
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import DatafileRefused
from pipeline.project import ProjectConfig, compile_datafile
from pipeline.project.conditions import MAX_DEPTH, compile_tree, narrate, read_audiences, read_conditions
from tests.project.damage import ANY_JSON, WHOLE, Json, damaged

MINIMAL: Json = {"version": "4", "revision": "1"}
# A place, as far as the document has one, and what is wrong there. Names are the document's own: any text.
_TOLD = re.compile(
    r"not JSON: .+"
    r"|version is \".*\"; only \"4\" can be read"
    r"|revision is missing"
    r"|(the datafile|[a-zA-Z]+.*) is not (text|true or false|a whole number|a list|an object)"
    r"|[a-zA-Z]+.* is missing"
    r"|[a-zA-Z]+.*: conditions are nested more than 64 levels deep",
    re.DOTALL,
)


def taken(raw: bytes) -> ProjectConfig | None:
    """The project; None if it was refused, with a text that says what and where."""
    try:
        return compile_datafile(raw)
    except DatafileRefused as refused:
        assert _TOLD.fullmatch(str(refused)), str(refused)
        return None


def refusal(raw: bytes) -> str:
    with pytest.raises(DatafileRefused) as refused:
        compile_datafile(raw)
    return str(refused.value)


def document(**fields: Any) -> bytes:
    return json.dumps(MINIMAL | fields).encode()


@settings(deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes(raw: bytes) -> None:
    assert taken(raw) is None


@settings(deadline=None)
@given(ANY_JSON, st.dictionaries(st.sampled_from(sorted(WHOLE)), ANY_JSON, max_size=5))
def test_any_json(anything: Any, sections: Json) -> None:
    assert taken(json.dumps(anything).encode()) is None
    taken(document(**sections))


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(damaged())
def test_a_damaged_datafile(datafile: Json) -> None:
    taken(json.dumps(datafile).encode())


def test_the_whole_one_is_taken() -> None:
    project = compile_datafile(json.dumps(WHOLE).encode())
    assert list(project.flags) == ["f1", "f2", "f3"]
    assert project.odp is not None


# One by one


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "not JSON: Input is a zero-length, empty document, at character 0"),
        (b"  \n", "not JSON: input data is empty, at character 0"),
        (
            b"\xef\xbb\xbf" * 2 + document(),
            "not JSON: UTF-8 byte order mark (BOM) is not supported, at character 0",
        ),
        (b"\xff\xfe" + document() + b" " * (len(document()) % 2 == 0), "not JSON: not UTF-16-LE at byte "),
        (document()[:-1] + b', "x": "\xc3("}', "not JSON: not UTF-8 at byte "),
        (document()[:-1] + b', "x": "\\ud800"}', "not JSON: no low surrogate in string, at character "),
        (document()[:-1] + b', "\\udfff": 1}', "not JSON: invalid high surrogate in string, at character "),
        (document()[:-1] + b', "x": NaN}', "not JSON: unexpected character, expected a JSON value, at character "),
        (document()[:-1] + b', "x": -Infinity}', "not JSON: no digit after sign, at character "),
        (document()[:-1], "not JSON: unexpected end of data, at character "),
        (document() + b"x", "not JSON: unexpected content after document, at character "),
        (b"[" * 10**5 + b"]" * 10**5, "not JSON: depth limit exceeded, at character "),
        (
            document()[:-1] + b', "x": ' + b'{"a":' * 10**5 + b"1" + b"}" * 10**6 + b"}",
            "not JSON: depth limit exceeded, at character ",
        ),
    ],
)
def test_what_is_no_json_is_told_with_its_place(raw: bytes, told: str) -> None:
    assert refusal(raw).startswith(told)
    assert re.search(r" at (character|byte) [0-9]+$", refusal(raw))


@pytest.mark.parametrize("number", [2**63, 2**64 - 1])
def test_a_range_may_end_anywhere_within_64_bits(number: int) -> None:
    rule = WHOLE["experiments"][0] | {"trafficAllocation": [{"entityId": "101", "endOfRange": number}]}
    flag = {"id": "9", "key": "f", "experimentIds": ["1"]}
    project = compile_datafile(document(experiments=[rule], featureFlags=[flag]))
    found = project.flags["f"].experiments[0].pick(b"anyone")
    assert found is not None
    assert found.variation_id == "101"


@pytest.mark.parametrize("number", ["18446744073709551616", "1e3", "-1e400", "1" * 400])
def test_a_range_beyond_that_is_no_whole_number(number: str) -> None:
    raw = document(groups=[{"id": "g", "trafficAllocation": [{"endOfRange": 777}]}]).replace(b"777", number.encode())
    told = refusal(raw)
    assert told == "groups[0].trafficAllocation[0].endOfRange is not a whole number" or told.startswith("not JSON: ")


@pytest.mark.parametrize("number", ["18446744073709551616", "1" * 300, "-18446744073709551616"])
def test_a_condition_with_a_number_beyond_64_bits_can_never_be_told(number: str) -> None:
    leaf = {"name": "a", "type": "custom_attribute", "match": "gt", "value": 777}
    raw = json.dumps(leaf).replace("777", number).encode()
    test = compile_tree(read_conditions(orjson.loads(raw), "", []))
    assert [test({"a": value}, None) for value in (0, 2**53, -1, float("inf"))] == [None] * 4


def test_of_a_repeated_member_the_last_counts() -> None:
    project = compile_datafile(
        b'{"version": "3", "revision": "1", "version": "4", "revision": "2", "region": 5, "region": "EU"}'
    )
    assert (project.revision, project.region) == ("2", "EU")


def test_a_variable_whose_text_has_a_lone_surrogate_is_null() -> None:
    flag = {"key": "f", "variables": [{"id": "1", "key": "v", "type": "json", "defaultValue": '"\\ud800"'}]}
    values = compile_datafile(document(featureFlags=[flag])).flags["f"].nothing.variables
    assert values.member == b',"variables":{"v":null}'


@pytest.mark.parametrize("section", ["experiments", "featureFlags", "typedAudiences", "unknown"])
def test_fifty_megabytes_are_read_soon(section: str) -> None:
    entry = {"id": "1", "key": "k", "name": "n", "conditions": ["or"], "pad": "x" * 2000}
    raw = orjson.dumps(MINIMAL | {section: [entry] * (50 * 1024**2 // len(orjson.dumps(entry)))})
    assert len(raw) > 49 * 1024**2
    started = time.process_time()
    assert compile_datafile(raw).revision == "1"
    assert time.process_time() - started < 20
    # In KiB on Linux. The bytes, the document, and what else the run of tests holds.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * 1024**2


# Trees


LEAF: Json = {"name": "t", "type": "custom_attribute", "match": "exists"}


def chain(depth: int, innermost: Any, operator: str = "not") -> Any:
    for _ in range(depth):
        innermost = [operator, innermost]
    return innermost


@pytest.mark.parametrize("operator", ["not", "and", "or"])
def test_a_tree_ten_thousand_deep_is_refused_without_exhausting_the_stack(operator: str) -> None:
    told = "here: conditions are nested more than 64 levels deep"
    for tree in (chain(10_000, LEAF, operator), [*([LEAF] * 3), chain(10_000, LEAF, operator)]):
        with pytest.raises(DatafileRefused, match=f"^{told}$"):
            read_conditions(tree, "here", [])
        with pytest.raises(DatafileRefused, match=f"^{told}$"):
            read_audiences(tree, {}, "here")


def text_of(tree_depth: int) -> str:
    return '["not", ' * tree_depth + json.dumps(LEAF) + "]" * tree_depth


def test_a_datafile_with_such_a_tree_is_no_json_and_within_a_text_it_is_unknown() -> None:
    """A datafile is read 1,024 levels deep. Conditions as text are a document of their own, and may be no JSON."""
    typed = document(typedAudiences=[{"id": "1", "conditions": "TREE"}]).replace(b'"TREE"', text_of(10_000).encode())
    assert refusal(typed).startswith("not JSON: depth limit exceeded, at character ")
    plain = compile_datafile(
        document(
            audiences=[{"id": "1", "conditions": text_of(10_000)}],
            experiments=[{"id": "2", "key": "e", "audienceIds": ["1"]}],
            featureFlags=[{"key": "f", "experimentIds": ["2"]}],
        )
    )
    test = plain.flags["f"].experiments[0].audience
    assert test is not None
    assert test({"t": 1}, None) is None
    for depth, told in ((MAX_DEPTH + 1, "audiences[0]"), (1000, "audiences[0]")):
        raw = document(audiences=[{"id": "1", "conditions": text_of(depth)}])
        assert refusal(raw) == f"{told}: conditions are nested more than 64 levels deep"


@pytest.mark.parametrize("section", ["experiments", "holdouts", "rollouts"])
def test_audience_conditions_of_a_rule_are_limited_alike(section: str) -> None:
    rule = WHOLE["experiments"][0] | {"audienceConditions": chain(MAX_DEPTH + 1, "21")}
    entry = {"id": "r", "experiments": [rule]} if section == "rollouts" else rule
    flag = {"key": "f", "rolloutId": "r", "experimentIds": ["1"]}
    place = "rollouts[0].experiments[0]" if section == "rollouts" else f"{section}[0]"
    raw = document(featureFlags=[flag], **{section: [entry]})
    assert refusal(raw) == f"{place}: conditions are nested more than 64 levels deep"


@pytest.mark.parametrize(("operator", "expected"), [("and", True), ("or", True), ("not", False)])
def test_a_hundred_thousand_operands(operator: str, expected: bool) -> None:
    """Compiled, evaluated and told of; also as the audiences of a rule."""
    wide = [operator, *[LEAF] * 10**5]
    tree = read_conditions(wide, "", [])
    assert compile_tree(tree)({"t": 1}, None) is expected
    assert narrate(tree, {"t": 1}, None, []) is expected
    why: list[str] = []
    missing = read_audiences([operator, *["gone"] * 10**5], {}, "")
    assert missing is not None
    assert compile_tree(missing)({}, None) is None
    assert narrate(missing, {}, None, why) is None
    assert len(why) == (10**5 if operator == "or" else 1)


def test_the_deepest_tree_of_audiences_of_the_deepest_conditions() -> None:
    """What the limits allow together is told of within the stack: 64 levels of audiences, each of 64 of conditions."""
    conditions, rule_tree = chain(MAX_DEPTH, LEAF), chain(MAX_DEPTH, "1")
    raw = document(
        typedAudiences=[{"id": "1", "conditions": conditions}],
        experiments=[{"id": "2", "key": "e", "audienceConditions": rule_tree}],
        featureFlags=[{"key": "f", "experimentIds": ["2"]}],
    )
    experiment = compile_datafile(raw).flags["f"].experiments[0]
    assert experiment.audience is not None
    assert experiment.conditions is not None
    assert experiment.audience({"t": 1}, None) is True
    assert narrate(experiment.conditions, {"t": 1}, None, []) is True
