"""Only allowed hosts are called; a request looks as ODP wants it; failures are told apart."""

from __future__ import annotations

import pytest

from pipeline.errors import AccessRefused, PayloadRefused, SegmentsUnavailable, Unavailable
from pipeline.odp.client import HostNotAllowed, OdpClient, endpoint
from pipeline.settings import OdpSettings
from tests.odp.stand_in import Account, Odp, parts

SETTINGS = OdpSettings(allowed_hosts=("api.zaius.com", "*.Optimizely.com"))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("https://api.zaius.com", "https://api.zaius.com/v3/graphql"),
        ("https://api.zaius.com/", "https://api.zaius.com/v3/graphql"),
        ("https://API.ZAIUS.com:8443", "https://api.zaius.com:8443/v3/graphql"),
        ("https://api.eu1.odp.optimizely.com", "https://api.eu1.odp.optimizely.com/v3/graphql"),
    ],
)
def test_allowed_hosts(host: str, expected: str) -> None:
    assert endpoint(host, "/v3/graphql", SETTINGS) == expected


@pytest.mark.parametrize(
    "host",
    [
        "http://api.zaius.com", "api.zaius.com", "//api.zaius.com", "", "ftp://api.zaius.com", "file:///etc/passwd",
        "https://zaius.com", "https://optimizely.com", "https://.optimizely.com", "https://eviloptimizely.com",
        "https://api.zaius.com.evil.example", "https://evil.example#.optimizely.com",
        "https://evil.example/api.zaius.com", "https://evil.example\\@api.zaius.com",
        "https://user@api.zaius.com", "https://user:word@api.zaius.com", "https://api.zaius.com?x=", "https://[::1",
        "https://169.254.169.254", "https://api.zaius.com#", "https://api.zaius.com:99999",
    ],
)  # fmt: skip
def test_other_hosts_are_not_called(host: str) -> None:
    with pytest.raises(HostNotAllowed):
        endpoint(host, "/v3/graphql", SETTINGS)


@pytest.mark.asyncio
async def test_answer_by_a_real_schema() -> None:
    async with parts(Odp(people={"ann": ["gold"], "bob": []})) as made:
        client = OdpClient(transport=made.transport, settings=made.settings, metrics=made.metrics)
        ann, bob, unknown = await client.ask(made.account, ["ann", "bob", "unknown"])
        assert (ann, bob) == (frozenset({"gold"}), frozenset())
        assert isinstance(unknown, SegmentsUnavailable)
        assert unknown.reason == "invalid_identifier"
        assert made.odp.queries == [["ann", "bob", "unknown"]]
        await client.ask(made.account, ["ann", "bob"])
        assert made.sample("odp_queries_total", outcome="partial") == 1
        assert made.sample("odp_queries_total", outcome="ok") == 1
        assert made.sample("odp_users_per_query_sum") == 5
        assert made.sample("odp_query_seconds_count") == 2
        assert made.sample("odp_queries_in_flight") == 0


@pytest.mark.asyncio
async def test_host_not_allowed_is_never_called() -> None:
    async with parts(Odp(people={"ann": []}), allowed_hosts=("api.zaius.com",)) as made:
        client = OdpClient(transport=made.transport, settings=made.settings, metrics=made.metrics)
        with pytest.raises(SegmentsUnavailable) as caught:
            await client.ask(made.account, ["ann"])
        assert caught.value.reason == "host_not_allowed"
        assert made.odp.queries == []


@pytest.mark.asyncio
async def test_failures_are_told_apart() -> None:
    async with parts(Odp(people={"ann": []}, statuses=[503, 400])) as made:
        client = OdpClient(transport=made.transport, settings=made.settings, metrics=made.metrics)
        with pytest.raises(Unavailable):
            await client.ask(made.account, ["ann"])
        with pytest.raises(PayloadRefused):
            await client.ask(made.account, ["ann"])
        with pytest.raises(AccessRefused):
            await client.ask(Account(made.odp.host, key="wrong"), ["ann"])
        for outcome in ("unavailable", "refused", "denied"):
            assert made.sample("odp_queries_total", outcome=outcome) == 1
