"""Datafiles: what is read from one, what is refused and with which words, and that nothing else is ever raised."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optimizely.error_handler import NoOpErrorHandler
from optimizely.logger import NoOpLogger
from optimizely.project_config import ProjectConfig as SdkConfig

from pipeline.errors import DatafileRefused
from pipeline.project import OdpIntegration, compile_datafile
from tests.decision.projects import document

Json = dict[str, Any]
MINIMAL: Json = {"version": "4", "revision": "1"}
MAIN: Json = json.loads((Path(__file__).parents[1] / "data" / "agent" / "main.json").read_text())


def compiled(**fields: Any) -> Any:
    return compile_datafile(json.dumps(MINIMAL | fields).encode())


def test_what_is_missing_is_empty() -> None:
    config = compiled()
    assert (config.account_id, config.project_id, config.revision, config.sdk_key) == ("", "", "1", "")
    assert (config.environment_key, config.region, config.anonymize_ip, config.bot_filtering) == ("", "US", False, None)
    assert (config.send_flag_decisions, dict(config.flags), dict(config.events), config.odp) == (False, {}, {}, None)
    assert (
        compiled(experiments=None, region=None, botFiltering=None, anonymizeIP=None, integrations=None).region == "US"
    )


def test_what_is_read() -> None:
    config = compile_datafile(json.dumps(MAIN).encode())
    assert (config.account_id, config.project_id, config.revision) == ("10000000001", "20000000001", "42")
    assert (config.sdk_key, config.environment_key, config.region) == ("MainKey1", "production", "US")
    assert (config.anonymize_ip, config.bot_filtering, config.send_flag_decisions) == (True, False, True)
    assert list(config.flags) == [flag["key"] for flag in MAIN["featureFlags"]]
    assert dict(config.events) == {"purchase": "31001", "sign up / ž&": "31002"}
    assert config.odp == OdpIntegration(
        "http://ODP_HOST", "public-key-main", ("segment_a", "segment_b", "segment_c", "segment_unused")
    )


def test_region_is_in_upper_case() -> None:
    assert compiled(region="eu").region == "EU"
    assert compiled(region="").region == "US"


def test_odp_integration() -> None:
    complete = {"key": "odp", "host": "h", "publicKey": "k"}
    assert compiled(integrations=[{"key": "x"}, complete, complete | {"host": "second"}]).odp == OdpIntegration(
        "h", "k", ()
    )
    for incomplete in ({"key": "odp", "host": "h"}, {"key": "odp", "publicKey": "k"}, complete | {"host": ""}):
        assert compiled(integrations=[incomplete]).odp is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_bytes_of_any_encoding_that_the_sdk_reads_are_read(encoding: str) -> None:
    needed = dict.fromkeys(("experiments", "groups", "events", "audiences", "attributes"), ())
    raw = json.dumps(document(**(needed | {"revision": "ž7"})), ensure_ascii=False).encode(encoding)
    logger: Any = NoOpLogger()
    assert compile_datafile(raw).revision == SdkConfig(raw, logger, NoOpErrorHandler).revision == "ž7"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_with_the_mark_of_these_too_though_the_sdk_does_not_survive_its_own_reading(encoding: str) -> None:
    raw = json.dumps(document(revision="ž7"), ensure_ascii=False).encode(encoding)
    logger: Any = NoOpLogger()
    assert compile_datafile(raw).revision == "ž7"
    with pytest.raises(UnicodeDecodeError):
        SdkConfig(raw, logger, NoOpErrorHandler)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", "not JSON"),
        (b"<html>", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b'{"version":"4","revision":"1","x":NaN}', "not JSON"),
        (b'{"version":"4","revision":"\\ud800"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "the datafile is not an object"),
        (b"null", "the datafile is not an object"),
        (b"{}", 'version is ""; only "4" can be read'),
        (b'{"version":4}', "version is not text"),
        (b'{"version":"3","revision":"1"}', 'version is "3"'),
        (b'{"version":"4"}', "revision is missing"),
        (b'{"version":"4","revision":""}', "revision is missing"),
        (b'{"version":"4","revision":5}', "revision is not text"),
    ],
)
def test_no_datafile(raw: bytes, text: str) -> None:
    with pytest.raises(DatafileRefused, match=text):
        compile_datafile(raw)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"experiments": {}}, "experiments is not a list"),
        ({"experiments": [5]}, r"experiments\[0\] is not an object"),
        ({"experiments": [{"id": "1"}]}, r"experiments\[0\].key is missing"),
        ({"experiments": [{"id": 1, "key": "k"}]}, r"experiments\[0\].id is not text"),
        ({"featureFlags": [{"id": "1"}]}, r"featureFlags\[0\].key is missing"),
        ({"featureFlags": [{"key": "k", "experimentIds": [1]}]}, r"featureFlags\[0\].experimentIds\[0\] is not text"),
        (
            {"rollouts": [{"id": "r", "experiments": [{"id": "1", "key": "k", "variations": [{"id": "1"}]}]}]},
            r"rollouts\[0\].experiments\[0\].variations\[0\].key is missing",
        ),
        (
            {"groups": [{"id": "g", "trafficAllocation": [{"entityId": "1", "endOfRange": 0.5}]}]},
            r"groups\[0\].trafficAllocation\[0\].endOfRange is not a whole number",
        ),
        (
            {"groups": [{"id": "g", "trafficAllocation": [{"entityId": "1", "endOfRange": True}]}]},
            "endOfRange is not a whole number",
        ),
        ({"anonymizeIP": "yes"}, "anonymizeIP is not true or false"),
        ({"botFiltering": 1}, "botFiltering is not true or false"),
        ({"integrations": [{"host": "h"}]}, r"integrations\[0\].key is missing"),
        ({"attributes": [{"id": "1"}]}, r"attributes\[0\].key is missing"),
        ({"events": [{"key": "k"}]}, r"events\[0\].id is missing"),
        ({"experiments": [{"id": "1", "key": "k", "forcedVariations": {"u": 1}}]}, "forcedVariations.u is not text"),
        ({"experiments": [{"id": "1", "key": "k", "cmab": []}]}, "cmab is not an object"),
    ],
)
def test_wrong_types_are_refused_with_their_place(fields: Json, text: str) -> None:
    with pytest.raises(DatafileRefused, match=text):
        compiled(**fields)


def test_conditions_nested_too_deep_are_refused() -> None:
    deep: Any = {"name": "a"}
    for _ in range(300):
        deep = ["and", deep]
    for section, conditions in (("typedAudiences", deep), ("audiences", json.dumps(deep))):
        with pytest.raises(DatafileRefused, match=rf"{section}\[0\]: conditions are nested more than 64 levels"):
            compiled(**{section: [{"id": "1", "name": "n", "conditions": conditions}]})


def test_plain_audiences_hold_text_and_typed_ones_take_their_place() -> None:
    leaf = {"name": "odp", "type": "third_party_dimension", "match": "qualified"}
    odp = [{"key": "odp", "host": "h", "publicKey": "k"}]

    def segments(**sections: Any) -> tuple[str, ...]:
        found: tuple[str, ...] = compiled(integrations=odp, **sections).odp.segments_to_check
        return found

    plain = [{"id": "1", "conditions": json.dumps(leaf | {"value": "a"})}, {"id": "2", "conditions": "{bad"}]
    typed = [{"id": "1", "conditions": leaf | {"value": "b"}}]
    assert segments(audiences=plain) == ("a",)
    assert segments(audiences=plain, typedAudiences=typed) == ("b",)


def test_unknown_fields_and_sections_are_ignored() -> None:
    assert compiled(variables=5, future={"x": 1}).revision == "1"


@given(st.binary(max_size=200))
def test_arbitrary_bytes(raw: bytes) -> None:
    with pytest.raises(DatafileRefused):
        compile_datafile(raw)


_JUNK: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**70,
    1.5,
    "",
    "x",
    [],
    [[]],
    {},
    [None],
    ["x"],
    [{}],
    {"id": "1"},
    {"x": []},
    "{",
    "[]",
)


def _paths(item: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
    return [found for key, value in children for found in [(*path, key), *_paths(value, (*path, key))]]


_PATHS = _paths(MAIN)


@given(st.integers(0, 2**32))
def test_a_damaged_datafile_is_read_or_refused(seed: int) -> None:
    """Nothing else may come out of it: one exception less understood, and a poller would die of a bad file."""
    rng = random.Random(seed)
    document = copy.deepcopy(MAIN)
    for _ in range(rng.randint(1, 3)):
        *above, last = rng.choice(_PATHS)
        parent: Any = document
        try:
            for key in above:
                parent = parent[key]
            parent[last] = rng.choice(_JUNK)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier damage took this place away
    try:
        compile_datafile(json.dumps(document).encode())
    except DatafileRefused as refused:
        assert str(refused)
